"""Count how long a study trains, and the paper beside it: iterations, samples, learning rates."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from monai.bundle import ConfigParser

from liverseg.data import load_datalist
from liverseg.workbench.study.plan import Plan, Run
from liverseg.workbench.study.schema import Protocol

# Key of a length, its name on the page, and its format.
LENGTHS = (
    ("iterations", "iterations", ",d"),
    ("samples", "slices or crops seen", ",d"),
    ("learning_rate_sum", "sum of learning rates", ".3g"),
)
# Our epochs and the papers' are whole, so that their iterations differ by up to a hundredth.
NEARLY_ALL = 0.98


@dataclass(frozen=True)
class Length:
    """How long one network is trained.

    Attributes:
        iterations: optimiser steps.
        samples: slices, or crops of a 3-D network, that these steps see.
        learning_rate_sum: the sum of the learning rate over all steps, which is how far a network
            can go: two trainings of as many steps differ in it by their schedules.
    """

    iterations: int
    samples: int
    learning_rate_sum: float


def papers_length(protocol: Protocol, stage: str) -> Length:
    """Return the length of a paper's training of one network.

    Its epochs times its samples, divided by its batch; the learning rate falls after whole epochs.

    Args:
        protocol: the paper's.
        stage: of a training by stages.
    """
    steps = protocol.iterations_per_epoch(stage)
    rates = [
        protocol.learning_rate * protocol.drop_factor ** (epoch // protocol.drop_epochs)
        for epoch in range(protocol.epochs)
    ]
    samples = protocol.epochs * protocol.samples_of(stage)
    return Length(round(protocol.epochs * steps), samples, steps * sum(rates))


def planned_lengths(run: Run) -> dict[str, Length]:
    """Return the length of a run by stage, which is empty text for a single network.

    Of the bundle's config with the run's settings, whose schedule is gone through without training.
    """
    lengths = {}
    for stage in _stages(run):
        config = _config(run, stage)
        loader = config.get_parsed_content("train#dataloader")
        steps, epochs = len(loader), config.get_parsed_content("train#trainer#max_epochs")
        # The last step of an epoch may have fewer scans; batches of a sampler of its own have not.
        drawn = len(loader.sampler) if loader.batch_size and not loader.drop_last else None
        samples = drawn or steps * config.get_parsed_content("batch_size")
        if "slices_per_volume" in config:
            samples *= config.get_parsed_content("slices_per_volume")
        by_epoch = config.get_parsed_content("train#lr_epoch_level")
        rate = sum(_rates(config, epochs, 1) if by_epoch else _rates(config, epochs, steps))
        length = Length(steps * epochs, samples * epochs, rate * (steps if by_epoch else 1))
        lengths["_".join(map(str, stage.values()))] = length
    return lengths


def compare_lengths(plan: Plan) -> list[dict[str, Any]]:
    """Return for each data set and network of a plan how long it trains, and how long the paper.

    Returns:
        `data`, `network`, `stage`, and `ours` and `paper`, the attributes of `Length`; nothing for
        data without a protocol.
    """
    rows = []
    seen = set()
    for run in plan.runs.values():
        if run.protocol is None or (run.data, run.network, run.task) in seen:
            continue
        seen.add((run.data, run.network, run.task))
        for stage, ours in planned_lengths(run).items():
            row: dict[str, Any] = {"data": run.data, "network": run.network, "stage": stage}
            row |= {"ours": asdict(ours), "paper": asdict(papers_length(run.protocol, stage))}
            if row not in rows:
                rows.append(row)
    return rows


def length_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each row of `compare_lengths`: ours, the paper's, and the share."""
    return [
        f"{row['data']}, {row['network']}{', ' * bool(row['stage'])}{row['stage']}: "
        + "; ".join(
            f"{name} {row['ours'][key]:{form}}, the paper {row['paper'][key]:{form}} "
            f"({row['ours'][key] / row['paper'][key]:.3g} of it)"
            for key, name, form in LENGTHS
        )
        for row in rows
    ]


def shorter_line(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what share of the papers' iterations is trained, where it is not (nearly) all.

    Args:
        rows: what `compare_lengths` returns.
    """
    shares = [row["ours"]["iterations"] / row["paper"]["iterations"] for row in rows]
    if min(shares, default=1) >= NEARLY_ALL:
        return None
    low, high = (f"{share:.2g}" for share in (min(shares), max(shares)))
    share = low if low == high else f"{low} to {high}"
    each = "" if low == high else ", depending on data set and network"
    return (
        f"This study trains {share} of the paper's iterations{each}: where a number differs from "
        "the paper's, that may be why."
    )


def _stages(run: Run) -> list[Mapping[str, Any]]:
    if "all_stages" not in run.bundle.train:
        return [{}]
    known = run.bundle.train["all_stages"]
    return [
        stage
        for stage in known
        if all(run.settings.get(key, value) == value for key, value in stage.items())
    ]


def _config(run: Run, stage: Mapping[str, Any]) -> ConfigParser:
    config = ConfigParser(copy.deepcopy(run.bundle.train))
    settings = {"bundle_root": str(run.bundle.folder), **run.dataset, **run.settings, **stage}
    for name, value in settings.items():
        config[name] = value
    # Neither voxels nor networks are needed to count.
    config["train#dataset"] = {
        "_target_": "Dataset",
        "data": load_datalist(run.datalist, "training", run.fold),
    }
    config["network"] = "$torch.nn.Linear(1, 1)"
    return config


def _rates(config: ConfigParser, epochs: int, steps: int) -> Iterator[float]:
    optimizer = config.get_parsed_content("optimizer")
    scheduler = config.get_parsed_content("lr_scheduler")
    optimizer.step()
    for _ in range(epochs * steps):
        yield optimizer.param_groups[0]["lr"]
        scheduler.step()
