"""The MONAI Label app: annotate with any bundle."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask

from lib.bundles import find_bundles
from lib.datastore import LockedDatastore
from lib.infers.batch import BatchSegmentation
from lib.infers.correct import CleanUp, Scribbles
from lib.infers.segment import Segmentation
from liverseg.errors import InputError

logger = logging.getLogger(__name__)

# Bars of processes that MONAI Label starts would push all else out of their status.
os.environ.setdefault("TQDM_DISABLE", "1")


class LiverSegApp(MONAILabelApp):
    """Every bundle under `bundles/` beside this folder, and under `model/` in it, as a model.

    Args:
        app_dir: this folder.
        studies: folder of scans, or the address of a DICOMweb server.
        conf: what `--conf` gave, all as text: `models` (names, separated by commas), `inferences` (at once),
            `max_upload_mb`.
    """

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        names = [name.strip() for name in conf.get("models", "").split(",") if name.strip()]
        self.inferences = _positive("inferences", conf.get("inferences", "2"))
        self.max_upload_mb = _positive("max_upload_mb", conf.get("max_upload_mb", "4096"))
        folder = Path(app_dir).resolve()
        self.bundles, refused = find_bundles([folder.parent / "bundles", folder / "model"], names)
        for name, bundle in self.bundles.items():
            logger.info("Taken: %s (%s)", name, bundle.state())
        for name, reason in refused.items():
            logger.warning("Not taken: %s: %s", name, reason)
        super().__init__(
            app_dir,
            studies,
            dict(conf),
            name="liverseg",
            description="Liver and abdominal organs in CT and MRI. For research, not a medical device."
            + "".join(f" Not taken: {name}: {reason}" for name, reason in refused.items()),
        )

    def init_datastore(self) -> Datastore:
        """A folder's studies in a datastore that several threads may use."""
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return LockedDatastore(
            self.studies,
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """One for each bundle, and what corrects their masks."""
        segmentations = {name: Segmentation(bundle) for name, bundle in self.bundles.items()}
        return {**segmentations, "scribbles": Scribbles(), "clean_up": CleanUp()}

    def init_batch_infer(self) -> Callable:
        """Many scans in turn."""
        return BatchSegmentation()

    def on_init_complete(self) -> None:
        """Mend the server, which is there when this is called and not in the processes that it starts."""
        import monailabel.app

        from lib.server import mend

        mend(monailabel.app.app, self.inferences, self.max_upload_mb)
        super().on_init_complete()


def _positive(key: str, text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise InputError(f"{key}: found {text!r}, expected a whole number above 0: mend --conf {key}.")
    return int(text)
