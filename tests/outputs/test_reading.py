from __future__ import annotations

import numpy as np
import pytest
from helpers.masked_series import NAMES, hard_mask, masked_series, series_affine

from liverseg.errors import InputError

pytest.importorskip("highdicom", reason='needs pip install ".[segment]"')
sitk = pytest.importorskip("SimpleITK")

from liverseg.outputs.dicom_seg import write_dicom_seg  # noqa: E402
from liverseg.outputs.reading import read_dicom_seg  # noqa: E402


def test_what_we_wrote_is_read(tmp_path):
    masked = masked_series(tmp_path / "ct", series_affine("oblique"))
    write_dicom_seg(masked, tmp_path / "mask.dcm")
    read = read_dicom_seg(str(tmp_path / "mask.dcm"), masked.scan)
    mask = hard_mask()
    assert list(read.class_names.values()) == ["liver", "lesion", "spleen", "größtes Segment"]
    for value, name in read.class_names.items():
        (ours,) = (number for number, other in NAMES.items() if other == name)
        assert np.array_equal(read.mask == value, mask == ours)


@pytest.mark.real_data
def test_a_foreign_dicom_seg_is_read(samples):
    folder = samples / "dcmqi_ct"
    read = read_dicom_seg(str(folder / "liver.dcm"), str(folder / "ct"))
    image = sitk.ReadImage(str(folder / "liver_seg.nrrd"))
    assert list(read.class_names) == [1]
    # On the same grid: rows, columns and slices run in the same direction.
    assert np.array_equal(read.mask, sitk.GetArrayFromImage(image).T)


@pytest.mark.parametrize("file", ["0.dcm", "note.txt", "nowhere.dcm"])
def test_what_is_no_dicom_seg_is_refused(tmp_path, file):
    masked = masked_series(tmp_path / "ct", series_affine())
    (tmp_path / "ct" / "note.txt").write_text("no DICOM")
    with pytest.raises(InputError, match=rf"{file}: .*expected a DICOM SEG: choose another"):
        read_dicom_seg(str(tmp_path / "ct" / file), masked.scan)
