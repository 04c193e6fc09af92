"""A DICOM server that is down, slow, broken or shy, over HTTP."""

from __future__ import annotations

import json
import os
import re
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from fastapi import FastAPI
from helpers.dicom_studies import (
    AFFINE,
    SCAN,
    SERIES,
    SHAPE,
    STUDY,
    Archive,
    make_scan,
    make_segmentation,
)
from helpers.label_bundles import stop_watching
from monailabel.config import settings

from lib.patches import bare_errors
from lib.score.next_scan import First
from lib.store.dicom_server import DicomServerError
from lib.store.dicomweb import connect
from liverseg.errors import InputError

OTHER, THIRD = "1.2.3.8", "1.2.3.9"
LIVER = np.zeros(SHAPE, bool)
LIVER[2:5, 2:5, 1:3] = True


@pytest.fixture
def archive():
    """Three scans, of which the first has a label."""
    return Archive(
        [*make_scan(), *make_scan(OTHER), *make_scan(THIRD), make_segmentation({"liver": LIVER})],
    )


@pytest.fixture
def online(archive):
    """The archive answers until this is closed."""
    with ExitStack() as stack:
        stack.enter_context(archive.serve())
        yield stack


@pytest.fixture
def store(archive, online, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", sysconfig.get_path("scripts"), prepend=os.pathsep)
    store = connect(archive.url)
    yield store
    stop_watching(store)


def voxels(file: str) -> np.ndarray:
    return np.asanyarray(nib.load(file).dataobj)


def save(store, tmp_path, tag: str) -> None:
    file = tmp_path / "drawn.nii.gz"
    nib.save(nib.Nifti1Image(LIVER.astype(np.uint8), AFFINE), file)
    store.save_label(SERIES, str(file), tag, {"label_info": [{"name": "liver", "idx": 1}]})


def test_everything_works_while_it_is_there(store, tmp_path):
    assert set(store.list_images()) == {SERIES, OTHER, THIRD}
    assert store.get_labeled_images() == [SERIES]
    assert np.array_equal(voxels(store.get_image_uri(OTHER)), SCAN)
    assert np.array_equal(voxels(store.get_label_uri(SERIES, "final")), LIVER)
    save(store, tmp_path, "final")
    assert np.array_equal(voxels(store.get_label_uri(SERIES, "final")), LIVER)
    # What OHIF opens it by, and what says whose it is.
    info = store.get_image_info(SERIES)
    assert (info["StudyInstanceUID"], info["SeriesInstanceUID"], info["PatientID"]) == (
        STUDY,
        SERIES,
        "p",
    )


def test_what_was_copied_goes_on_while_it_is_down_and_the_rest_when_it_is_back(
    store, archive, online, tmp_path
):
    label = store.get_label_uri(SERIES, "final")
    online.close()
    assert np.array_equal(voxels(store.get_image_uri(SERIES)), SCAN)
    assert store.get_label_uri(SERIES, "final") == label and np.array_equal(voxels(label), LIVER)
    save(store, tmp_path, "original")
    assert np.array_equal(voxels(store.get_label_uri(SERIES, "original")), LIVER)
    status = store.status()
    assert (status["total"], status["completed"]) == (1, 1)
    shown = (
        rf"found no DICOMweb server at {archive.url} \(ConnectionError\), expected one: start it"
    )
    assert re.search(shown, status["error"])
    for ask in (
        store.list_images,
        # Of a part of the labels, a validation set would be drawn for ever.
        store.get_labeled_images,
        store.get_unlabeled_images,
        store.datalist,
        lambda: store.get_image_uri(OTHER),
        lambda: save(store, tmp_path, "final"),
    ):
        with pytest.raises(DicomServerError, match=shown):
            ask()

    with archive.serve():
        assert "error" not in store.status() and store.status()["total"] == 3
        assert np.array_equal(voxels(store.get_image_uri(OTHER)), SCAN)
        save(store, tmp_path, "final")
        assert len([one for one in archive.instances if one.Modality == "SEG"]) == 2


def test_clients_get_status_503():
    server = FastAPI()
    bare_errors.fix(server)

    request = SimpleNamespace(method="GET", url=SimpleNamespace(path="/datastore/image"))
    answer = server.exception_handlers[InputError](
        request, DicomServerError("studies: found no DICOMweb server.")
    )
    assert answer.status_code == 503
    assert json.loads(answer.body) == {"detail": "studies: found no DICOMweb server."}


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (401, "MONAI_LABEL_DICOMWEB_PASSWORD"),
        (404, "MONAI_LABEL_QIDO_PREFIX"),
        (500, "see its log"),
        (503, "its log"),
    ],
)
def test_a_server_that_refuses(store, archive, status, hint):
    archive.fault = lambda path: status
    for ask in (store.list_images, lambda: connect(archive.url)):
        with pytest.raises(
            DicomServerError, match=rf"the answer {status} of the DICOM server at .*{hint}"
        ):
            ask()


def test_a_server_that_is_none(tmp_path):
    with pytest.raises(InputError, match=r"no DICOMweb server at http://127\.0\.0\.1:9"):
        connect("http://127.0.0.1:9/dicom-web")


def test_a_server_that_says_nothing_is_not_waited_for(store, archive, monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_READ_TIMEOUT", 0.2)
    ended = threading.Event()
    archive.fault = lambda path: ended.wait(60) and None
    try:
        with pytest.raises(DicomServerError, match="ReadTimeout"):
            store.list_images()
    finally:
        ended.set()


@pytest.mark.parametrize(
    ("status", "wrong"), [(500, "found the answer 500"), (200, "that is no DICOM")]
)
@pytest.mark.parametrize("what", ["metadata", "instances"])
def test_what_it_cannot_send_of_one_label_hides_no_other(store, archive, what, status, wrong):
    bad = make_segmentation({"liver": LIVER}, scan=OTHER)
    archive.instances.append(bad)
    # With 200 comes a page for people.
    archive.fault = lambda path: status if bad.SeriesInstanceUID in path and what in path else None
    assert store.get_labeled_images() == [SERIES]
    ((name, shown),) = store.status()["unreadable_labels"].items()
    assert name == (bad.SeriesInstanceUID if what == "metadata" else OTHER) and wrong in shown


def test_a_label_of_which_the_server_is_overloaded_is_asked_for_again(store, archive):
    archive.fault = lambda path: 503 if "instances" in path else None
    with pytest.raises(DicomServerError):
        store.get_labeled_images()
    archive.fault = lambda path: None
    assert store.get_labeled_images() == [SERIES] and store.status()["unreadable_labels"] == {}


@pytest.mark.parametrize("fault", ["cut", "less"])
def test_a_download_that_is_cut_short_is_not_taken_for_the_scan(store, archive, fault):
    archive.fault = lambda path: fault if path.endswith(f"series/{OTHER}") else None
    with pytest.raises(DicomServerError):
        store.get_image_uri(OTHER)
    archive.fault = lambda path: None
    assert np.array_equal(voxels(store.get_image_uri(OTHER)), SCAN)


def hold_up(archive, series) -> tuple[threading.Event, threading.Event]:
    """Make the server wait with a series; set when it is asked for, and to be set to let it go."""
    asked, ended = threading.Event(), threading.Event()

    def wait(path: str) -> None:
        if path.endswith(f"series/{series}"):
            asked.set()
            ended.wait(60)

    archive.fault = wait
    return asked, ended


def test_a_slow_download_holds_up_nothing_else(store, archive):
    store.get_label_uri(SERIES, "final")
    asked, ended = hold_up(archive, OTHER)
    with ThreadPoolExecutor() as pool:
        slow = [pool.submit(store.get_image_uri, OTHER) for _ in range(2)]
        assert asked.wait(60)
        others = [
            pool.submit(store.get_image_uri, SERIES),
            pool.submit(store.get_image_uri, THIRD),
            pool.submit(store.get_label_uri, SERIES, "final"),
        ]
        try:
            assert all(Path(other.result(60)).is_file() for other in others)
            assert not any(one.done() for one in slow)
        finally:
            ended.set()
        assert (
            np.array_equal(voxels(slow[0].result(60)), SCAN)
            and slow[1].result(60) == slow[0].result()
        )


def test_a_scan_that_is_downloaded_keeps_no_other_annotator_waiting(store, archive):
    asked, ended = hold_up(archive, OTHER)
    first = First("by name", 60)
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(first, {"client_id": "one"}, store)
        assert asked.wait(60)
        try:
            # Nor does anybody get it.
            assert pool.submit(first, {"client_id": "two"}, store).result(30) == {"id": THIRD}
            assert pool.submit(first, {"client_id": "three"}, store).result(30) is None
            assert not slow.done()
        finally:
            ended.set()
        assert slow.result(60) == {"id": OTHER}
    assert store.get_image_info(OTHER)["served"].keys() == {"one"}
    assert first({"client_id": "three"}, store) is None


def test_a_server_that_lists_few_series_at_once(store, archive):
    archive.page = 1
    archive.instances.append(make_segmentation({"liver": LIVER}, scan=OTHER))
    assert set(store.list_images()) == {SERIES, OTHER, THIRD}
    assert set(store.get_labeled_images()) == {SERIES, OTHER}


def test_of_a_server_that_filters_nothing_only_labels_are_read_as_labels(store, archive):
    archive.filters = False
    asked: list[str] = []
    archive.fault = asked.append
    assert store.get_labeled_images() == [SERIES]
    label = archive.instances[-1].SeriesInstanceUID
    assert [path for path in asked if path.endswith("metadata")] == [
        f"studies/{STUDY}/series/{label}/metadata"
    ]


def test_a_server_that_knows_no_filters(store, archive):
    archive.filters = False
    assert store.get_image_uri("1.2.3.99") == ""
    assert np.array_equal(voxels(store.get_image_uri(OTHER)), SCAN)
    assert store.get_image_info(OTHER)["SeriesInstanceUID"] == OTHER


def test_a_page_for_people_is_no_list(store, archive):
    archive.fault = lambda path: 200
    for ask in (store.list_images, lambda: connect(archive.url)):
        with pytest.raises(
            DicomServerError, match=rf"a server at {archive.url} that does not answer in DICOMweb"
        ):
            ask()


def test_what_was_deleted_on_the_server_is_gone(store, archive):
    assert store.get_label_uri(SERIES, "final")
    archive.instances = [one for one in archive.instances if one.Modality != "SEG"]
    assert store.get_label_uri(SERIES, "final") == "" and store.datalist() == []
    assert set(store.get_unlabeled_images()) == {SERIES, OTHER, THIRD}
    archive.instances = []
    assert store.list_images() == [] and store.get_image_uri(OTHER) == ""


@pytest.mark.parametrize(
    ("fault", "shown"), [(409, "found the answer 409"), ("keep nothing", "refuses it .272")]
)
def test_a_label_that_the_server_does_not_keep_is_not_saved(store, archive, tmp_path, fault, shown):
    archive.fault = lambda path: fault if path == "studies" else None
    archive.instances.pop()
    with pytest.raises(InputError, match=shown):
        save(store, tmp_path, "final")
    assert SERIES in store.get_unlabeled_images() and store.get_label_uri(SERIES, "final") == ""
