"""What trains and what validates of a DICOM server, whose scans are called by their UIDs."""

from __future__ import annotations

import json
import os
import sysconfig

import nibabel as nib
import numpy as np
import pytest
from helpers.bundle_runs import AFFINE, make_scan
from helpers.dataset_trees import turned, write_series
from helpers.label_bundles import stop_watching, tiny_bundle

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
from dicomweb_client import DICOMfileClient

from lib.bundle import read_bundle
from lib.store.dicomweb import DicomwebDatastore
from lib.train.retrain import Retraining
from lib.train.scans import items, patient
from liverseg.data import load_datalist

# Three patients, of whom one came twice; nothing but the last part tells their UIDs apart, and one
# has no name.
SCANS = {"1.2.840.11.1": "one", "1.2.840.11.2": "two", "1.2.840.22.3": "two", "1.2.840.33.4": None}
STUDIES = dict(zip(SCANS, ("1.2.840.91", "1.2.840.92", "1.2.840.93", "1.2.840.94"), strict=True))
NEEDED = (
    "PatientName",
    "StudyDate",
    "StudyTime",
    "PatientSex",
    "PatientBirthDate",
    "StudyID",
    "AccessionNumber",
)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A DICOM server with the scans, all labelled."""
    monkeypatch.setenv("PATH", sysconfig.get_path("scripts"), prepend=os.pathsep)
    folder = tmp_path / "dicom"
    for number, (series, whose) in enumerate(SCANS.items()):
        image, affine = turned(make_scan(number)[0], AFFINE, "LPS")
        names = [f"{series}_{k}.dcm" for k in range(image.shape[2])]
        tags = {
            "SeriesInstanceUID": series,
            "StudyInstanceUID": STUDIES[series],
            "FrameOfReferenceUID": f"{series}.9",
        }
        empty = dict.fromkeys((*NEEDED, "ReferringPhysicianName"), "")
        write_series(
            folder, image, affine, names, PatientID=whose or "", SeriesNumber=1, **tags, **empty
        )
    client = DICOMfileClient(url=folder.as_uri(), in_memory=True, update_db=True)
    store = DicomwebDatastore(
        client=client, search_filter={"Modality": "CT"}, cache_path=str(tmp_path / "cache")
    )
    for number, series in enumerate(SCANS):
        nib.save(nib.Nifti1Image(make_scan(number)[1], AFFINE), tmp_path / "label.nii.gz")
        names = [{"name": name, "idx": value} for value, name in enumerate(["Liver", "Tumor"], 1)]
        store.save_label(series, str(tmp_path / "label.nii.gz"), "final", {"label_info": names})
    yield store
    stop_watching(store)


def test_a_training_takes_its_scans_and_keeps_patients_apart(store, tmp_path):
    patients = {series: whose or STUDIES[series] for series, whose in SCANS.items()}
    assert {series: patient(store, series) for series in SCANS} == patients
    # The same before anything is downloaded.
    other = DicomwebDatastore(
        client=store.server.client,
        search_filter={"Modality": "CT"},
        cache_path=str(tmp_path / "other"),
    )
    stop_watching(other)
    assert {series: patient(other, series) for series in SCANS} == patients

    task = Retraining(
        read_bundle(tiny_bundle(tmp_path / "lits", "deepedit_liver")), tmp_path / "validation.json"
    )
    _, scans = task.check({"pretrained": False}, store)
    assert sorted(scans["training"] + scans["validation"]) == sorted(SCANS)
    assert not {patients[name] for name in scans["training"]} & {
        patients[name] for name in scans["validation"]
    }
    classes = {"background": 0, "liver": 1, "lesion": 2}
    lists = {
        section: items(store, scans[section], classes, tmp_path)
        for section in ("training", "validation")
    }
    (tmp_path / "datalist.json").write_text(json.dumps(lists))
    values = {name: [value] for name, value in classes.items()}
    for section in ("training", "validation"):
        loaded = load_datalist(tmp_path / "datalist.json", section, classes=values)
        assert [item["patient"] for item in loaded] == [patients[name] for name in scans[section]]
        for name, item in zip(scans[section], loaded, strict=True):
            label = nib.load(item["label"])
            expected = make_scan(list(SCANS).index(name))[1]
            assert np.array_equal(np.asarray(nib.as_closest_canonical(label).dataobj), expected)
