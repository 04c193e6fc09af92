"""The faults that `lib/patches` fixes, in MONAI Label as it is.

Where a test here fails, MONAI Label has fixed the fault: remove the patch that its name says, the
patch's line in `lib/patches/apply.py` and the test.
"""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
import jwt
import monailabel.app
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from monailabel.config import settings
from monailabel.datastore.local import LocalDatastore
from monailabel.endpoints.user import auth
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.utils.app import apps
from starlette.testclient import TestClient

from lib.patches.ohif import FOLDER, PANEL


class PlainApp(MONAILabelApp):
    """An app that answers an inference with what it was asked."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder), str(folder / "studies"), {})
        self.weights = folder / "model.pt"
        self.weights.write_bytes(b"weights")

    def infer(self, request, datastore=None):
        try:
            blocks = bool(asyncio.get_running_loop())
        except RuntimeError:
            blocks = False
        return {"params": {"request": request, "blocks": blocks}}

    def model_file(self, model, validate=True):
        return str(self.weights)


@pytest.fixture
def app(tmp_path, monkeypatch) -> PlainApp:
    for name, value in {
        "MONAI_LABEL_APP_DIR": str(tmp_path),
        "MONAI_LABEL_STUDIES": str(tmp_path / "studies"),
        "MONAI_LABEL_SESSION_PATH": str(tmp_path / "sessions"),
        "MONAI_LABEL_DATASTORE_AUTO_RELOAD": False,
    }.items():
        monkeypatch.setattr(settings, name, value)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    app = PlainApp(tmp_path)
    monkeypatch.setitem(apps, f"{tmp_path}{tmp_path / 'studies'}", app)
    return app


@pytest.fixture
def plain(app) -> TestClient:
    """The server of MONAI Label as it is."""
    return TestClient(monailabel.app.app, raise_server_exceptions=False)


def test_any_web_page(plain):
    answer = plain.get("/info/", headers={"Origin": "http://evil.example", "Cookie": "a=b"})
    assert answer.headers["access-control-allow-origin"] == "http://evil.example"
    assert answer.headers["access-control-allow-credentials"] == "true"


def test_bare_errors(plain):
    answer = plain.delete("/datastore/image?id=nobody")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")


def test_blocking_endpoints(plain):
    assert plain.post("/infer/model?image=a&output=json").json()["blocks"]


def test_damaged_models(plain, app):
    assert plain.put("/model/any", files={"file": ("a.pt", b"damaged")}).status_code == 200
    assert app.weights.read_bytes() == b"damaged"


def test_dicomweb_proxy(plain, monkeypatch):
    asked = []

    def get(url: str, **sent):
        asked.append((url, sent["headers"]))
        return SimpleNamespace(raw=io.BytesIO(), status_code=200, headers={})

    monkeypatch.setattr(requests, "get", get)
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "http://dicom.example/dicom-web")
    for path in ("qido/studies?PatientName=Roe", "wado/tools/shutdown"):
        plain.get(f"/proxy/dicom/{path}", headers={"Accept": "image/jp2"})
    assert asked == [
        ("http://dicom.example/dicom-web/studies", {}),
        ("http://dicom.example/dicom-web/tools/shutdown", {}),
    ]


def test_leftover_files(plain, tmp_path):
    sent = {"files": {"file": ("a.nii.gz", b"abc")}, "data": {"params": "{"}}
    assert plain.put("/datastore/image", **sent).status_code == 500
    assert [file.read_bytes() for file in (tmp_path / "temporary").iterdir()] == [b"abc"]


def test_logs(plain, tmp_path, monkeypatch):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "app.log").write_text("a line of another server\n")
    assert plain.get("/logs/?text=true").text == "a line of another server\n"
    monkeypatch.setenv("PATH", "")
    assert plain.get("/logs/gpu").status_code == 500


def test_ohif(plain):
    assert plain.get(f"/ohif/{PANEL}").text.count(":8000") == 2
    page = (FOLDER / "index.html").read_bytes()
    assert plain.get("/ohif/assets/favicon-16x16.png").content == page


def test_reload(plain, app):
    assert plain.post("/reload").status_code == 200
    assert app not in apps.values()


def test_tokens(monkeypatch):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    public = key.public_key().public_bytes(*form)
    monkeypatch.setattr(settings, "MONAI_LABEL_AUTH_ENABLE", True)
    monkeypatch.setattr(auth, "get_public_key", lambda realm: public)
    with pytest.raises(jwt.DecodeError, match="algorithms"):
        auth.from_token(jwt.encode({"preferred_username": "ann"}, key, "RS256"))


def test_unchecked_sessions(plain, tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../outside"))
    files = {"files": ("a.tar", packed.getvalue())}
    assert plain.put("/session/?uncompress=true", files=files).status_code == 200
    assert (tmp_path / "temporary" / "outside").is_file()


def test_unchecked_studies(plain):
    assert plain.put("/datastore/image", files={"file": ("a.nii.gz", b"abc")}).status_code == 200
    assert plain.get("/datastore/?output=all").json()["objects"].keys() == {"a"}


def test_unchecked_tasks(plain):
    params = json.dumps({"image": "/etc/hostname", "nonsense": 1})
    answer = plain.post("/infer/nobody?image=a&output=json", data={"params": params}).json()
    assert answer["request"]["image"] == "/etc/hostname"
    assert answer["request"]["nonsense"] == 1


def test_unlimited_uploads(plain):
    words = ("LIMIT", "MAX", "SIZE")
    assert not [name for name in type(settings).model_fields if any(one in name for one in words)]
    files = {"file": ("a.nii.gz", bytes(5 * 10**6))}
    assert plain.put("/datastore/image", files=files).status_code == 200


def test_whole_slides(plain):
    assert plain.post("/infer/wsi_v2/nobody", data={"wsi": "{"}).status_code == 500


# --- faults that classes of this app meet


def test_a_batch_ends_at_the_first_error(app, monkeypatch):
    """`lib.infer.batch` goes on, and needs no GPU."""

    def fail(request, datastore):
        raise RuntimeError(request["image"])

    store = SimpleNamespace(list_images=lambda: ["a", "b"])
    asked = {"max_workers": 1, "multi_gpu": False, "device": "cpu"}
    with pytest.raises(RuntimeError, match="a"):
        BatchInferTask()(asked, store, fail)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ZeroDivisionError):
        BatchInferTask()({**asked, "multi_gpu": True, "gpus": "all"}, store, fail)


def test_a_list_of_scans_is_one_threads(tmp_path):
    """`lib.store.local` reads it anew before it changes anything."""
    (tmp_path / "a.nii.gz").touch()
    one, other = (LocalDatastore(str(tmp_path)) for _ in range(2))
    one.update_image_info("a", {"first": 1})
    other.update_image_info("a", {"second": 2})
    assert LocalDatastore(str(tmp_path)).get_image_info("a").keys() >= {"second"}
    assert "first" not in LocalDatastore(str(tmp_path)).get_image_info("a")


def test_any_file_is_a_scan(tmp_path):
    """`lib.store.folder` offers those alone that can be read."""
    (tmp_path / "empty.nii.gz").touch()
    assert LocalDatastore(str(tmp_path)).get_unlabeled_images() == ["empty"]
