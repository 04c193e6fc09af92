from __future__ import annotations

import pytest
from monailabel.datastore.utils.colors import GENERIC_ANATOMY_COLORS

from liverseg.data.segment_names import our_name
from liverseg.outputs.codes import CODES, UNKNOWN, Code, code_of

concepts_dict = pytest.importorskip("pydicom.sr._concepts_dict")


def meanings(value: str) -> set[str]:
    """What DICOM calls a code."""
    return {
        found[value][0].lower()
        for found in concepts_dict.concepts["SCT"].values()
        if value in found
    }


def test_each_code_means_the_same_in_dicom():
    codes: set[Code] = set()
    for code in (*CODES.values(), UNKNOWN):
        codes |= {one for one in (code.kind, code.side, code.region, code.category) if one}
    assert len({code.value for code in codes}) == len(codes)
    for code in codes:
        assert code.meaning.lower() in meanings(code.value), code


def test_the_codes_of_the_bundles_classes():
    given = {
        "liver": "10200004",
        "spleen": "78961009",
        "lesion": "4147007",
        "right kidney": "64033007",
        "left kidney": "64033007",
        "gallbladder": "28231008",
        "stomach": "69695003",
        "pancreas": "15776009",
        "artery": "15825003",
        "portal vein": "32764006",
    }
    assert {name: code_of(name).kind.value for name in given} == given
    assert code_of("right kidney").side == ("24028007", "Right")
    assert code_of("Kidney_Left").side == ("7771000", "Left")
    assert code_of("tumour 2").region == code_of("liver").kind
    assert code_of("hepatic vessels") == UNKNOWN


def test_each_name_is_ours():
    assert [our_name(name) for name in CODES] == list(CODES)


def test_colours_are_those_of_3d_slicer():
    shared = CODES.keys() & GENERIC_ANATOMY_COLORS.keys()
    assert {"liver", "spleen", "artery", "left kidney", "stomach", "pancreas"} <= shared
    assert {name: CODES[name].rgb for name in shared} == {
        name: tuple(GENERIC_ANATOMY_COLORS[name]) for name in shared
    }
    assert code_of("lesion").rgb == tuple(GENERIC_ANATOMY_COLORS["mass"])
    assert code_of("portal vein").rgb == tuple(GENERIC_ANATOMY_COLORS["vein"])
