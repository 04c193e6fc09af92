"""Draw the course of a training."""

from __future__ import annotations

import io
import os

import pandas as pd
from matplotlib.figure import Figure

from liverseg.errors import InputError

COLUMNS = ("epoch", "loss", "val_mean_dice")


def curves_png(history: os.PathLike[str] | str) -> bytes:
    """Return a PNG of the loss above the validation Dice, both over the epochs.

    Args:
        history: the `history.csv` of `liverseg.handlers.RunSummary`.

    Raises:
        InputError: where it is missing, not such a table, or has no epoch.
    """
    try:
        table = pd.read_csv(history, usecols=list(COLUMNS), dtype=float)
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
        raise InputError(
            f"{history}: not readable as the history of a training ({reason}), expected a CSV file "
            f"with the columns {', '.join(COLUMNS)}: train first or name the right file."
        ) from error
    if table.empty:
        raise InputError(f"{history}: holds no epoch, expected one line for each: train first.")
    figure = Figure((8, 5), dpi=150, layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    above.plot(table["epoch"], table["loss"], color="#444", marker="." if len(table) < 10 else None)
    above.set_ylabel("Training loss")
    above.set_ylim(bottom=min(0, table["loss"].min()))
    validated = table.dropna(subset="val_mean_dice")
    below.plot(
        validated["epoch"], validated["val_mean_dice"], color="#b85c00", marker="o", markersize=4
    )
    below.set(xlabel="Epoch", ylabel="Validation Dice", ylim=(0, 1.02))
    if len(validated):
        best = validated.loc[validated["val_mean_dice"].idxmax()]
        below.axhline(best["val_mean_dice"], color="#b85c00", linestyle=":", linewidth=1)
        label = f"best {best['val_mean_dice']:.3f} in epoch {best['epoch']:.0f}"
        below.text(0.99, 0.06, label, ha="right", transform=below.transAxes)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
