"""A training as a run of MLflow."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from filelock import FileLock
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from liverseg.command_line import is_command_line
from liverseg.errors import InputError
from liverseg.files import check_writable
from liverseg.handlers.run_summary import package_versions

SQLITE = "sqlite:///"
# Settings of the tracking itself, which tell nothing of the training; an address may hold a password.
TRACKING = {"tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"}


class Tracking:
    """Log what the handlers before it have written, and what it was made with, as one run of MLflow.

    Parameters: the plain values at the top of the config, and all that is given on the command line. Metrics: those of
    `history.csv`, by epoch. Tags: the command, the commits of the working folder and of the bundle, versions.
    Artifacts: the config, all packages, the pictures of `Overlays` at each new best, `model.json`, and at the end
    `metrics.json`, `history.csv` and the best `model.pt`. The model is copied only once, for it may have hundreds of
    megabytes; until then its path and sha256 are tags.

    A resumed training goes on in its run, whose id is in `mlflow_run.txt` beside `history.csv`. Nothing is sent
    anywhere but to `tracking_uri`, not MLflow's own telemetry either.

    Put it after `Checkpoints`, `RunSummary` and `Overlays`.

    Args:
        tracking_uri: a SQLite file, `sqlite:////folder/mlflow.db`, with the artifacts in `mlartifacts` beside it; or a
            server, `https://host:5000`, which keeps them itself.
        experiment_name: the experiment that the run belongs to, made where it is missing.
        run_name: the name of the run; None lets MLflow choose one.
        config_path: the config with all that was overridden, as MONAI writes it for `--tracking`.
        bundle_root: the bundle's folder.
        output_dir: where `RunSummary` and `Overlays` write.
        ckpt_dir: where `Checkpoints` writes.
        key_metric: the metric that `Checkpoints` compares.

    Raises:
        InputError: when MLflow is not installed, or cannot open `tracking_uri`.
    """

    def __init__(
        self,
        tracking_uri: str,
        experiment_name: str,
        run_name: str | None,
        config_path: str,
        bundle_root: str | os.PathLike[str],
        output_dir: str | os.PathLike[str],
        ckpt_dir: str | os.PathLike[str],
        key_metric: str = "val_mean_dice",
    ) -> None:
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name
        self.run_name = run_name
        # MONAI writes "out + '/config_….json'" where output_dir is not an expression.
        self.config_path = Path(config_path.replace(" + '/", "/").removesuffix("'"))
        self.bundle_root = Path(bundle_root)
        self.output_dir = Path(output_dir)
        self.ckpt_dir = Path(ckpt_dir)
        self.key_metric = key_metric
        self.run_id = ""
        self.last_epoch = -1
        _import_mlflow()

    def attach(self, engine: Engine) -> None:
        """Act on the events of `engine`, the trainer, on rank 0 only."""
        if engine.state.rank == 0:  # type: ignore[attr-defined]
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
            engine.add_event_handler(Events.COMPLETED, self.completed)

    def start(self, engine: Engine) -> None:
        """Begin a run, or take up the one that is resumed."""
        mlflow = _import_mlflow()
        try:
            with self._database_lock():
                self.client = mlflow.MlflowClient(tracking_uri=self.tracking_uri)
            self.run_id = self._open_run(resumed=engine.state.epoch > 0)
        except mlflow.MlflowException as error:
            reason = str(error).strip().split(". ")[0]
            raise InputError(
                f"tracking_uri: MLflow cannot use {self.tracking_uri} ({reason}), expected a SQLite file or a server: "
                f"write {SQLITE}/folder/mlflow.db or https://host:5000."
            ) from error
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.failed)

    def epoch_completed(self, engine: Engine) -> None:
        """Log the epoch's line of `history.csv`, and what a new best has left."""
        from mlflow.entities import Metric

        state: Any = engine.state
        with (self.output_dir / "history.csv").open(newline="") as file:
            # With what a training that was killed had no time to log.
            rows = [row for row in csv.DictReader(file) if int(row["epoch"]) > self.last_epoch]
        now_ms = int(time.time() * 1000)
        for row in rows:
            values = {
                name: float(value) for name, value in row.items() if value and name != "epoch"
            }
            metrics = [
                Metric(name, value, now_ms, int(row["epoch"])) for name, value in values.items()
            ]
            self.client.log_batch(self.run_id, metrics=metrics)
        self.last_epoch = state.epoch
        if state.best_metric_epoch == state.epoch:
            folder = f"overlays/epoch_{state.epoch:04d}"
            self.client.log_artifacts(self.run_id, str(self.output_dir / "overlays"), folder)
            self._log_model(state)

    def completed(self, engine: Engine) -> None:
        """Log the result and end the run."""
        summary = json.loads((self.output_dir / "metrics.json").read_text())
        for name in (f"best_{self.key_metric}", "best_epoch"):
            if summary[name] is not None:
                self.client.log_metric(self.run_id, name, summary[name])
        for path in (
            self.output_dir / "metrics.json",
            self.output_dir / "history.csv",
            self._log_model(engine.state),
        ):
            if path:
                self.client.log_artifact(self.run_id, str(path))
        self.client.set_terminated(self.run_id)

    def failed(self, error: Exception) -> None:
        """Mark the run as failed; Ignite leaves it to its handlers to raise the error."""
        self.client.set_terminated(self.run_id, "FAILED")
        raise error

    def _log_model(self, state: Any) -> Path | None:
        """Say which file the best model is, and return it; None where the model is that of another training."""
        record = self.ckpt_dir / "model.json"
        content = json.loads(record.read_text()) if record.is_file() else {}
        # The model of an earlier training may be better than this one's best.
        if (content.get("epoch"), content.get(self.key_metric)) != (
            state.best_metric_epoch,
            state.best_metric,
        ):
            return None
        model = record.with_suffix(".pt").resolve()
        with model.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        self.client.log_artifact(self.run_id, str(record))
        self._set_tags({"model.path": str(model), "model.sha256": sha256})
        return model

    def _open_run(self, resumed: bool) -> str:
        from mlflow.entities import Param

        params = self._params()
        id_file = self.output_dir / "mlflow_run.txt"
        if resumed and id_file.is_file():
            run_id = id_file.read_text().strip()
            # Parameters of a run never change; the config of each start is kept.
            params = {
                key: value
                for key, value in params.items()
                if key not in self.client.get_run(run_id).data.params
            }
            self.client.update_run(run_id, status="RUNNING")
            self.last_epoch = max(
                (loss.step for loss in self.client.get_metric_history(run_id, "loss")), default=0
            )
        else:
            run_id = self.client.create_run(
                self._experiment_id(), run_name=self.run_name
            ).info.run_id
            id_file.write_text(f"{run_id}\n")
        self.client.log_batch(
            run_id, params=[Param(name, str(value)) for name, value in params.items()]
        )
        self.run_id = run_id
        commits = {
            "mlflow.source.git.commit": git_commit(Path.cwd()),
            "bundle.git.commit": git_commit(self.bundle_root),
        }
        command = {"mlflow.source.name": f"python -m monai.bundle {shlex.join(sys.argv[1:])}"}
        versions = {f"version.{name}": version for name, version in package_versions().items()}
        self._set_tags({**commits, **(command if is_command_line() else {}), **versions})
        self.client.log_artifact(run_id, str(self.config_path), "config")
        packages = sorted(
            {f"{package.name}=={package.version}" for package in metadata.distributions()}
        )
        self.client.log_text(run_id, "\n".join([*packages, ""]), "packages.txt")
        return run_id

    def _database(self) -> Path | None:
        """The SQLite file, or None for a server."""
        if not self.tracking_uri.startswith(SQLITE):
            return None
        return Path(unquote(self.tracking_uri.removeprefix(SQLITE))).resolve()

    def _database_lock(self) -> AbstractContextManager:
        # MLflow fails where two processes make the tables of one file at once, as stages trained side by side do.
        database = self._database()
        return (
            FileLock(check_writable(database.parent) / f"{database.name}.lock")
            if database
            else nullcontext()
        )

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        database = self._database()
        location = (database.parent / "mlartifacts").as_uri() if database else None
        try:
            return self.client.create_experiment(self.experiment_name, artifact_location=location)
        except MlflowException as error:
            # Looking first would not do: another training may make it in between.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self.client.get_experiment_by_name(self.experiment_name).experiment_id

    def _params(self) -> dict[str, Any]:
        parser = ConfigParser(json.loads(self.config_path.read_text()))
        typed = [
            argument[2:].partition("=")[0] for argument in sys.argv[1:] if argument.startswith("--")
        ]
        names = {name for name, value in parser.get().items() if _is_plain(value)}
        names |= {name for name in typed if name in parser} if is_command_line() else set()
        # MLflow takes no # in a name.
        return {name.replace("#", "."): parser[name] for name in sorted(names - TRACKING)}

    def _set_tags(self, tags: dict[str, str | None]) -> None:
        for name, value in tags.items():
            if value is not None:
                self.client.set_tag(self.run_id, name, value)


def git_commit(folder: str | os.PathLike[str]) -> str | None:
    """The commit of the repository that `folder` is in, with `-dirty` where tracked files differ; None without one."""
    command = [
        "git",
        "-C",
        os.fspath(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return (
            subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
            or None
        )
    except FileNotFoundError:
        return None


def _import_mlflow() -> Any:
    # MLflow sends usage data if it is not told otherwise; it asks each time, so being imported by MONAI is no harm.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        import mlflow
    except ModuleNotFoundError as error:
        raise InputError(
            f"--tracking mlflow: found no package {error.name}, expected MLflow: pip install mlflow."
        ) from error
    return mlflow


def _is_plain(value: Any) -> bool:
    """Whether a config's value is one to compare runs by, and no expression, macro or component."""
    if isinstance(value, list):
        return all(_is_plain(item) and not isinstance(item, list) for item in value)
    return not isinstance(value, dict) and not str(value).startswith(("$", "%"))
