"""Log a training as a run of MLflow."""

from __future__ import annotations

import ast
import csv
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import ignite.distributed as idist
from filelock import FileLock
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.handlers import MLFlowHandler

from liverseg.command_line import is_command_line
from liverseg.errors import InputError
from liverseg.files import check_writable
from liverseg.handlers.provenance import git_commit, package_versions

SQLITE = "sqlite:///"
# Settings of the tracking itself, which tell nothing of the training; an address may hold a
# password.
TRACKING = {"tracking_uri", "experiment_name", "run_name", "save_execute_config", "is_not_rank0"}


class Tracking(MLFlowHandler):
    """Log what the handlers before it have written, and with what, as one run of MLflow.

    Parameters: the plain values at the top of the config, and all that is given on the command
    line. Metrics: those of `history.csv`, by epoch. Tags: the command, the commits of the working
    folder and of the bundle, versions. Artifacts: the config, all packages, the pictures of
    `Overlays` at each new best, `model.json`, and at the end `metrics.json`, `history.csv` and the
    best `model.pt`. The model is copied only once, for it may have hundreds of megabytes; until
    then its path and sha256 are tags.

    MONAI's `MLFlowHandler` takes up any run of the same name that did not finish. A resumed
    training goes on in its own run, whose id is in `mlflow_run.txt` beside `history.csv`. Nothing
    is sent anywhere but to `tracking_uri`, not MLflow's own telemetry either.

    Put it after `Checkpoints`, `RunSummary` and `Overlays`.

    Args:
        tracking_uri: a SQLite file, `sqlite:////folder/mlflow.db`, with the artifacts in
            `mlartifacts` beside it; or a server, `https://host:5000`, which keeps them itself.
        experiment_name: the experiment that the run belongs to, made where it is missing.
        run_name: the name of the run; None lets MLflow choose one.
        config_path: the config with all that was overridden, as MONAI writes it for `--tracking`;
            anything but a path switches the handler off.
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
        config_path: str | bool | None,
        bundle_root: str | os.PathLike[str],
        output_dir: str | os.PathLike[str],
        ckpt_dir: str | os.PathLike[str],
        key_metric: str = "val_mean_dice",
    ) -> None:
        self.enabled = False
        if not isinstance(config_path, str) or idist.get_rank() > 0:
            return
        self.enabled = True
        self.config_path = _written_config(config_path)
        self.bundle_root = Path(bundle_root)
        self.output_dir = Path(output_dir)
        self.ckpt_dir = Path(ckpt_dir)
        self.key_metric = key_metric
        self.last_epoch = -1
        _check_mlflow()
        # MONAI's handler would prefer it to `tracking_uri`.
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        database = _database(tracking_uri)
        # MLflow fails where two processes make the tables of one file at once, as stages trained
        # side by side do.
        lock = database and FileLock(check_writable(database.parent) / f"{database.name}.lock")
        with _errors_of_mlflow(tracking_uri), lock or nullcontext():
            super().__init__(
                tracking_uri,
                iteration_log=False,
                experiment_name=experiment_name,
                run_name=run_name,
                close_on_complete=True,
                artifact_location=(database.parent / "mlartifacts").as_uri() if database else None,
            )
        self.tracking_uri = tracking_uri

    def attach(self, engine: Engine) -> None:
        """Act on the events of `engine`, the trainer, if this is enabled."""
        if self.enabled:
            super().attach(engine)
            engine.add_event_handler(Events.EXCEPTION_RAISED, self.failed)

    def start(self, engine: Engine) -> None:
        """Begin a run, or take up the one that is resumed."""
        self.state = engine.state
        with _errors_of_mlflow(self.tracking_uri):
            self._set_experiment()
            self.run_id = self._open_run(resumed=engine.state.epoch > 0)
            self.cur_run = self.client.get_run(self.run_id)
        params = self._params()
        # Parameters of a run never change; the config of each start stays.
        self._delete_exist_param_in_dict(params)
        self._log_params(params)
        self._set_tags(
            {
                "mlflow.source.git.commit": git_commit(Path.cwd()),
                "bundle.git.commit": git_commit(self.bundle_root),
                **{f"version.{name}": version for name, version in package_versions().items()},
            }
        )
        if is_command_line():
            command = f"python -m monai.bundle {shlex.join(sys.argv[1:])}"
            self._set_tags({"mlflow.source.name": command})
        self.client.log_artifact(self.run_id, str(self.config_path), "config")
        packages = sorted(
            {f"{package.name}=={package.version}" for package in metadata.distributions()}
        )
        self.client.log_text(self.run_id, "\n".join([*packages, ""]), "packages.txt")

    def epoch_completed(self, engine: Engine) -> None:
        """Log the epoch's line of `history.csv`, and what a new best has left."""
        state: Any = engine.state
        with (self.output_dir / "history.csv").open(newline="") as file:
            # With what a training that was killed had no time to log.
            rows = [row for row in csv.DictReader(file) if int(row["epoch"]) > self.last_epoch]
        for row in rows:
            epoch = int(row.pop("epoch"))
            self._log_metrics({name: float(value) for name, value in row.items() if value}, epoch)
        self.last_epoch = state.epoch
        if state.best_metric_epoch == state.epoch:
            folder = f"overlays/epoch_{state.epoch:04d}"
            self.client.log_artifacts(self.run_id, str(self.output_dir / "overlays"), folder)
            self._log_model()

    def complete(self) -> None:
        """Log the result."""
        results = [self.output_dir / name for name in ("metrics.json", "history.csv")]
        summary = json.loads(results[0].read_text())
        best = {name: summary[name] for name in (f"best_{self.key_metric}", "best_epoch")}
        self._log_metrics({name: value for name, value in best.items() if value is not None})
        self.artifacts = (*results, self._log_model())
        super().complete()

    def failed(self, error: Exception) -> None:
        """Mark the run as failed; Ignite leaves it to its handlers to raise the error."""
        if self.cur_run:
            self.client.set_terminated(self.run_id, "FAILED")
        raise error

    def _log_model(self) -> Path | None:
        """Say which file the best model is, and return it; None for that of another training."""
        state: Any = self.state
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
        id_file = self.output_dir / "mlflow_run.txt"
        if resumed and id_file.is_file():
            run_id = id_file.read_text().strip()
            self.client.update_run(run_id, status="RUNNING")
            logged = self.client.get_metric_history(run_id, "loss")
            self.last_epoch = max((loss.step for loss in logged), default=0)
            return run_id
        experiment: Any = self.experiment
        run = self.client.create_run(experiment.experiment_id, run_name=self.run_name)
        id_file.write_text(f"{run.info.run_id}\n")
        return run.info.run_id

    def _params(self) -> dict[str, Any]:
        parser = ConfigParser(ConfigParser.load_config_file(self.config_path))
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


@contextmanager
def _errors_of_mlflow(tracking_uri: str) -> Iterator[None]:
    """Make what MLflow and MONAI's handler refuse an `InputError`."""
    from mlflow import MlflowException

    try:
        yield
    except (MlflowException, ValueError) as error:
        reason = str(error).strip().split(". ")[0]
        raise InputError(
            f"tracking_uri: MLflow cannot use {tracking_uri} ({reason}), expected a SQLite file or "
            f"a server: write {SQLITE}/folder/mlflow.db or https://host:5000."
        ) from error


def _check_mlflow() -> None:
    # MLflow sends usage data if it is not told otherwise; it asks each time, so being imported by
    # MONAI is no harm.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    try:
        import mlflow  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            f"--tracking mlflow: found no package {error.name}, expected MLflow: pip install "
            "mlflow."
        ) from error


def _database(tracking_uri: str) -> Path | None:
    """Return the SQLite file, or None for a server."""
    if not tracking_uri.startswith(SQLITE):
        return None
    return Path(unquote(tracking_uri.removeprefix(SQLITE))).resolve()


def _written_config(path: str) -> Path:
    """Return the config that MONAI has written, by what it has set `save_execute_config` to."""
    if Path(path).is_file():
        return Path(path)
    # It appends code, " + '/config_….json'", to an output_dir that is plain text too.
    folder, _, name = path.rpartition(" + ")
    return Path(folder + ast.literal_eval(name))


def _is_plain(value: Any) -> bool:
    """Return whether a value may compare runs, and is no expression, macro or component."""
    if isinstance(value, list):
        return all(_is_plain(item) and not isinstance(item, list) for item in value)
    return not isinstance(value, dict) and not str(value).startswith(("$", "%"))
