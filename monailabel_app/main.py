"""The MONAI Label app: annotate with any bundle."""

# ruff: noqa: E402
from __future__ import annotations

from lib.patches import startup_traceback
from lib.patches.version import check_version

startup_traceback.fix()
# Before anything of MONAI Label is imported, which another version may not have.
check_version()

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.async_tasks.utils import tasks
from monailabel.utils.sessions import Sessions

from lib.bundle import find_bundles
from lib.conf import read_conf
from lib.infer.batch import BatchSegmentation
from lib.infer.clicks import ClickSegmentation
from lib.infer.correct import CleanUp, Scribbles
from lib.infer.probabilities import ProbabilityStore
from lib.infer.segment import Segmentation
from lib.patches.logs import keep_recent_lines
from lib.patches.unchecked_sessions import SafeSessions
from lib.score.next_scan import First, HighestScore, Random
from lib.score.scores import find_scores
from lib.store.dicom_server import DicomServerError
from lib.store.folder import FolderDatastore
from lib.train.retrain import Retraining
from liverseg.chain import die_with_parent
from liverseg.files import NotSavedError

logger = logging.getLogger(__name__)

# Bars of processes that MONAI Label starts would push all else out of their status.
os.environ.setdefault("TQDM_DISABLE", "1")

# Of the processes that the server starts: its process id.
SERVER = "LIVERSEG_SERVER"


class LiverSegApp(MONAILabelApp):
    """Every bundle under `bundles/` beside this folder, and under `model/` in it, as a model.

    Args:
        app_dir: this folder.
        studies: folder of scans, or the address of a DICOMweb server.
        conf: what `--conf` gave, see `Conf`.

    Raises:
        InputError: for what `conf` may not say.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.options = read_conf(conf)
        # What is written of patients is for nobody else: labels, copies of scans, sessions, logs.
        os.umask(0o077)
        keep_recent_lines()
        folder = Path(app_dir).resolve()
        self.bundles, refused = find_bundles(
            [folder.parent / "bundles", folder / "model"], self.options.models
        )
        for name, bundle in self.bundles.items():
            logger.info("Taken: %s (%s)", name, bundle.state())
        for name, reason in refused.items():
            logger.warning("Not taken: %s: %s", name, reason)
        self.scores = find_scores(self.bundles, self.options.score_model)
        # A process that MONAI Label's server has started for one task: nobody else could stop it.
        self.is_task = (
            getattr(sys.modules["__main__"].__spec__, "name", "")
            == "monailabel.interfaces.utils.app"
        )
        if self.is_task:
            die_with_parent(int(os.environ.get(SERVER, os.getppid())))
        else:
            os.environ[SERVER] = str(os.getpid())
        super().__init__(
            app_dir,
            studies,
            dict(conf),
            name="liverseg",
            description="Liver and abdominal organs in CT and MRI. For research, not a medical "
            "device." + "".join(f" Not taken: {name}: {why}" for name, why in refused.items()),
        )
        self.infers, self.trainers, self.strategies = self._infers, self._trainers, self._strategies

    def init_datastore(self) -> Datastore:
        """A folder's studies or a DICOMweb server's, in a datastore for several threads."""
        if self.studies.startswith(("http://", "https://")):
            from lib.store.dicomweb import connect

            return connect(self.studies)
        return FolderDatastore(
            self.studies,
            watch=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD and not self.is_task,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY or self.is_task,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """One for each bundle, and what corrects their masks.

        Clients list by type what segments and what takes clicks, so a bundle that does both is
        there twice: under its own name, and as `NAME_seg`, as in MONAI Label's own app.
        """
        store = ProbabilityStore(
            Path(Sessions(settings.MONAI_LABEL_SESSION_PATH).store_path).parent / "probabilities"
        )
        segmentations: dict[str, Segmentation] = {}
        automatic: dict[str, Segmentation] = {}
        for name, bundle in self.bundles.items():
            if "clicks" in bundle.config:
                segmentations[name] = ClickSegmentation(bundle, store)
                automatic[f"{name}_seg"] = Segmentation(bundle, store)
            else:
                segmentations[name] = Segmentation(bundle, store)
        return {
            **segmentations,
            **automatic,
            "scribbles": Scribbles(segmentations),
            "clean_up": CleanUp(),
        }

    def init_trainers(self) -> dict[str, TrainTask]:
        """One for each bundle that can be trained and evaluated."""
        # Beside the list of the studies; of a DICOMweb server that is in the cache.
        validation_file = self.datastore().folder / "validation.json"
        needed = ("train.json", "evaluate.json")
        known = [name for bundle in self.bundles.values() for name in bundle.labels]
        return {
            name: Retraining(bundle, validation_file, known)
            for name, bundle in self.bundles.items()
            if all((bundle.folder / "configs" / config).is_file() for config in needed)
        }

    def info(self) -> dict[str, Any]:
        """MONAI Label's, with the newest training first: 3D Slicer's bar shows the first one."""
        info = super().info()
        stats = sorted(
            info["train_stats"].items(), key=lambda item: item[1].get("start_ts", 0), reverse=True
        )
        return {**info, "train_stats": dict(stats)}

    def infer(
        self, request: Mapping[str, Any], datastore: Datastore | None = None
    ) -> dict[str, Any]:
        """As MONAI Label's, which takes an id for a file in the folder that it was started in."""
        image, store = request["image"], datastore or self.datastore()
        # A file that was sent along, or that of a session.
        if os.path.isabs(image):
            return super().infer(request, store)
        file = store.get_image_uri(image)
        # Of a DICOM series; the file that is made of it does not say them.
        warnings = store.get_image_info(image).get("warnings", [])
        result = super().infer({**request, "image": file, "warnings": warnings}, store)
        if not request.get("save_label"):
            return result
        tag = request.get("label_tag", DefaultLabelTag.ORIGINAL)
        info = {"model": request["model"], "params": result["params"]}
        return {**result, "label": store.save_label(image, result["file"], tag, info)}

    def init_batch_infer(self) -> Callable:
        """Many scans in turn."""
        return BatchSegmentation()

    def init_strategies(self) -> dict[str, Strategy]:
        """Ways to choose the next scan."""
        scores, minutes = self.scores, self.options.hold_minutes
        return {
            "first": First("By name", minutes),
            "random": Random("By chance", minutes),
            "uncertain": HighestScore(
                "What the model is least sure of", minutes, scores["uncertainty"]
            ),
            "disagreement": HighestScore(
                "What planes or models disagree on", minutes, scores["disagreement"]
            ),
        }

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """What the strategies choose by, and how good the model is."""
        return dict(self.scores)

    def scoring(
        self, request: Mapping[str, Any], datastore: Datastore | None = None
    ) -> dict[str, Any]:
        """Score scans; in a process of its own, behind all that annotators wait for."""
        if not self._server_mode and hasattr(os, "nice"):
            os.nice(19)
        return super().scoring(request, datastore)

    def async_scoring(self, method: str | None, params: Mapping[str, Any] | None = None) -> Any:
        """Start what has anything to score and is neither running nor waiting.

        MONAI Label asks for all methods at the start, for each next scan and after each training,
        and starts a process for each. `disagreement`, which asks several models, is only started by
        name.
        """
        if not self._server_mode:
            return super().async_scoring(method, params)
        busy = {
            task["request"]["method"]
            for task in tasks("scoring")
            if task["status"] in ("SUBMITTED", "RUNNING")
        }
        methods = [method] if method else ["uncertainty", "dice"]
        try:
            started = {
                name: super(LiverSegApp, self).async_scoring(name, params)
                for name in methods
                if name not in busy and self.scores[name].pending(self.datastore())
            }
        # Who saved a label or asked for a scan has got it.
        except (DicomServerError, NotSavedError) as error:
            logger.warning("No scores: %s", error)
            return {}
        return started.get(method) if method else started

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """As MONAI Label's, and start the scores of the strategy."""
        result = super().next_sample(request)
        strategy = self.strategies[request["strategy"]]
        if self._auto_update_scoring and isinstance(strategy, HighestScore):
            self.async_scoring(strategy.scores.name)
        return result

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """Start the Dice of the model against the new label."""
        super().on_save_label(image_id, label_id)
        if self._auto_update_scoring:
            self.async_scoring("dice")

    # MONAI Label has no other way to have sessions of one's own.
    def _load_sessions(self, load: bool = False) -> Sessions | None:
        own = settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY
        return SafeSessions(*own) if load else None

    def on_init_complete(self) -> None:
        """Patch the server, which is there by now, and not in the processes that it starts."""
        import monailabel.app

        from lib.patches.apply import apply

        apply(monailabel.app.app, self.options)
        super().on_init_complete()
