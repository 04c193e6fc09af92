"""Write what is asked for beside the mask of a scan."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from liverseg.files import write_json
from liverseg.io.paths import nifti_suffix
from liverseg.io.volumes import read_volume
from liverseg.outputs.codes import code_of
from liverseg.outputs.segmentation import Segmentation, boxes_of

MESHES = ("stl", "obj", "glb")
FORMATS = ("classes", "nrrd", "seg", "rtstruct", *MESHES)
# Of classes that have none of their own.
SPARE_COLOURS = ("#4f9bd9", "#e0a030", "#7ab648", "#b07cc6", "#d9648c", "#45b5aa")


@dataclass(frozen=True)
class Wanted:
    """What is written beside the mask.

    Attributes:
        formats: some of `FORMATS`.
        statistics: volumes, lesions and their figures, as JSON.
        report: a page to look at, in HTML.
        preview: a picture, in PNG.
        probabilities: those of each class, as NIfTI.
    """

    formats: Sequence[str] = ()
    statistics: bool = False
    report: bool = False
    preview: bool = False
    probabilities: bool = False


def write_outputs(
    segmentation: Segmentation,
    mask: Path,
    wanted: Wanted,
    modality: str,
    facts: Mapping[str, str],
) -> dict[str, Any]:
    """Write what is wanted beside a mask, called as the mask is.

    Args:
        segmentation: the mask.
        mask: its file.
        wanted: what to write.
        modality: `ct` or `mr`.
        facts: of the run, for the report.

    Returns:
        `files`, their names in the folder of the mask, and `statistics` where they are wanted.

    Raises:
        InputError: for DICOM of a scan that is none, and a file that cannot be written.
    """
    folder, stem = mask.parent, mask.name.removesuffix(nifti_suffix(mask))
    written = [mask.name]

    def place(tail: str) -> Path:
        written.append(f"{stem}{tail}")
        return folder / written[-1]

    # Each needs packages of its own.
    if "classes" in wanted.formats:
        from liverseg.outputs.class_files import write_class_files

        of_classes = write_class_files(segmentation, folder / stem)
        written += [f"{stem}/{path.name}" for path in of_classes.values()]
    if wanted.probabilities:
        from liverseg.outputs.class_files import write_probabilities

        written += [path.name for path in write_probabilities(segmentation, folder / stem)]
    if "nrrd" in wanted.formats:
        from liverseg.outputs.segments_nrrd import write_segments_nrrd

        write_segments_nrrd(segmentation, place(".seg.nrrd"))
    if "seg" in wanted.formats:
        from liverseg.outputs.dicom_seg import write_dicom_seg

        write_dicom_seg(segmentation, place(".seg.dcm"))
    if "rtstruct" in wanted.formats:
        from liverseg.outputs.rtstruct import write_rtstruct

        write_rtstruct(segmentation, place(".rtstruct.dcm"))
    meshes = [suffix for suffix in MESHES if suffix in wanted.formats]
    if meshes:
        from liverseg.outputs.meshes import write_meshes

        for suffix in meshes:
            some = write_meshes(segmentation, folder / stem, f".{suffix}")
            written += [f"{stem}/{path.name}" for path in some]
    figures: dict[str, Any] | None = None
    if wanted.statistics or wanted.report or wanted.preview:
        image = read_volume(segmentation.scan).array
        if wanted.statistics or wanted.report:
            from liverseg.outputs.statistics import statistics

            figures = statistics(segmentation, image, modality)
        if wanted.statistics:
            write_json(place("_statistics.json"), figures)
        if wanted.preview:
            from liverseg.outputs.preview import preview_png

            preview_png(place(".png"), segmentation, image, colours_of(segmentation))
        if wanted.report:
            from liverseg.outputs.report import write_page

            colours = colours_of(segmentation)
            write_page(place(".html"), segmentation, image, colours, figures, facts)
    return {"files": written} | ({"statistics": figures} if wanted.statistics else {})


def colours_of(segmentation: Segmentation) -> dict[int, str]:
    """Return the colour of each class as "#rrggbb"."""
    spare = itertools.cycle(SPARE_COLOURS)
    found = {}
    for value in sorted({*segmentation.class_names, *boxes_of(segmentation.mask)}):
        rgb = code_of(segmentation.name(value)).rgb
        found[value] = next(spare) if rgb is None else "#{:02x}{:02x}{:02x}".format(*rgb)
    return found
