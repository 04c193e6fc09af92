"""Tune a config value on the validation folds with Optuna."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from rich.console import Console

from liverseg.errors import InputError
from liverseg.files import atomic_write, check_writable
from liverseg.workbench.study.folder import StudyFolder
from liverseg.workbench.study.plan import Run, make_run
from liverseg.workbench.study.results import of_stages
from liverseg.workbench.study.run import literal, make_phantoms, run_all
from liverseg.workbench.study.spec import Study, check_setting

if TYPE_CHECKING:
    import optuna

# What both papers tried.
PAPERS_ALPHAS = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class Calibration:
    """What to tune, on what: the options of `liverseg study calibrate`."""

    key: str
    low: float
    high: float
    log: bool
    trials: int
    data: str | None
    network: str | None
    loss: str
    task: str


def calibrate_study(
    study: Study,
    wanted: Calibration,
    folder: StudyFolder,
    workers: int | None,
    console: Console,
) -> float:
    """Find the value with the best mean validation Dice over the folds and seeds; print its use.

    Every trial is a run for each fold and seed, so a trial that was killed trains only what is
    missing. The trials are in `calibrate.db`. The Dice is the training's own (`val_mean_dice` of
    the model that it keeps).

    Args:
        study: what `read_study` returns; its tables are not used.
        wanted: what to tune; `trials` counts those of earlier calls.
        folder: for everything.
        workers: trainings at once.
        console: where to show progress.

    Returns:
        The best value.

    Raises:
        InputError: for a key, network or data set that the study does not have, a range that is
            none, or a training that fails.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            "optuna: not installed, expected it for calibrate: pip install optuna."
        ) from error

    data, network = _choose(study, wanted)
    name = f"{data}_{network}_{wanted.task}_{wanted.loss}_{wanted.key}"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with folder.lock():
        make_phantoms(study, folder)

        def runs(value: float) -> list[Run]:
            choice = {"data": data, "network": network, "loss": wanted.loss, "task": wanted.task}
            return [
                make_run(study, folder, choice | {"fold": fold, "seed": seed}, {wanted.key: value})
                for fold, seed in product(study.folds, study.seeds)
            ]

        runs(wanted.low)  # A wrong choice is refused before anything runs.
        search = _open_search(f"sqlite:///{folder.trials}", name, study, wanted)
        while (count := len(_finished(search))) < wanted.trials:
            trial = search.ask()
            value = trial.suggest_float(wanted.key, wanted.low, wanted.high, log=wanted.log)
            console.print(f"Trial {count + 1} of {wanted.trials}: {wanted.key} {value:.4g}")
            failed = run_all(runs(value), workers, study.keep_models, console)
            if failed:
                search.tell(trial, state=optuna.trial.TrialState.FAIL)
                raise InputError(
                    f"{wanted.key} {value:.4g}: the training failed: {next(iter(failed.values()))}"
                )
            dice = [_validation_dice(run) for run in runs(value)]
            search.tell(trial, sum(dice) / len(dice))
            console.print(
                f"  validation Dice {sum(dice) / len(dice):.4f}, best {search.best_value:.4f}"
            )
        picture = check_writable(folder.plots) / f"calibrate_{name.replace('#', '-')}.png"
        _plot(search, wanted, picture)
    best = float(search.best_params[wanted.key])
    _report(study, network, wanted, best, search.best_value, picture, console)
    return best


def _choose(study: Study, wanted: Calibration) -> tuple[str, str]:
    data, network = (
        wanted.data or next(iter(study.data)),
        wanted.network or next(iter(study.networks)),
    )
    for key, chosen, known in (("data", data, study.data), ("network", network, study.networks)):
        if chosen not in known:
            raise InputError(
                f"{study.path}: --{key}: found {chosen}, expected one of "
                f"{', '.join(known)}: choose one."
            )
    classes = study.data[data].labels
    if wanted.task not in ("all", *classes):
        raise InputError(
            f"--task: found {wanted.task}, expected all or one of {', '.join(classes)}: choose one."
        )
    if not wanted.low < wanted.high or (wanted.log and wanted.low <= 0):
        raise InputError(
            f"--low {wanted.low} --high {wanted.high}: expected low below high, above 0 with --log."
        )
    for bound in (wanted.low, wanted.high):
        check_setting("--key", study.bundles[study.networks[network].bundle], wanted.key, bound)
    return data, network


def _open_search(storage: str, name: str, study: Study, wanted: Calibration) -> optuna.Study:
    """Return the trials so far; those that were killed are marked as failed, and come again."""
    import optuna

    # Trials of other folds or settings cannot be compared with these.
    parts = study.model_dump(include={"data", "networks"}, exclude_unset=True)
    for part in parts.values():
        for entry in part.values():
            entry.setdefault("settings", {})
    settings = json.dumps(
        [study.settings, *parts.values(), study.folds, study.seeds, study.losses], sort_keys=True
    )
    search = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True
    )
    known = json.dumps(json.loads(search.user_attrs.get("settings", settings)), sort_keys=True)
    if known != settings:
        raise InputError(
            f"{storage}: holds trials of {name} with other settings: give "
            "another folder with --out."
        )
    search.set_user_attr("settings", settings)
    if not search.trials and wanted.key == "iou_xy_alpha":
        for alpha in PAPERS_ALPHAS:
            if wanted.low <= alpha <= wanted.high:
                search.enqueue_trial({wanted.key: alpha})
    for trial in search.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        search.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        search.enqueue_trial(trial.params)
    # With the same seed a second call would draw the same values as the first one.
    search.sampler = optuna.samplers.TPESampler(n_startup_trials=5, seed=len(search.trials))
    return search


def _finished(search: optuna.Study) -> list[Any]:
    import optuna

    return search.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))


def _validation_dice(run: Run) -> float:
    """Return the best validation Dice of a training; of a training by stages their mean."""
    files = of_stages(run.folder / "training", "metrics.json")
    dice = [json.loads(path.read_text())["best_val_mean_dice"] for path in files]
    if None in dice:
        raise InputError(
            f"{run.folder}: the training was never validated: give a "
            "val_interval of at most max_epochs."
        )
    return float(sum(dice) / len(dice))


def _plot(search: optuna.Study, wanted: Calibration, path: Path) -> None:
    points = sorted((trial.params[wanted.key], trial.value) for trial in _finished(search))
    figure = Figure((6, 3.6), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), color="#2f6db3", marker="o", markersize=5, linewidth=1)
    axes.plot(
        search.best_params[wanted.key],
        search.best_value,
        "o",
        markersize=11,
        mfc="none",
        mec="#b85c00",
        mew=2,
    )
    axes.set_title(
        f"best {search.best_value:.3f} at {search.best_params[wanted.key]:.4g}", fontsize=10
    )
    axes.set(
        xlabel=wanted.key, ylabel="Mean validation Dice", xscale="log" if wanted.log else "linear"
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png")


def _report(
    study: Study,
    network: str,
    wanted: Calibration,
    best: float,
    dice: float,
    picture: Path,
    console: Console,
) -> None:
    value = float(f"{best:.4g}")
    settings = study.losses.get(wanted.loss, {"loss": f"@losses#{wanted.loss}"})
    options = [
        f'--{key} "{one}"' if isinstance(one, str) else f"--{key} {shlex.quote(literal(one))}"
        for key, one in settings.items()
        if key != wanted.key
    ]
    typed = " ".join([*options, f"--{wanted.key} {value:g}"])
    console.print(
        f"Best mean validation Dice {dice:.4f} with {wanted.key} {value:g}; {picture}",
        soft_wrap=True,
    )
    console.print(f"To train with it:  {typed}", soft_wrap=True, markup=False)
    if wanted.key == "iou_xy_alpha" and wanted.loss == "iou_xy":
        bundle = study.bundles[study.networks[network].bundle]
        whole = {**bundle.train["losses"]["iou_xy"], "alpha": value, "beta": round(2 - value, 6)}
        console.print(f"As one value:      --loss '{literal(whole)}'", soft_wrap=True, markup=False)
    if math.isclose(best, wanted.low, rel_tol=0.02) or math.isclose(
        best, wanted.high, rel_tol=0.02
    ):
        console.print("The best value lies at the end of the range: try a wider one.")
