"""Why fine-tuning on a few labels makes a good model worse: Dice after each number of steps.

python benchmarks/fine_tuning.py --work build/retraining

`deeplabv3_liver`, trained on synthetic CT of 3 mm as `make demo` does, goes on with other synthetic
scans: with two of CT, for which it is good, and with four of MR, for which it is bad. Data,
network, loss and inferer are the bundle's; each variant has a learning rate, which falls to 0
(polynomially, power 0.9), a number of steps over which it rises before, and batch norms that keep
their running statistics or not. Dice is that of the liver in test scans.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Bars of hundreds of small scans would hide the table.
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from rich.console import Console

from liverseg.handlers import WeightsCheckpointLoader
from liverseg.metrics import confusion_matrix, pooled_metrics
from liverseg.workbench.demo import SETTINGS, train_on_phantoms
from liverseg.workbench.phantoms import write_phantoms
from liverseg.workbench.phantoms.files import LITS_LABELS

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "deeplabv3_liver"


class Variant(NamedTuple):
    """How to train further; Dice is measured after each of `shown` steps, the last of them."""

    modality: str
    learning_rate: float
    warmup: int
    freeze_norms: bool
    shown: Sequence[int]


VARIANTS = (
    *(Variant("ct", 1e-3, 0, frozen, (1, 2, 3, 4, 5)) for frozen in (False, True)),
    *(Variant("ct", 1e-4, 0, frozen, (1, 2, 3, 4, 5)) for frozen in (False, True)),
    *(
        Variant("ct", rate, 0, frozen, (10, 20, 50))
        for rate in (1e-3, 1e-4)
        for frozen in (False, True)
    ),
    *(Variant("ct", rate, 20, True, (10, 20, 50)) for rate in (1e-3, 1e-4)),
    Variant("ct", 1e-3, 20, False, (10, 20, 50)),
    Variant("ct", 0, 0, False, (5, 10)),
    *(
        Variant("mr", rate, 10, frozen, (25, 50, 100))
        for rate in (1e-4, 3e-4)
        for frozen in (True, False)
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for scans and weights, as of retraining.py"
    )
    work = parser.parse_args().work.resolve()
    train_on_phantoms(Console(), work / "start", BUNDLE, first=1, steps=2)
    weights = work / "start" / BUNDLE.name / "models" / "model.pt"
    scans = {
        "ct": (
            write_scans(work / "ct", 8, 500, "ct")[:2],
            write_scans(work / "ct_held_out", 6, 900, "ct")[:4],
        ),
        "mr": (
            write_scans(work / "mr", 8, 700, "mr")[:4],
            write_scans(work / "mr_held_out", 3, 950, "mr"),
        ),
    }
    print(
        "| scans | learning rate | warm-up | batch norms | Dice after so many steps |\n"
        "|---|---|---|---|---|"
    )
    for variant in VARIANTS:
        dice = fine_tune(variant, weights, *scans[variant.modality])
        curve = ", ".join(f"{steps}: {value:.3f}" for steps, value in dice.items())
        norms = "kept" if variant.freeze_norms else "of the batch"
        print(
            f"| {variant.modality} | {variant.learning_rate} | {variant.warmup} | {norms} "
            f"| {curve} |",
            flush=True,
        )


def write_scans(folder: Path, cases: int, seed: int, modality: str) -> list[dict[str, str]]:
    """Synthetic scans and their labels, written anew, as items with paths."""
    items = write_phantoms(
        folder,
        cases,
        seed=seed,
        shape=(128, 128, 48),
        spacing=(3.0, 3.0, 5.0),
        modality=modality,
        labels=LITS_LABELS,
    )
    return [{key: str(folder / item[key]) for key in ("image", "label")} for item in items]


def fine_tune(
    variant: Variant,
    weights: Path,
    scans: Sequence[Mapping[str, str]],
    held_out: Sequence[Mapping[str, str]],
) -> dict[int, float]:
    """The mean Dice of the liver in `held_out` by the number of steps, from 0 on."""
    set_determinism(0)
    parser = read_config(variant.modality, scans)
    network = parser.get_parsed_content("network")
    WeightsCheckpointLoader(network, weights, freeze_norms=variant.freeze_norms)(None)  # type: ignore[arg-type]
    loss_function, loader = (parser.get_parsed_content(key) for key in ("loss", "train#dataloader"))
    optimizer = torch.optim.AdamW(network.parameters(), variant.learning_rate)
    end = variant.shown[-1]

    def factor(step: int) -> float:
        return min(1, (step + 1) / max(1, variant.warmup)) * (1 - step / end) ** 0.9

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    dice = {0: evaluate(parser, network, held_out)}
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for step, batch in enumerate(itertools.islice(batches, end), 1):
        network.train()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch["image"])
        loss = loss_function(logits.float(), batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step in variant.shown:
            dice[step] = evaluate(parser, network, held_out)
    return dice


def read_config(modality: str, scans: Sequence[Mapping[str, str]]) -> ConfigParser:
    """The bundle's training config for these scans, with the settings of the demo."""
    parser = ConfigParser(json.loads((BUNDLE / "configs" / "train.json").read_text()))
    settings: dict[str, Any] = {"bundle_root": str(BUNDLE), "device": "cpu", "modality": modality}
    settings |= {key: SETTINGS[key] for key in ("spacing", "spatial_size")}
    parser.update({**settings, "train#dataset#data": list(scans)})
    return parser


def evaluate(
    parser: ConfigParser, network: torch.nn.Module, items: Sequence[Mapping[str, str]]
) -> float:
    """Mean Dice of the liver, with the bundle's inferer."""
    load, inferer = (
        parser.get_parsed_content(f"validate#{key}") for key in ("preprocessing", "inferer")
    )
    network.eval()
    dice = []
    for item in items:
        case = load(dict(item))
        mask = inferer(case["image"][None], network)[0, 0]
        confusion = confusion_matrix(mask.numpy(), case["label"][0].numpy(), 2)
        dice.append(pooled_metrics(confusion, ["background", "liver"])["classes"]["liver"]["dice"])
    return float(np.mean(dice))


if __name__ == "__main__":
    main()
