"""Segment a scan from Python, as `liverseg segment` does."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from liverseg.errors import InputError
from liverseg.io.nifti import write_nifti
from liverseg.io.paths import NIFTI_SUFFIXES, absolute, nifti_suffix
from liverseg.io.volumes import read_volume
from liverseg.outputs.preview import draw_preview
from liverseg.outputs.segmentation import Segmentation
from liverseg.outputs.statistics import statistics
from liverseg.workbench.segment.bundles import DEFAULT
from liverseg.workbench.segment.inference import Options, run_inference
from liverseg.workbench.segment.outputs import Wanted, colours_of
from liverseg.workbench.segment.session import open_session


@dataclass(frozen=True)
class SegmentedScan(Segmentation):
    """A mask and its scan; a notebook shows both as a picture.

    Attributes:
        modality: `ct` or `mr`.
        voxels: of the scan, (H, W, D), where no file has them any more; None reads it again.
    """

    modality: str = "ct"
    voxels: np.ndarray | None = field(default=None, repr=False)

    def statistics(self) -> dict[str, Any]:
        """Return volumes, lesions and intensities, as `liverseg.outputs.statistics` defines them.

        Raises:
            InputError: for a scan that is not where it was.
        """
        return statistics(self, self._image(), self.modality)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the mask as NIfTI, `.nii.gz` or `.nii`, and return its path.

        Raises:
            InputError: for another suffix, and a file that cannot be written.
        """
        if not nifti_suffix(path):
            raise InputError(
                f"{path}: found the name of another format, expected one that ends in "
                f"{' or '.join(NIFTI_SUFFIXES)}: rename it."
            )
        write_nifti(path, self.mask, self.affine)
        return Path(path)

    def _image(self) -> np.ndarray:
        return read_volume(self.scan).array if self.voxels is None else self.voxels

    def _repr_png_(self) -> bytes:
        return draw_preview(self, self._image(), colours_of(self))


def segment(
    scan: str | os.PathLike[str] | np.ndarray,
    bundle: str | os.PathLike[str] = DEFAULT,
    *,
    affine: np.ndarray | None = None,
    series: str | None = None,
    modality: str | None = None,
    roi: Sequence[str] = (),
    device: str | None = None,
    fast: bool = False,
    tta: bool = False,
    planes: Sequence[str] = (),
    postprocessing: str | None = None,
    ensemble: Sequence[str | os.PathLike[str]] = (),
    probabilities: bool = False,
    **settings: Any,
) -> SegmentedScan:
    """Segment a scan; the mask is the one that `liverseg segment` writes.

    What takes longer than two seconds shows a progress bar.

    Args:
        scan: a path to what `liverseg segment` takes, with one scan in it; or voxels (H, W, D), HU
            or intensities, in any order of the axes.
        bundle: its name, folder or archive.
        affine: (4, 4), voxel index to RAS mm, of an array.
        series: of several DICOM series, the UID or a part of the description of the one to take.
        modality: `ct` or `mr`; None takes the bundle's default.
        roi: the classes to find; empty for what the bundle finds by itself.
        device: as PyTorch names it; None takes the first GPU, or the CPU.
        fast: no second look at the mirrored scan, one plane, no flips.
        tta: average over the flips that the bundle offers.
        planes: the planes that vote, of `cascade_lits`.
        postprocessing: one of the bundle's; None takes its default.
        ensemble: bundles of the same classes that vote by the mean of their probabilities, instead
            of `bundle`.
        probabilities: give these, too.
        settings: of the bundle's `inference.json`, by name.

    Returns:
        The mask on the grid of the scan, with `volumes_ml`, `flags`, `warnings`, `statistics()` and
        `save(path)`.

    Raises:
        InputError: for what is no scan or not one scan, an array without its affine, and as
            `liverseg segment`.
    """
    options = Options(
        roi=list(roi), device=device, fast=fast, planes=list(planes), tta=tta,
        postprocessing=postprocessing, modality=modality, settings=settings,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = absolute(name)
        if isinstance(scan, (str, os.PathLike)):
            source, called = absolute(scan), str(absolute(scan))
        else:
            source, called = folder / "array.nii", "array"
            _write(source, scan, affine)
        wanted = Wanted(probabilities=probabilities)
        names = [os.fspath(each) for each in ensemble]
        session = open_session(source, folder, os.fspath(bundle), options, wanted, series, names)
        with session as (cases, request):
            if len(cases) != 1:
                raise InputError(
                    f"{called}: found {len(cases)} scans, expected one: name one of them, or run "
                    "`liverseg segment` on all."
                )
            path = cases[0].scan
            found, _ = run_inference(
                [request.bundle, *request.others], path, folder / "mask", options, probabilities
            )
            kept = None
            # Of an array, or out of an archive.
            if Path(path).is_relative_to(folder):
                kept = np.array(read_volume(path).array)
                path = called
    return SegmentedScan(**{**found.__dict__, "scan": path}, modality=request.modality, voxels=kept)


def _write(path: Path, array: Any, affine: Any) -> None:
    voxels = np.asarray(array)
    if voxels.ndim != 3 or voxels.dtype.kind not in "biuf" or not voxels.size:
        raise InputError(
            f"scan: found an array {voxels.shape} of {voxels.dtype}, expected (H, W, D) of "
            "real numbers: take one channel of one scan."
        )
    place = None if affine is None else np.asarray(affine, np.float64)
    if place is None or place.shape != (4, 4):
        found = "none" if place is None else f"the shape {place.shape}"
        raise InputError(
            f"affine: found {found}, expected (4, 4), voxel index to RAS mm: give the scan's own."
        )
    # The networks get float32 whatever it is.
    write_nifti(path, voxels if voxels.dtype == np.int16 else voxels.astype(np.float32), place)
