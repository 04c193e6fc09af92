"""What clients send, checked before it takes the place of anything."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import nibabel as nib
import torch
from fastapi import HTTPException, UploadFile
from monai.data import MetaTensor
from monailabel.utils.others.generic import file_checksum

from lib.bundles import Bundle
from lib.masks import NIFTI_SUFFIXES
from liverseg.errors import InputError
from liverseg.networks import load_weights
from liverseg.transforms.load import LoadVolumed, check_same_grid
from liverseg.versions import lock, model_files, new_version, publish, weights_in_use


def check_volume(what: str, upload: UploadFile) -> MetaTensor:
    """The volume in an upload, (1, H, W, D), read to its end.

    Args:
        what: the field of the request.
        upload: a NIfTI file; it is left as if it had not been read.

    Raises:
        InputError: for another file, and one that is not whole or no single 3-D volume.
    """
    name = PurePath(upload.filename or "").name
    suffix = next((suffix for suffix in NIFTI_SUFFIXES if name.endswith(suffix)), None)
    if suffix is None:
        raise InputError(f"{what}: found {name!r}, expected a NIfTI file, .nii.gz or .nii: convert it.")
    with _copy(upload, suffix) as path:
        try:
            return LoadVolumed(what)({what: str(path)})[what]
        except InputError as error:
            raise InputError(_without_path(error, path, name)) from error


def check_label(upload: UploadFile, scan: str) -> None:
    """Whether a label is whole and lies on the grid of its scan.

    Args:
        upload: as of `check_volume`.
        scan: path of a NIfTI file or of a folder with a DICOM series.

    Raises:
        InputError: as `check_volume`, for values that are none of a labelmap, and for another grid, with both grids.
    """
    label = check_volume("label", upload)
    name = PurePath(upload.filename or "").name
    if not bool((label.as_tensor() == label.as_tensor().to(torch.uint8)).all()):
        raise InputError(f"label: found values in {name!r} that are not 0, 1, … 255, expected a labelmap: mend it.")
    label.meta["filename_or_obj"] = f"label {name!r}"
    check_same_grid(_grid_of(scan), label)


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
    with _copy(upload, ".pt") as path:
        try:
            with bundle.workflow({"device": "cpu"}) as parser:
                load_weights(parser.get_parsed_content("network"), path)
        except InputError as error:
            raise InputError(_without_path(error, path, PurePath(upload.filename or "").name)) from error
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
def _copy(upload: UploadFile, suffix: str) -> Iterator[Path]:
    """A file with what was sent, until the block ends."""
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        shutil.copyfileobj(upload.file, file)
        file.flush()
        upload.file.seek(0)
        yield Path(file.name)


def _without_path(error: InputError, path: Path, name: str) -> str:
    return str(error).replace(str(path), repr(name))


def _grid_of(scan: str) -> MetaTensor:
    """A scan without its voxels, where its file can be read without them."""
    if not scan.endswith(NIFTI_SUFFIXES):
        return LoadVolumed("image")({"image": scan})["image"]
    image: Any = nib.load(scan)
    voxels = torch.empty(1).expand(1, *image.shape[:3])
    return MetaTensor(voxels, affine=image.affine, meta={"filename_or_obj": f"scan {Path(scan).name!r}"})
