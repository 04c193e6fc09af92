r"""Learning curves of the app's strategies, with an oracle as the annotator.

python benchmarks/active_learning.py --work build/active_learning --out build/active_learning
python benchmarks/active_learning.py --work build/from_start --out build/from_start \
    --start 8 --steps 60

Synthetic CT, of which most are in the portal phase and few in the others, as in a hospital's
archive; test scans are in all three alike. For each seed there are other patients, and a small
U-Net of `unet_liver` starts from one labelled scan. Then, again and again: the app scores the
unlabelled scans and chooses one, the oracle gives its label, and the network is trained anew on all
labels. A curve is the mean Dice of the liver in the test scans by the number of labels.

With `--start` the network has learnt the portal phase before, on scans of its own: the strategies
choose the first scan as well, and each training goes on from that start with all labels, at a tenth
of the rate.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.losses import DiceCELoss

from liverseg.io.nifti import write_nifti
from liverseg.metrics import confusion_matrix, pooled_metrics
from liverseg.workbench.phantoms import make_phantom

# Bars of hundreds of small scans would hide the curves.
os.environ.setdefault("TQDM_DISABLE", "1")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "monailabel_app"))

from lib.bundle import read_bundle  # noqa: E402
from lib.score.next_scan import First, HighestScore, NextScan, Random  # noqa: E402
from lib.score.scores import Disagreement, Scores, Uncertainty  # noqa: E402
from lib.store.local import LockedDatastore  # noqa: E402

STRATEGIES = ("first", "random", "uncertain", "disagreement")
PHASES = ("portal", "native", "arterial")
# Of the scans to choose from; of those held out each phase is a third.
SHARES = (0.7, 0.15, 0.15)
# Of the training before the first label.
START_STEPS = 600
SETTINGS = {
    "network_def#first_filters": 8,
    "spacing": [-1, -1, -1],
    "sw_batch_size": 16,
    "amp": False,
    # On voxels of this size, postprocessing would leave nothing to disagree on.
    "postprocessing": "@postprocessings#none",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pool", type=int, default=16, help="scans to choose from")
    parser.add_argument("--held-out", type=int, default=6)
    parser.add_argument("--labels", type=int, default=6, help="scans that get a label")
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    parser.add_argument(
        "--start",
        type=int,
        default=0,
        help="scans that the network has learnt before; 0 begins anew",
    )
    parser.add_argument("--shape", type=int, nargs=3, default=(64, 64, 16))
    parser.add_argument("--spacing", type=float, nargs=3, default=(6.0, 6.0, 12.0), help="mm")
    parser.add_argument("--work", type=Path, required=True, help="folder for scans and weights")
    parser.add_argument(
        "--out", type=Path, required=True, help="path without suffix of the plot and the figures"
    )
    arguments = parser.parse_args()

    grid = (arguments.shape, arguments.spacing)
    held_out = [
        write_phantom(arguments.work, 10**6 + n, PHASES[n % 3], *grid)
        for n in range(arguments.held_out)
    ]
    starts: dict[str, Path] = {}
    if arguments.start:
        known = [
            write_phantom(arguments.work, 2 * 10**6 + n, "portal", *grid)
            for n in range(arguments.start)
        ]
        for number, name in enumerate(("model", "other")):
            folder = arguments.work / f"start_{name}"
            shutil.rmtree(folder, ignore_errors=True)
            train(write_bundle(folder), known, 10**7 + number, START_STEPS)
            starts[name] = folder / "models" / "model.pt"
            print(f"start ({name}): {evaluate(folder, held_out):.3f}", flush=True)
    curves: dict[str, list[list[float]]] = {name: [] for name in STRATEGIES}
    for seed in range(arguments.seeds):
        phases = np.random.default_rng(seed).choice(PHASES, arguments.pool, p=SHARES)
        pool = [
            write_phantom(arguments.work, 1000 * seed + n, phase, *grid)
            for n, phase in enumerate(phases)
        ]
        for name in STRATEGIES:
            folder = arguments.work / f"{name}_{seed}"
            dice, chosen = learn(
                folder, name, seed, pool, held_out, arguments.labels, arguments.steps, starts
            )
            curves[name].append(dice)
            phase = dict(zip((image_id(scan) for scan, _ in pool), phases, strict=True))
            shown = " ".join(
                f"{value:.3f} ({phase[image]})" for value, image in zip(dice, chosen, strict=True)
            )
            print(f"seed {seed} {name:13} {shown}", flush=True)
    report(curves)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {key: value for key, value in vars(arguments).items() if key not in ("work", "out")}
    figures = json.dumps({"settings": settings, "dice": curves}, indent=1)
    arguments.out.with_suffix(".json").write_text(figures + "\n")
    plot(curves, arguments.out.with_suffix(".png"))


def learn(
    folder: Path,
    strategy_name: str,
    seed: int,
    pool: Sequence[tuple[Path, Path]],
    held_out: Sequence[tuple[Path, Path]],
    num_labels: int,
    steps: int,
    starts: Mapping[str, Path],
) -> tuple[list[float], list[str]]:
    """Return the test Dice after each label, and the scans in the order of their labels.

    Args:
        folder: made anew, for the studies and two bundles, of which the second is there to
            disagree.
        strategy_name: of `STRATEGIES`.
        seed: of the first scan, the trainings and `random`.
        pool: scans to choose from and their labels, each by an id of its own.
        held_out: scans and labels.
        num_labels: after which it ends.
        steps: of each training.
        starts: weights that "model" and "other", the two bundles, go on from; without any they
            begin anew.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "studies").mkdir(parents=True)
    truth = {image_id(scan): label for scan, label in pool}
    for scan, _ in pool:
        shutil.copy(scan, folder / "studies")
    store = LockedDatastore(str(folder / "studies"), extensions=["*.nii.gz"])
    bundles = {name: read_bundle(write_bundle(folder / name)) for name in ("model", "other")}
    scores: dict[str, Scores] = {
        "uncertain": Uncertainty("uncertainty", "", {"model": bundles["model"]}),
        "disagreement": Disagreement("disagreement", "", bundles),
    }
    for name, weights in starts.items():
        (folder / name / "models").mkdir()
        shutil.copy(weights, folder / name / "models" / "model.pt")
    strategies: dict[str, NextScan] = {"first": First("", 60), "random": Random("", 60)}
    strategies.update({name: HighestScore("", 60, score) for name, score in scores.items()})

    chosen: list[str] = []
    dice: list[float] = []
    if starts and strategy_name in scores:
        scores[strategy_name]({}, store)
    while len(chosen) < num_labels:
        # Without weights there is nothing to go by, and the first label is the same for all.
        strategy = strategies[strategy_name if chosen or starts else "random"]
        answer = strategy({"strategy": strategy_name, "seed": seed}, store)
        assert answer is not None
        assert not chosen or strategy_name not in scores or answer["score"] is not None
        chosen.append(answer["id"])
        store.save_label(answer["id"], str(truth[answer["id"]]), "final", {})
        labelled = [(Path(item["image"]), Path(item["label"])) for item in store.datalist()]
        train(folder / "model", labelled, seed, steps, starts.get("model"))
        if strategy_name == "disagreement":
            train(folder / "other", labelled, seed + 10**6, steps, starts.get("other"))
        dice.append(evaluate(folder / "model", held_out))
        if strategy_name in scores:
            scores[strategy_name]({}, store)
    return dice, chosen


def write_phantom(
    work: Path, patient: int, phase: str, shape: Sequence[int], spacing: Sequence[float]
) -> tuple[Path, Path]:
    """The files of a scan and of its liver, written unless they are there."""
    folder = work / "phantoms"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{patient}_{phase}.nii.gz", folder / f"{patient}_{phase}_label.nii.gz"]
    phantom = make_phantom(patient, shape, spacing, phase=phase)
    for path, voxels in zip(
        paths, (phantom.image.astype(np.int16), (phantom.labels > 0).astype(np.uint8)), strict=True
    ):
        write_nifti(path, voxels, phantom.affine)
    return paths[0], paths[1]


def image_id(scan: Path) -> str:
    """What the datastore calls it."""
    return scan.name.removesuffix(".nii.gz")


def write_bundle(folder: Path) -> Path:
    """The configs of `unet_liver` for a small network."""
    shutil.copytree(ROOT / "bundles" / "unet_liver" / "configs", folder / "configs")
    file = folder / "configs" / "inference.json"
    parser = ConfigParser(json.loads(file.read_text()))
    parser.update(SETTINGS)
    file.write_text(
        json.dumps({key: value for key, value in parser.get().items() if key != "_meta_"})
    )
    return folder


def train(
    folder: Path,
    items: Sequence[tuple[Path, Path]],
    seed: int,
    steps: int,
    start: Path | None = None,
) -> None:
    """Train a bundle's network on random slices, with MONAI's Dice and cross-entropy loss."""
    torch.manual_seed(seed)
    parser = read_config(folder)
    network = parser.get_parsed_content("network").train()
    if start is not None:
        network.load_state_dict(torch.load(start, weights_only=True))
    volumes = [load(parser, *item) for item in items]
    images, labels = (
        torch.cat([volume[part].permute(2, 0, 1) for volume in volumes])[:, None] for part in (0, 1)
    )
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
    optimizer = torch.optim.Adam(network.parameters())
    # A rate that ends at 0, or the step at which the training ends would decide more than the
    # labels do.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3 if start is None else 3e-4, total_steps=steps
    )
    for _ in range(steps):
        drawn = torch.randint(len(images), (8,))
        loss = loss_function(network(images[drawn]), labels[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    (folder / "models").mkdir(exist_ok=True)
    torch.save(network.state_dict(), folder / "models" / "model.pt")


def evaluate(folder: Path, items: Sequence[tuple[Path, Path]]) -> float:
    """Mean Dice of the liver, with the bundle's inferer."""
    parser = read_config(folder)
    network, inferer = (
        parser.get_parsed_content("network").eval(),
        parser.get_parsed_content("inferer#inferer"),
    )
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    dice = []
    for item in items:
        image, label = load(parser, *item)
        mask = inferer(image[None, None], network)[0, 0]
        confusion = confusion_matrix(mask.numpy(), label.numpy(), 2)
        dice.append(pooled_metrics(confusion, ["background", "liver"])["classes"]["liver"]["dice"])
    return float(np.mean(dice))


def read_config(folder: Path) -> ConfigParser:
    """The bundle's inference config."""
    parser = ConfigParser(json.loads((folder / "configs" / "inference.json").read_text()))
    parser.update({"bundle_root": str(folder), "device": "cpu"})
    return parser


def load(parser: Any, scan: Path, label: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """A scan as the network sees it and its label, both (H, W, D)."""
    image = parser.get_parsed_content("preprocessing")({"image": str(scan)})["image"].as_tensor()[0]
    return image, torch.from_numpy(np.asanyarray(nib.load(label).dataobj).astype(np.uint8))


def report(curves: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Print a row for each strategy, and how it compares with `random`, seed by seed."""
    every = {name: np.array(values) for name, values in curves.items()}
    labels = range(1, every["random"].shape[1] + 1)
    print(
        "| strategy | "
        + " | ".join(f"{n} labels" for n in labels)
        + " | mean minus random | seeds above random |"
    )
    print("|---|" + "---|" * (len(labels) + 2))
    for name, values in every.items():
        cells = [
            f"{mean:.3f} ± {sd:.3f}" for mean, sd in zip(values.mean(0), values.std(0), strict=True)
        ]
        # The first label is the same for all that begin anew.
        gain = (values - every["random"])[:, 1:].mean(1)
        compared = [
            f"{gain.mean():+.3f} ± {gain.std():.3f}",
            f"{np.count_nonzero(gain > 0)} of {len(gain)}",
        ]
        print(
            f"| `{name}` | "
            + " | ".join([*cells, *(compared if name != "random" else ["", ""])])
            + " |"
        )


def plot(curves: Mapping[str, Sequence[Sequence[float]]], file: Path) -> None:
    """The mean of all seeds as a line, each seed as points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="labelled scans", ylabel="Dice of the liver in test scans")
    for shift, (name, values) in enumerate(curves.items()):
        labels = np.arange(1, len(values[0]) + 1)
        (line,) = axes.plot(labels, np.mean(values, axis=0), label=name)
        for value in values:
            axes.plot(
                labels + 0.05 * (shift - 1.5),
                value,
                ".",
                color=line.get_color(),
                alpha=0.5,
                markersize=4,
            )
    axes.set_xticks(labels)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(curves))
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
