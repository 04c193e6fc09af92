"""Strategies: which scan an annotator gets next."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.score.scores import Scores
from liverseg.errors import InputError

logger = logging.getLogger(__name__)

_choosing = threading.Lock()
# What is about to be given, as `served` of each scan: it is kept in its info when it is there.
_coming: dict[str, dict[str, float]] = defaultdict(dict)


class NextScan(Strategy):
    """The best scan without a final label that no other annotator is on.

    An annotator is on the last scan that they got, until it has a final label, they ask for
    another, or `hold_minutes` are over. Scans that they got before, and so skipped, come after all
    others, the one longest ago first. Who got what and when is kept in the scan's info under
    `served`, by `client_id`.

    Args:
        description: for clients.
        hold_minutes: after which a scan is free again for others.
    """

    def __init__(self, description: str, hold_minutes: float) -> None:
        super().__init__(description)
        self.hold_minutes = hold_minutes

    @abstractmethod
    def order(
        self, images: Sequence[str], request: Mapping[str, Any], datastore: Datastore
    ) -> dict[str, Any]:
        """What to say of each scan, the best first."""

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The `id` of a scan that can be read and what `order` says of it; None where none is left.

        Args:
            request: `client_id` is the annotator's, all without one are the same.
            datastore: the scans.

        Raises:
            HTTPException: as `order`.
        """
        annotator = str(request.get("client_id"))
        while True:
            found = None
            try:
                # Two who ask at once must not get the same.
                with _choosing:
                    found = self._choose(annotator, request, datastore)
                    if found is None:
                        return None
                    _coming[found["id"]][annotator] = time.time()
                # It may have to be downloaded, and nobody else waits for it.
                datastore.get_image_uri(found["id"])
                with _choosing:
                    served = datastore.get_image_info(found["id"]).get("served", {})
                    datastore.update_image_info(
                        found["id"], {"served": {**served, annotator: time.time()}}
                    )
                return found
            except InputError as error:
                # The datastore no longer offers a scan that it has found to be none.
                if found is None or found["id"] in datastore.get_unlabeled_images():
                    raise
                logger.warning("Not given to %s, who gets the next: %s", annotator, error)
            finally:
                if found is not None:
                    _coming[found["id"]].pop(annotator, None)

    def _choose(
        self, annotator: str, request: Mapping[str, Any], datastore: Datastore
    ) -> dict[str, Any] | None:
        images = datastore.get_unlabeled_images()
        every = {
            image: {**datastore.get_image_info(image).get("served", {}), **_coming.get(image, {})}
            for image in datastore.list_images()
        }
        last: dict[str, tuple[float, str]] = {}
        for image, served in every.items():
            for client, when in served.items():
                last[client] = max(last.get(client, (0.0, "")), (when, image))
        since = time.time() - 60 * self.hold_minutes
        held = {
            image for client, (when, image) in last.items() if client != annotator and when > since
        }
        # A scan may be removed between the two lists.
        free = [image for image in images if image in every and image not in held]
        order = self.order(free, request, datastore)
        best = min(order, key=lambda image: every[image].get(annotator, 0.0), default=None)
        return None if best is None else {"id": best, **order[best]}


class First(NextScan):
    """By name."""

    def order(
        self, images: Sequence[str], request: Mapping[str, Any], datastore: Datastore
    ) -> dict[str, Any]:
        """By name; nothing to say of them."""
        return {image: {} for image in sorted(images)}


class Random(NextScan):
    """By chance, the same for the same seed, whatever has been labelled meanwhile."""

    def order(
        self, images: Sequence[str], request: Mapping[str, Any], datastore: Datastore
    ) -> dict[str, Any]:
        """By chance; `seed` of the request chooses the order, 0 without it."""
        seed = request.get("seed", 0)
        return {image: {} for image in sorted(images, key=lambda image: _draw(seed, image))}


class HighestScore(NextScan):
    """By score, the highest first; those without one follow by chance, as `random` has them.

    Args:
        description: for clients.
        hold_minutes: as of `NextScan`.
        scores: computed in the background; only those that hold for the weights in use count.
    """

    def __init__(self, description: str, hold_minutes: float, scores: Scores) -> None:
        super().__init__(description, hold_minutes)
        self.scores = scores

    def order(
        self, images: Sequence[str], request: Mapping[str, Any], datastore: Datastore
    ) -> dict[str, Any]:
        """By score, given as `score`, None for a scan without one.

        Raises:
            HTTPException: 409 if there are no models to score with.
        """
        if not self.scores.models():
            raise HTTPException(
                409,
                f"strategy {request.get('strategy')}: found too few weights for the score "
                f"{self.scores.name}, expected {self.scores.needs}: train, or choose first or "
                "random.",
            )
        values = {
            image: score.get("value") for image, score in self.scores.current(datastore).items()
        }

        def rank(image: str) -> tuple[bool, float, str]:
            value = values.get(image)
            return value is None, -(value or 0.0), _draw(request.get("seed", 0), image)

        return {image: {"score": values.get(image)} for image in sorted(images, key=rank)}


def _draw(seed: Any, image: str) -> str:
    return hashlib.sha256(f"{seed} {image}".encode()).hexdigest()
