"""Compare the names of segments: which mean the same, and which are known at all."""

from __future__ import annotations

import re

from liverseg.errors import InputError

# What else a segment is called in public data sets, by TotalSegmentator and in 3D Slicer; the first
# is our own name.
SYNONYMS = (
    ("background",),
    ("liver", "hepar", "whole liver", "liver parenchyma"),
    (
        *("lesion", "lesions", "liver lesion", "liver lesions", "hepatic lesion"),
        *("tumor", "tumors", "liver tumor", "liver tumors", "hepatic tumor", "livertumor"),
        *("tumour", "tumours", "liver tumour", "liver tumours", "hepatic tumour"),
        *("metastasis", "metastases", "liver metastasis", "liver metastases"),
        *("cancer", "liver cancer", "hcc", "mass", "neoplasm"),
    ),
    ("spleen", "lien"),
    ("stomach", "gaster"),
    ("gallbladder", "gall bladder"),
    ("pancreas",),
    ("artery", "aorta", "abdominal aorta"),
    (
        "portal vein",
        "portal and splenic vein",
        "portal vein and splenic vein",
        "portal splenic vein",
    ),
    ("inferior vena cava", "postcava", "ivc"),
    ("hepatic vessels", "hepatic vessel", "liver vessels", "liver vessel"),
    ("hepatic vein", "hepatic veins"),
    ("esophagus", "oesophagus"),
    ("duodenum",),
    ("small bowel", "small intestine"),
    ("colon", "large bowel", "large intestine"),
    ("urinary bladder", "bladder"),
    ("heart",),
    ("spinal cord",),
)
PAIRED = (("kidney",), ("adrenal gland", "adrenal"), ("lung",))
SIDES = {"left": "left", "right": "right", "l": "left", "r": "right"}

_OURS = {name: names[0] for names in SYNONYMS for name in names}
_OURS |= {
    f"{side} {name}": f"{side} {names[0]}"
    for names in PAIRED
    for name in names
    for side in ("left", "right")
}


def our_name(name: str) -> str:
    """Return our name of a segment: `Kidney_Left` is "left kidney", `tumour 2` is "lesion".

    Of a name that is not known, the words in lower case.
    """
    words = re.sub(r"[\W_]+", " ", name.lower()).split()
    sides = [SIDES[word] for word in words if word in SIDES]
    known = " ".join([*sides, *(word for word in words if word not in SIDES)])
    # Several of a kind are numbered.
    return _OURS.get(known) or _OURS.get(known.rstrip("0123456789 ")) or " ".join(words)


def is_known(name: str) -> bool:
    """Return whether a name says what a segment is."""
    return our_name(name) in _OURS.values()


def read_names(text: str) -> dict[int, str]:
    """Return the name of each value in `1=liver,2=lesion`.

    Raises:
        InputError: for other text, and 0 as a name of anything but the background.
    """
    pairs = [re.fullmatch(r"\s*(\d+)\s*=\s*(.*\S)\s*", part) for part in text.split(",")]
    given = {int(pair[1]): pair[2] for pair in pairs if pair}
    if len(given) < len(pairs):
        raise InputError(
            f"names: found {text!r}, expected each value with its name once, as 1=liver,2=lesion."
        )
    if our_name(given.get(0, "background")) != "background":
        raise InputError(
            f"names: found 0={given[0]}, expected 0 to be the background: leave it out or "
            "correct it."
        )
    return given
