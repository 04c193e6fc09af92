"""`liverseg report`: a page to look at any mask, whoever made it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    scan: Annotated[Path, typer.Argument(help="NIfTI, NRRD, MetaImage, or a DICOM folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.html", help="The page to write.")],
    mask: Annotated[Path, typer.Option(help="NIfTI, NRRD, .seg.nrrd or DICOM SEG.")],
    names: Annotated[str, typer.Option(help="Of its values, as 1=liver,2=lesion.")] = "",
    modality: Annotated[str, typer.Option(help="ct or mr.")] = "ct",
) -> None:
    """Write a page to look at a scan and its mask, with figures of each class.

    The page opens in any browser and asks nothing of a network. Names come from the mask where it
    is a DICOM SEG or .seg.nrrd.

    Example: liverseg report ct.nii.gz ct.html --mask ct_mask.nii.gz --names 1=liver,2=lesion
    """
    from liverseg.data.segment_names import read_names
    from liverseg.errors import InputError
    from liverseg.io.paths import absolute
    from liverseg.io.volumes import read_volume
    from liverseg.outputs.reading import read_segmentation
    from liverseg.outputs.report import write_page
    from liverseg.outputs.statistics import statistics
    from liverseg.workbench.segment.outputs import colours_of

    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"{out}: found no name of a page, expected one in .html: correct it.")
    given = read_names(names) if names else {}
    segmentation = read_segmentation(str(absolute(mask)), str(absolute(scan)), given)
    image = read_volume(segmentation.scan).array
    figures = statistics(segmentation, image, modality)
    write_page(out, segmentation, image, colours_of(segmentation), figures, {"Mask": mask.name})
    volumes = ", ".join(
        f"{name} {row['volume_ml']:.0f} ml" for name, row in figures["classes"].items()
    )
    print(f"{out}: {volumes}")
