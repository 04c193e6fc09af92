"""Draw a study: bars, training curves, and the best and worst cases with their masks."""

from __future__ import annotations

import io
import math
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from liverseg.data import load_datalist
from liverseg.io.masks import find_mask
from liverseg.outputs.overlays import make_scan, plane_png
from liverseg.transforms import LoadVolumed, MapLabelsd
from liverseg.workbench.study.folder import StudyFolder
from liverseg.workbench.study.tables import StudyTable, Value

COLOURS = ("#2f6db3", "#e08a1e", "#3a9a5b", "#b0413e", "#7a5aa6", "#5b6770")
PAPER_COLOUR = "#1c2126"
# Metrics that bars show, by the name of their axis: the first that a table has.
BARS = {"IoU": ("iou", "mean_iou", "case_iou"), "Dice": ("dice",)}


def bars_png(table: StudyTable) -> bytes | None:
    """Return a PNG of a table's IoUs, else Dice, with sd and the paper's; None without any."""
    shown: dict[tuple[str, str], Value] = {}
    for name, kinds in BARS.items():
        found = {
            labels: value
            for labels, value in table.values.items()
            if value.metric.partition(":")[0] in kinds
        }
        if found and not shown:
            axis, shown = name, found
    rows = [row for row in table.rows if any(labels[0] == row for labels in shown)]
    columns = [column for column in table.columns if any(labels[1] == column for labels in shown)]
    if not shown:
        return None
    figure = Figure(
        (max(6.0, 1.2 + len(rows) * (0.35 + 0.32 * len(columns))), 3.6),
        dpi=130,
        layout="constrained",
    )
    axes = figure.subplots()
    width = 0.8 / len(columns)
    for index, column in enumerate(columns):
        values = [shown.get((row, column)) for row in rows]
        places = np.arange(len(rows)) + (index - (len(columns) - 1) / 2) * width
        heights = [value.mean if value else math.nan for value in values]
        errors = [(value.sd or 0) if value else 0 for value in values]
        axes.bar(
            places, heights, 0.92 * width, yerr=errors,
            label=column, color=COLOURS[index % len(COLOURS)],
            error_kw={"ecolor": "#444", "elinewidth": 1, "capsize": 2},
        )  # fmt: skip
        papers = [
            value.paper if value and value.paper is not None else math.nan for value in values
        ]
        axes.hlines(
            papers, places - width / 2, places + width / 2, color=PAPER_COLOUR, linewidth=1.8,
            label="paper" if index == len(columns) - 1 and np.isfinite(papers).any() else "",
        )  # fmt: skip
    letters = max(8, 60 // len(rows))
    axes.set_xticks(
        range(len(rows)), [textwrap.fill(row, letters, break_long_words=False) for row in rows]
    )
    axes.set(ylabel=axis, ylim=(0, 1.02))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    return to_png(figure)


def curves_png(
    folder: StudyFolder, runs: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, bytes]]:
    """Yield title and PNG of the training loss over the epochs, for each data set and task."""
    groups: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for name, run in runs.items():
        training = folder.run(name) / "training"
        for history in sorted(training.rglob("history.csv")):
            stage = " ".join(history.relative_to(training).parts[:-1])
            label = ", ".join(filter(None, (run["network"], run["loss"], stage)))
            groups[f"{run['data']} {run['task']}"][label].append(history)
    for title, panels in groups.items():
        columns = min(4, len(panels))
        lines = math.ceil(len(panels) / columns)
        figure = Figure((2.9 * columns + 0.3, 2.1 * lines + 0.4), dpi=130, layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
        for axes, (label, histories) in zip(grid, panels.items(), strict=False):
            _draw_curves(axes, label, histories)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        figure.supxlabel("Epoch", fontsize=9)
        figure.supylabel("Training loss", fontsize=9)
        figure.suptitle(f"Data: {title.replace(' ', ', task: ', 1)}", fontsize=10)
        yield title, to_png(figure)


def rounds_png(table: StudyTable) -> bytes | None:
    """Return a PNG of each metric over the rounds, a line for each column, the paper's dashed.

    Figure 16 of IJIES 2022. None for a table whose rows are not "N = 0", "N = 1", ….
    """
    rounds = [row.removeprefix("N = ") for row in table.rows]
    metrics = list(dict.fromkeys(value.metric for value in table.values.values()))
    if not metrics or not all(number.isdigit() for number in rounds):
        return None
    figure = Figure((3.4 * len(metrics), 3.2), dpi=130, layout="constrained")
    for axes, metric in zip(
        figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True
    ):
        lines = {
            column: [table.values.get((row, column)) for row in table.rows]
            for column in table.columns
        }
        lines = {
            column: values
            for column, values in lines.items()
            if any(value and value.metric == metric for value in values)
        }
        for colour, (column, values) in zip(COLOURS, lines.items(), strict=False):
            ours = [value.mean if value else math.nan for value in values]
            papers = [value.paper if value and value.paper else math.nan for value in values]
            numbers = list(map(int, rounds))
            axes.plot(numbers, ours, color=colour, marker="o", ms=3.5, lw=1.4, label=column)
            if np.isfinite(papers).any():
                label = f"{column} (paper)"
                axes.plot(numbers, papers, color=colour, lw=1, ls="--", alpha=0.7, label=label)
        axes.set(xlabel="Round N")
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7)
    return to_png(figure)


def _draw_curves(axes: Axes, label: str, histories: list[Path]) -> None:
    for index, history in enumerate(histories):
        table = pd.read_csv(history)
        axes.plot(
            table["epoch"],
            table["loss"],
            color=COLOURS[index % len(COLOURS)],
            lw=1.1,
            marker="." if len(table) < 3 else None,
        )
    axes.set_title(label, fontsize=9)
    axes.grid(alpha=0.3)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)


def roc_png(
    folder: StudyFolder, runs: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, bytes]]:
    """Yield title and PNG of the ROC of each class, for each data set and task that has any.

    Figure 3 of Furtado 2021: a line for each fold and seed, a colour for each network, loss and
    evaluation, where evaluations differ in more than the postprocessing, which has no part in it.
    """
    groups: dict[str, dict[str, list[pd.DataFrame]]] = defaultdict(lambda: defaultdict(list))
    for name, run in runs.items():
        different: dict[bytes, Path] = {}
        for file in sorted(folder.run(name).glob("evaluation/*/roc.csv")):
            different.setdefault(file.read_bytes(), file)
        for file in different.values():
            label = f"{run['network']}, {run['loss']}"
            label += f", {file.parent.name}" if len(different) > 1 else ""
            groups[f"{run['data']} {run['task']}"][label].append(pd.read_csv(file))
    for title, lines in groups.items():
        classes = next(iter(lines.values()))[0]["class"].unique()[1:]
        figure = Figure((3.4 * len(classes) + 2.2, 3.4), dpi=130, layout="constrained")
        grid = figure.subplots(1, len(classes), squeeze=False, sharey=True)[0]
        for axes, of in zip(grid, classes, strict=True):
            for index, (label, tables) in enumerate(lines.items()):
                style = {"color": COLOURS[index % len(COLOURS)], "lw": 1.2}
                for number, table in enumerate(tables):
                    rates = table[table["class"] == of]
                    axes.plot(
                        rates["false_positive_rate"], rates["true_positive_rate"], **style,
                        label="" if number else label,
                    )  # fmt: skip
            axes.set(xlabel="False positive rate", title=of.replace("_", " "))
            axes.set(xlim=(0, 1), ylim=(0, 1.01))
            axes.grid(alpha=0.3)
        grid[0].set_ylabel("True positive rate")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
        yield title, to_png(figure)


def overlays(
    folder: StudyFolder, runs: Mapping[str, Mapping[str, Any]], results: pd.DataFrame
) -> Iterator[tuple[str, str, bytes]]:
    """Yield the best and the worst case of each data set and task: name, caption, PNG.

    Of the network and loss with the best mean IoU of the cases, without postprocessing.
    """
    rows = results[
        results["evaluation"].isin(["none", "none_test"])
        & (results["case"] != "")
        & (results["metric"] == "iou")
    ]
    key = ["data", "task", "network", "loss", "run", "evaluation", "case"]
    cases = rows.groupby(key, sort=False)["value"].mean().dropna().reset_index()
    for (data, task), group in cases.groupby(["data", "task"], sort=False):
        network, loss = group.groupby(["network", "loss"], sort=False)["value"].mean().idxmax()
        best = group[(group["network"] == network) & (group["loss"] == loss)]
        for word, index in (("best", best["value"].idxmax()), ("worst", best["value"].idxmin())):
            run, name, case, iou = best.loc[index, ["run", "evaluation", "case", "value"]]
            png = _overlay(folder.run(run) / "evaluation" / name, case, runs[run])
            if png:
                caption = (
                    f"{data}, {task}, {network}, {loss}: {word} case {Path(case).name}, "
                    f"IoU {iou:.3f}"
                )
                yield f"{data} {task} {word}", caption, png


def _overlay(evaluation: Path, case: str, run: Mapping[str, Any]) -> bytes | None:
    """Return a PNG of a case with its mask and reference, or None where its files are gone."""
    section = "test" if evaluation.name.endswith("_test") else "validation"
    mask, label = find_mask(evaluation / "masks", case), label_of(case, run, section)
    if mask is None or label is None:
        return None
    load = LoadVolumed("volume")
    image, predicted, reference = (
        load({"volume": str(path)})["volume"] for path in (case, mask, label)
    )
    reference = MapLabelsd("volume", run["settings"]["classes"])({"volume": reference})["volume"]
    return plane_png(make_scan(image, predicted, reference), "axial")


def label_of(case: str, run: Mapping[str, Any], section: str = "validation") -> str | None:
    """Return the path of a case's label, or None where the data has been moved."""
    dataset = run["dataset"]
    datalist = dataset.get("datalist", f"{dataset['dataset_dir']}/dataset.json")
    if not Path(datalist).is_file():
        return None
    items = load_datalist(datalist, section, run["fold"])
    return next((item["label"] for item in items if item["image"] == case), None)


def to_png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
