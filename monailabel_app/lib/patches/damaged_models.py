"""`PUT /model` writes any file over the weights in use, while inferences read them.

https://github.com/Project-MONAI/MONAILabel/blob/0.8.5/monailabel/endpoints/model.py#L58-L79
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, UploadFile
from filelock import FileLock
from monailabel.endpoints import model as endpoints
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import file_checksum

from lib.bundle import Bundle
from lib.patches.endpoints import replace
from lib.patches.unchecked_tasks import check_known
from lib.store.uploads import copy_of
from liverseg.networks import load_weights
from liverseg.versions import model_files, new_version, publish, weights_in_use


def fix(server: FastAPI) -> None:
    """Take weights as a new version."""
    replace(server, endpoints.api_update_model, _update)


def _update(model: str, file: UploadFile, **_: Any) -> dict[str, Any]:
    """Put weights into use as a new version; those before stay for inferences that run.

    Args:
        model: its name.
        file: the weights of its network, as `torch.save` writes a state dict.

    Returns:
        `checksum` and `modified_time` of the file, as MONAI Label has them.

    Raises:
        HTTPException: 404 for a model that is not there, or has no single file of weights.
        InputError: for weights that are not those of its network.
    """
    check_known("model", model, app_instance().infers)
    bundle: Bundle | None = app_instance().bundles.get(model)
    files = model_files(weights_in_use(bundle.folder)) if bundle else []
    if bundle is None or any(len(one.parts) > 1 for one in files) or _has_several_networks(bundle):
        raise HTTPException(
            404,
            f"model {model}: found no single file of weights to replace, expected one: copy them "
            "into the bundle's folder models/ instead.",
        )
    with copy_of("file", file, [".pt"]) as path:
        with bundle.workflow({"device": "cpu"}) as parser:
            load_weights(parser.get_parsed_content("network"), path)
        version = new_version(
            bundle.folder, state="training", reason="sent by a client", parent=None
        )
        with FileLock(version.folder / ".lock"):
            saved = version.folder / "model.pt"
            shutil.copyfile(path, saved)
            version.update(state="candidate")
    publish(bundle.folder, version.name)
    return {"checksum": file_checksum(str(saved)), "modified_time": int(saved.stat().st_mtime)}


def _has_several_networks(bundle: Bundle) -> bool:
    with bundle.workflow({}) as parser:
        return "ckpt_path" in parser and isinstance(parser.get_parsed_content("ckpt_path"), Mapping)
