"""What clients send, checked before it takes the place of anything."""

from __future__ import annotations

import math
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from zipfile import BadZipFile, ZipFile

from fastapi import HTTPException, UploadFile
from monailabel.interfaces.utils.app import app_instance

from lib.store.volumes import grid_of, read_label, values_in
from liverseg.errors import InputError
from liverseg.io.nifti import open_nifti
from liverseg.io.paths import NIFTI_SUFFIXES, nifti_suffix
from liverseg.transforms.load import LoadVolumed, check_same_grid


def check_volume(what: str, upload: UploadFile) -> None:
    """Whether an upload is one whole volume.

    Args:
        what: the field of the request.
        upload: a NIfTI file; it is left as if it had not been read.

    Raises:
        InputError: for another file, and one that is not whole or no single 3-D volume.
        HTTPException: 413 for a volume that is too large.
    """
    with copy_of(what, upload, NIFTI_SUFFIXES) as path:
        _check_header(path)
        LoadVolumed(what)({what: str(path)})


def check_series(what: str, uploads: Sequence[UploadFile]) -> None:
    """Whether several uploads are the files of one DICOM series.

    Args:
        what: the field of the request.
        uploads: they are left as if they had not been read.

    Raises:
        InputError: for files that are none, or those of several series, and two of one name.
        HTTPException: 413 for files that together are too large.
    """
    names = [PurePath(upload.filename or "").name for upload in uploads]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"{what}: found {twice[0]!r} twice, expected a name of its own for each file: rename "
            "one."
        )
    volumes = [name for name in names if nifti_suffix(name)]
    if volumes:
        raise InputError(
            f"{what}: found {volumes[0]!r} among {len(names)} files, expected one NIfTI file or "
            "the files of one DICOM series: make a session for each scan."
        )
    with tempfile.TemporaryDirectory() as folder:
        size = 0
        for name, upload in zip(names, uploads, strict=True):
            with Path(folder, name).open("wb") as file:
                shutil.copyfileobj(upload.file, file)
                size += file.tell()
            upload.file.seek(0)
            _check_size(size)
        try:
            LoadVolumed(what)({what: folder})
        except InputError as error:
            raise InputError(str(error).replace(folder, what)) from error


def check_label(upload: UploadFile, scan: str) -> list[int]:
    """Check that a label is whole and on the grid of its scan; returns its segments' values.

    Args:
        upload: a NIfTI file; it is left as if it had not been read.
        scan: path of a NIfTI file or of a folder with a DICOM series.

    Raises:
        InputError: for another file, for values that are none of a labelmap, and for another grid,
            with both grids.
        HTTPException: 413 for a volume that is too large.
    """
    with copy_of("label", upload, NIFTI_SUFFIXES) as path:
        _check_header(path)
        label = read_label(str(path))
        check_same_grid(grid_of(scan), label)
        return values_in(label)


def check_archive(what: str, upload: UploadFile) -> None:
    """Whether an archive can be unpacked, and is not too large for it.

    Args:
        what: the field of the request.
        upload: of any format that `shutil.unpack_archive` knows; it is left as if it had not been
            read.

    Raises:
        InputError: for another file, and one that is not whole.
        HTTPException: 413 for one whose files together are too large.
    """
    suffixes = [suffix for _, some, _ in shutil.get_unpack_formats() for suffix in some]
    with copy_of(what, upload, suffixes) as path:
        size = 0
        try:
            for one in _sizes(path):
                size += one
                _check_size(size)
        except HTTPException:
            raise
        # Each format has errors of its own, and some those of the compression.
        except Exception as error:
            reason = str(error).partition("\n")[0].rstrip(":")
            raise InputError(
                f"{path}: not readable as an archive ({reason}), expected a whole one: pack it "
                "anew."
            ) from error


def _sizes(archive: Path) -> Iterator[int]:
    """Of each file in an archive, unpacked, in bytes."""
    if archive.suffix == ".zip":
        with ZipFile(archive) as zipped:
            yield from [file.file_size for file in zipped.infolist()]
            damaged = zipped.testzip()
            if damaged is not None:
                raise BadZipFile(f"{damaged} is damaged")
    else:
        with tarfile.open(archive) as packed:
            for member in packed:
                tarfile.data_filter(member, str(archive.parent))
                yield member.size


def _check_header(path: Path) -> None:
    """What a NIfTI file says of itself, before it takes the memory that it asks for."""
    image = open_nifti(path)
    # Scans are read as float32.
    _check_size(math.prod(image.shape) * max(4, image.get_data_dtype().itemsize))


def _check_size(size: int) -> None:
    max_mb = app_instance().options.max_upload_mb
    if size > max_mb * 10**6:
        raise HTTPException(
            413,
            f"upload: found {size // 10**6} MB or more when unpacked, expected at most {max_mb} "
            "MB: send a smaller volume, or start the server with a larger --conf max_upload_mb.",
        )


@contextmanager
def copy_of(what: str, upload: UploadFile, suffixes: Sequence[str]) -> Iterator[Path]:
    """A file with what was sent until the block ends; errors name it as the client does.

    Raises:
        InputError: for another suffix.
    """
    name = PurePath(upload.filename or "").name
    suffix = next((suffix for suffix in suffixes if name.lower().endswith(suffix)), None)
    if suffix is None:
        raise InputError(
            f"{what}: found {name!r}, expected a file {' or '.join(suffixes)}: convert it."
        )
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        shutil.copyfileobj(upload.file, file)
        file.flush()
        upload.file.seek(0)
        try:
            yield Path(file.name)
        except InputError as error:
            raise InputError(str(error).replace(file.name, f"{what} {name!r}")) from error
