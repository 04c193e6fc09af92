"""What clients send, checked before it takes the place of anything."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from fastapi import HTTPException, UploadFile
from monailabel.utils.others.generic import file_checksum

from lib.bundles import Bundle
from lib.masks import NIFTI_SUFFIXES
from lib.volumes import grid_of, read_label
from liverseg.errors import InputError
from liverseg.networks import load_weights
from liverseg.transforms.load import LoadVolumed, check_same_grid
from liverseg.versions import lock, model_files, new_version, publish, weights_in_use


def check_volume(what: str, upload: UploadFile) -> None:
    """Whether an upload is one whole volume.

    Args:
        what: the field of the request.
        upload: a NIfTI file; it is left as if it had not been read.

    Raises:
        InputError: for another file, and one that is not whole or no single 3-D volume.
    """
    with _copy(what, upload, NIFTI_SUFFIXES) as path:
        LoadVolumed(what)({what: str(path)})


def check_label(upload: UploadFile, scan: str) -> None:
    """Whether a label is whole and lies on the grid of its scan.

    Args:
        upload: a NIfTI file; it is left as if it had not been read.
        scan: path of a NIfTI file or of a folder with a DICOM series.

    Raises:
        InputError: for another file, for values that are none of a labelmap, and for another grid, with both grids.
    """
    with _copy("label", upload, NIFTI_SUFFIXES) as path:
        check_same_grid(grid_of(scan), read_label(str(path)))


def update_model(bundle: Bundle | None, model: str, upload: UploadFile) -> dict[str, Any]:
    """Put weights into use as a version of their own: those in use before are kept, and inferences finish with them.

    Args:
        bundle: whose weights they are; None for a model that has none.
        model: its name.
        upload: the weights of its network, as `torch.save` writes a state dict.

    Returns:
        `checksum` and `modified_time` of the file, as MONAI Label has them.

    Raises:
        HTTPException: 404 for a model that has no single file of weights.
        InputError: for weights that are not those of its network.
    """
    files = model_files(weights_in_use(bundle.folder)) if bundle else []
    if bundle is None or any(len(file.parts) > 1 for file in files) or _has_several_networks(bundle):
        raise HTTPException(
            404,
            f"model {model}: found no single file of weights to replace, expected one: copy them into the bundle's "
            "folder models/ instead.",
        )
    with _copy("file", upload, [".pt"]) as path:
        with bundle.workflow({"device": "cpu"}) as parser:
            load_weights(parser.get_parsed_content("network"), path)
        version = new_version(bundle.folder, state="training", reason="sent by a client", parent=None)
        with lock(version.folder / ".lock"):
            file = version.folder / "model.pt"
            shutil.copyfile(path, file)
            version.update(state="candidate")
    publish(bundle.folder, version.name)
    return {"checksum": file_checksum(str(file)), "modified_time": int(file.stat().st_mtime)}


def _has_several_networks(bundle: Bundle) -> bool:
    with bundle.workflow({}) as parser:
        return "ckpt_path" in parser and isinstance(parser.get_parsed_content("ckpt_path"), Mapping)


@contextmanager
def _copy(what: str, upload: UploadFile, suffixes: Sequence[str]) -> Iterator[Path]:
    """A file with what was sent until the block ends; it is called as the client calls it where the block refuses it.

    Raises:
        InputError: for another suffix.
    """
    name = PurePath(upload.filename or "").name
    suffix = next((suffix for suffix in suffixes if name.endswith(suffix)), None)
    if suffix is None:
        raise InputError(f"{what}: found {name!r}, expected a file {' or '.join(suffixes)}: convert it.")
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        shutil.copyfileobj(upload.file, file)
        file.flush()
        upload.file.seek(0)
        try:
            yield Path(file.name)
        except InputError as error:
            raise InputError(str(error).replace(file.name, f"{what} {name!r}")) from error
