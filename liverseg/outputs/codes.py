"""What each segment is in SNOMED CT, and its colour: the one table for all that names segments.

Codes are those of DICOM's context groups of segments (PS3.16, CID 7150, 7154, 7159, 7166 and 244);
3D Slicer's list "General Anatomy", whose colours these are, has the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from liverseg.data.segment_names import our_name

SCHEME = "SCT"


class Code(NamedTuple):
    """A concept of SNOMED CT.

    Attributes:
        value: its number.
        meaning: its name in DICOM.
    """

    value: str
    meaning: str


ANATOMY = Code("123037004", "Anatomical Structure")


@dataclass(frozen=True)
class SegmentCode:
    """What a segment is.

    Attributes:
        kind: what it is, SegmentedPropertyTypeCodeSequence.
        rgb: 0…255 each; None where any colour will do.
        side: left or right, its modifier.
        region: the organ that it lies in.
        category: SegmentedPropertyCategoryCodeSequence.
    """

    kind: Code
    rgb: tuple[int, int, int] | None
    side: Code | None = None
    region: Code | None = None
    category: Code = ANATOMY


LIVER = Code("10200004", "Liver")
KIDNEY, LUNG = Code("64033007", "Kidney"), Code("39607008", "Lung")
ADRENAL_GLAND = Code("23451007", "Adrenal gland")
LEFT, RIGHT = Code("7771000", "Left"), Code("24028007", "Right")
VEIN_RGB = (0, 151, 206)

CODES = {
    "liver": SegmentCode(LIVER, (221, 130, 101)),
    # Not "Neoplasm": a mask does not tell a tumour from a cyst.
    "lesion": SegmentCode(
        Code("4147007", "Mass"),
        (144, 238, 144),
        region=LIVER,
        category=Code("49755003", "Morphologically Abnormal Structure"),
    ),
    "spleen": SegmentCode(Code("78961009", "Spleen"), (157, 108, 162)),
    "stomach": SegmentCode(Code("69695003", "Stomach"), (216, 132, 105)),
    "gallbladder": SegmentCode(Code("28231008", "Gallbladder"), (139, 150, 98)),
    "pancreas": SegmentCode(Code("15776009", "Pancreas"), (249, 180, 111)),
    # The data sets' artery is the aorta; its colour is that of any artery.
    "artery": SegmentCode(Code("15825003", "Aorta"), (216, 101, 79)),
    "portal vein": SegmentCode(Code("32764006", "Portal Vein"), VEIN_RGB),
    "inferior vena cava": SegmentCode(Code("64131007", "Inferior Vena Cava"), VEIN_RGB),
    "hepatic vein": SegmentCode(Code("8993003", "Hepatic Vein"), VEIN_RGB),
    "esophagus": SegmentCode(Code("32849002", "Esophagus"), (211, 171, 143)),
    "duodenum": SegmentCode(Code("38848004", "Duodenum"), (255, 253, 229)),
    "small bowel": SegmentCode(Code("30315005", "Small intestine"), (205, 167, 142)),
    "colon": SegmentCode(Code("71854001", "Colon"), (204, 168, 143)),
    "urinary bladder": SegmentCode(Code("89837001", "Bladder"), (222, 154, 132)),
    "heart": SegmentCode(Code("80891009", "Heart"), (206, 110, 84)),
    "spinal cord": SegmentCode(Code("2748008", "Spinal cord"), (244, 214, 49)),
    **{
        f"{word}{name}": SegmentCode(kind, rgb, side)
        for name, kind, rgb in (
            ("kidney", KIDNEY, (185, 102, 83)),
            ("adrenal gland", ADRENAL_GLAND, (249, 186, 150)),
            ("lung", LUNG, (197, 165, 145)),
        )
        for word, side in (("", None), ("left ", LEFT), ("right ", RIGHT))
    },
}
# What 3D Slicer gives to a segment of which it knows nothing.
_TISSUE = Code("85756007", "Tissue")
UNKNOWN = SegmentCode(_TISSUE, None, category=_TISSUE)


def code_of(name: str) -> SegmentCode:
    """Return what a segment is by any of its names; `UNKNOWN` for one without a sure code."""
    return CODES.get(our_name(name), UNKNOWN)
