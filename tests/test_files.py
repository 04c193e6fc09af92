from __future__ import annotations

import os

import pytest
from helpers.full_disk import full_disk

from liverseg.errors import InputError
from liverseg.files import atomic_write, check_writable


def test_writes_replaces_and_leaves_nothing_beside(tmp_path):
    for content in (b"one", b"two"):
        with atomic_write(tmp_path / "a.txt") as file:
            file.write(content)
        assert (tmp_path / "a.txt").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)]
)
def test_the_umask_says_who_may_read_it(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        for _ in range(2):
            with atomic_write(tmp_path / "a.txt") as file:
                file.write(b"one")
            assert (tmp_path / "a.txt").stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)


def test_when_the_disk_is_full_the_old_file_stays(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"old")
    with (
        full_disk(1000),
        pytest.raises(InputError, match=r"a\.txt: could not be saved \(File too large\).* stays"),
        atomic_write(tmp_path / "a.txt") as file,
    ):
        file.write(bytes(10_000))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.txt": b"old"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_whatever_ends_it_leaves_nothing_beside(tmp_path, error):
    (tmp_path / "a.txt").write_bytes(b"old")
    with pytest.raises(error), atomic_write(tmp_path / "a.txt") as file:
        file.write(b"half")
        raise error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.txt": b"old"}


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"file.x: the folder cannot be written \(Not a directory\)"
    ):
        check_writable(tmp_path / "file" / "x")
    for path in (tmp_path / "gone" / "a.txt", tmp_path / "file" / "a.txt", tmp_path / ("a" * 250)):
        with pytest.raises(InputError, match="could not be saved") as error, atomic_write(path):
            pass
        cure = (
            "free some space"
            if path.parent == tmp_path
            else f"expected a folder {path.parent}: make it"
        )
        assert cure in str(error.value)
