"""One rule for the names of scans."""

import pytest

from liverseg.io.paths import absolute, is_hidden, nifti_suffix, stem_of


@pytest.mark.parametrize(
    ("name", "suffix", "stem"),
    [
        ("a/UPPER.NII", ".NII", "UPPER"),
        ("x.NII.GZ", ".NII.GZ", "x"),
        ("case.001.nii.gz", ".nii.gz", "case.001"),
        ("1.2.840.1", "", "1.2.840.1"),
        ("IM0001.dcm", "", "IM0001"),
        (".nii", "", ".nii"),
        ("[CT] x", "", "[CT] x"),
    ],
)
def test_the_suffix_of_a_scan_in_any_case_and_its_name_without(name, suffix, stem):
    assert nifti_suffix(name) == suffix
    assert stem_of(name) == stem


def test_what_macos_leaves_behind_is_hidden():
    assert is_hidden("imagesTr/._liver_0.nii.gz")
    assert is_hidden(".DS_Store")
    assert not is_hidden("liver_0.nii.gz")


def test_a_link_keeps_its_own_name(tmp_path):
    (tmp_path / "blob").write_bytes(b"")
    link = tmp_path / "scan.nii.gz"
    link.symlink_to(tmp_path / "blob")
    assert absolute(link) == link
