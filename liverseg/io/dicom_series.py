"""Find the volumes in the slices of a DICOM series, or what keeps the slices from being one.

Slices are ordered by where they lie along their normal; nothing else that a file says of its order
counts. A series whose slices are not evenly spaced is refused, for what lies between them is not
known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from liverseg.io.dicom_slices import ACQUISITION, Slice

# A slice may lie this far from where even spacing has it: positions are written rounded.
EVEN_MM, EVEN_SHARE = 0.1, 0.1
SAME_PLACE_MM = 0.01
SAME_DIRECTION = 1e-3
# Interpolation costs more than this.
SHIFT_VOXELS = 0.25
# Slices this many times as far apart as their header says are not all there.
THINNED = 1.5
# Fewer slices than these are evenly spaced by themselves.
FEW = 3
NAMED = 3
# Slices of MRI are often taken in turns, every other one first: when they were tells no volumes
# apart then.
TIMES, NUMBERS = ("AcquisitionTime", "TriggerTime"), ("AcquisitionNumber", "FrameAcquisitionNumber")


@dataclass(frozen=True, eq=False)
class Series:
    """The slices of one volume.

    Attributes:
        path: what names it, see `find_series`.
        slices: from the first to the last along the normal (row × column): from foot to head where
            they are axial.
        copies: the same slices again, each beside that of which it is a copy.
        problem: why it cannot be read as a volume, "" where it can.
        warnings: what the person who gave the files should know, one message each.
    """

    path: str
    slices: tuple[Slice, ...]
    copies: tuple[tuple[Slice, Slice], ...] = ()
    problem: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def files(self) -> set[Path]:
        """All its files."""
        return {
            each.file for each in (*self.slices, *(copy for pair in self.copies for copy in pair))
        }

    def __str__(self) -> str:
        first = self.slices[0]
        return f"{first.description!r}, {len(self.slices)} slices: {first.file.name}"


def volumes_of(slices: Sequence[Slice]) -> list[Series]:
    """Return the volumes in the slices of one series."""
    bad = next((each for each in slices if each.problem), None)
    if bad is not None:
        problem = (
            f"{name_of(bad)} cannot be placed ({bad.problem}), expected position, orientation and "
            "spacing of each slice: export the series again."
        )
        return [Series("", tuple(slices), problem=problem)]
    alike: list[list[Slice]] = []
    for each in slices:
        group = next((group for group in alike if _same_plane(group[0], each)), None)
        if group is None:
            alike.append([each])
        else:
            group.append(each)
    return [_beside_turned(volume, alike) for group in alike for volume in _phases(group)]


def _beside_turned(volume: Series, groups: Sequence[Sequence[Slice]]) -> Series:
    """Return a volume, with a warning where slices turned by 180° lie between its own."""
    first = volume.slices[0]
    for group in groups:
        turned = replace(group[0], orientation=-group[0].orientation)
        if _same_plane(first, turned) and interlaced([volume.slices, _in_order(group)]):
            odd = (
                f"{len(group)} slices of its series ({name_of(group[0])} and others) lie between "
                "its own, turned by 180°, and were not read: export the series again."
            )
            return replace(volume, warnings=(*volume.warnings, odd))
    return volume


def _same_plane(first: Slice, other: Slice) -> bool:
    return (
        first.size == other.size
        and np.allclose(first.orientation, other.orientation, rtol=0, atol=SAME_DIRECTION)
        and np.allclose(first.spacing, other.spacing, rtol=SAME_DIRECTION, atol=0)
    )


def _phases(slices: Sequence[Slice]) -> list[Series]:
    """Return the volumes in slices that differ in where they lie and how they were taken alone."""
    unique, copies = _without_copies(_in_order(slices))
    places = _same_place(unique)
    if len(places) == 1 < len(unique):
        # One place again and again, as when a scanner waits for the contrast agent.
        return [Series("", (each,)) for each in unique]
    # What has more values than volumes can be at one place counts slices.
    most = max(map(len, places))
    telling = [keyword for keyword in ACQUISITION if len(_parts(unique, [keyword])) <= most]
    in_turns = {*TIMES, *NUMBERS} if unique[0].modality == "MR" else set()
    for keywords in [*([keyword] for keyword in ACQUISITION), telling]:
        parts = _parts(unique, keywords)
        if len(parts) > 1 and (
            _all_at_the_same_places(parts) or (in_turns.isdisjoint(keywords) and interlaced(parts))
        ):
            return [_check(part, [pair for pair in copies if pair[0] in part]) for part in parts]
    return [_check(unique, copies)]


def _parts(slices: Sequence[Slice], keywords: Sequence[str]) -> list[list[Slice]]:
    """Return the slices in groups for which these of `ACQUISITION` are the same."""
    places = [list(ACQUISITION).index(keyword) for keyword in keywords]
    parts: dict[tuple[str, ...], list[Slice]] = defaultdict(list)
    for each in slices:
        parts[tuple(each.acquisition[place] for place in places)].append(each)
    return list(parts.values())


def interlaced(parts: Sequence[Sequence[Slice]]) -> bool:
    """Return whether slices, in order, are volumes that lie between each other's slices."""
    if any(len(part) < FEW or _uneven(part) for part in parts):
        return False
    ranges = sorted(
        (part[0].position @ normal_of(part[0]), part[-1].position @ normal_of(part[0]))
        for part in parts
    )
    return any(after[0] < before[1] for before, after in pairwise(ranges))


def _without_copies(slices: Sequence[Slice]) -> tuple[list[Slice], list[tuple[Slice, Slice]]]:
    first: dict[tuple[str, int], Slice] = {}
    unique, copies = [], []
    for each in slices:
        original = first.setdefault((each.uid, each.frame), each)
        again = (
            original is not each
            and each.uid
            and np.allclose(original.position, each.position, 0, SAME_PLACE_MM)
        )
        if again and original.acquisition == each.acquisition:
            copies.append((original, each))
        else:
            unique.append(each)
    return unique, copies


def _check(slices: Sequence[Slice], copies: Sequence[tuple[Slice, Slice]]) -> Series:
    """Return a volume with its problem and its warnings."""
    warnings = []
    if copies:
        names = some_of([copy.file.name for _, copy in copies])
        warnings.append(f"{len(copies)} slices are there twice and were taken once ({names}).")
    if any(each.inverted for each in slices):
        warnings.append(
            "it is stored with dark and bright exchanged (MONOCHROME1) and was turned round."
        )
    problem = _uneven(slices)
    if not problem and len(slices) > 1:
        warnings += filter(None, [_tilted(slices), _thinned(slices), _in_turns(slices)])
    return Series("", tuple(slices), tuple(copies), problem, tuple(warnings))


def _uneven(slices: Sequence[Slice]) -> str:
    """Return why ordered slices are no volume: two at one place, a gap, a step aside; or ""."""
    if len(slices) < 2:
        return ""
    places = _same_place(slices)
    if len(places) < len(slices):
        first, second, *_ = next(group for group in places if len(group) > 1)
        volumes = {len(group) for group in places} == {len(places[0])}
        cure = "export each volume as its own series" if volumes else "remove the one that is wrong"
        both = f"{name_of(first)} and {name_of(second)}"
        return f"{both} lie at the same position, {_at(first)}, expected one there: {cure}."
    positions = np.array([each.position for each in slices])
    heights = positions @ normal_of(slices[0])
    step = (positions[-1] - positions[0]) / (len(slices) - 1)
    mean_mm = (heights[-1] - heights[0]) / (len(slices) - 1)
    off_mm = np.linalg.norm(
        positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1
    )
    if off_mm.max() <= min(max(EVEN_MM, EVEN_SHARE * mean_mm), mean_mm / 2):
        return ""
    steps = np.diff(heights)
    median_mm = float(np.median(steps))
    worst = int(np.abs(steps - median_mm).argmax())
    if abs(steps[worst] - median_mm) > EVEN_MM:
        return (
            f"{steps[worst]:.2f} mm between {name_of(slices[worst])} at {_at(slices[worst])} and "
            f"{name_of(slices[worst + 1])} at {_at(slices[worst + 1])}, {median_mm:.2f} mm between "
            "most slices, expected the same everywhere: a slice is missing or does not belong to "
            "them; export the series again."
        )
    worst = int(off_mm.argmax())
    return (
        f"{name_of(slices[worst])} at {_at(slices[worst])} lies {off_mm[worst]:.2f} mm from where "
        "the others have it, expected all slices in one straight row: export the series again."
    )


def _tilted(slices: Sequence[Slice]) -> str:
    if not shifts_of(slices).any():
        return ""
    # Of a drift that is no tilt, an angle would read 0.0°.
    aside_mm = float(
        np.linalg.norm((slices[-1].position - slices[0].position) @ slices[0].orientation.T)
    )
    return (
        f"the last slice lies {aside_mm:.1f} mm beside the first, as with a tilted gantry; the "
        "slices were shifted within their planes onto a grid with perpendicular axes."
    )


def _thinned(slices: Sequence[Slice]) -> str:
    """Return what shows that slices are missing between all of them, without a gap; or ""."""
    first = slices[0]
    step_mm = float((slices[-1].position - first.position) @ normal_of(first)) / (len(slices) - 1)
    tag, given_mm, besides = "SpacingBetweenSlices", abs(first.between_mm), ""
    if (
        np.isclose(step_mm, given_mm + first.thickness_mm, rtol=0.01)
        and given_mm < 0.99 * first.thickness_mm
    ):
        # Some write the gap between two slices there.
        return ""
    if not given_mm > 0:
        # Without numbers left out, slices thinner than their spacing are how the scan was planned.
        if not np.ptp([each.number for each in slices]) + 1 >= THINNED * len(slices):
            return ""
        tag, given_mm, besides = (
            "SliceThickness",
            first.thickness_mm,
            " and InstanceNumbers are left out",
        )
    if not 0 < THINNED * given_mm <= step_mm:
        return ""
    return (
        f"its slices lie {step_mm:.2f} mm apart, but {tag} is {given_mm:.2f} mm{besides}: where "
        "slices are missing between them, export the series again."
    )


def _in_turns(slices: Sequence[Slice]) -> str:
    for keyword in NUMBERS:
        parts = _parts(slices, [keyword])
        if len(parts) > 1 and interlaced(parts):
            return (
                f"its slices take turns between {len(parts)} values of {keyword}, as "
                "where every other one was taken first: where they are several scans, "
                "export each as its own series."
            )
    return ""


def shifts_of(slices: Sequence[Slice]) -> np.ndarray:
    """Return how far each slice lies beside the first: (n, 2) voxels along columns and rows.

    Within rounding it is 0.
    """
    aside_mm = (
        np.array([each.position - slices[0].position for each in slices]) @ slices[0].orientation.T
    )
    shifts = aside_mm / slices[0].spacing[::-1]
    return shifts * (np.abs(shifts).max() > SHIFT_VOXELS)


def normal_of(first: Slice) -> np.ndarray:
    """Return the direction from slice to slice: from foot to head where they are axial."""
    return np.cross(*first.orientation)


def _in_order(slices: Sequence[Slice]) -> list[Slice]:
    normal = normal_of(slices[0])
    return sorted(slices, key=lambda each: float(each.position @ normal))


def _same_place(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Return slices, in their order, in groups that lie at one place."""
    normal = normal_of(slices[0])
    groups = [[slices[0]]]
    for before, each in pairwise(slices):
        if (each.position - before.position) @ normal < SAME_PLACE_MM:
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


def repeats(slices: Sequence[Slice]) -> bool:
    """Return whether several of the slices, in their order, lie at one place."""
    return not slices[0].problem and len(_same_place(slices)) < len(slices)


def _all_at_the_same_places(parts: Sequence[Sequence[Slice]]) -> bool:
    first = np.array([each.position for each in parts[0]])
    return not any(map(repeats, parts)) and all(
        len(part) == len(first)
        and np.abs(np.array([each.position for each in part]) - first).max() < SAME_PLACE_MM
        for part in parts
    )


def name_of(each: Slice) -> str:
    """Return the name of a slice for messages."""
    return f"{each.file.name}, frame {each.frame + 1}," if each.frame else each.file.name


def _at(each: Slice) -> str:
    return f"({', '.join(f'{mm:.2f}' for mm in each.position)}) mm"


def some_of(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    return ", ".join(names[:NAMED]) + (
        f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    )
