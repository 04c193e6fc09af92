"""`/infer/wsi` runs what it is asked for without a check, and `wsi` that is no JSON is a 500.

https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/endpoints/wsi_infer.py#L135-L146
"""

from __future__ import annotations

from fastapi import FastAPI, HTTPException

from lib.patches.endpoints import answer_first


def fix(server: FastAPI) -> None:
    """Refuse whole slides, of which this app has none."""
    for path in ("/infer/wsi/{model}", "/infer/wsi_v2/{model}"):
        answer_first(server, path, _refuse, ["POST"])


def _refuse(model: str) -> None:
    raise HTTPException(
        404,
        f"model: found {model!r} asked for a whole slide, expected /infer: this app has volumes.",
    )
