"""The app as 3D Slicer meets it: through MONAI Label's own client."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
import requests
from helpers.bundle_runs import AFFINE, make_scan, save
from helpers.dataset_trees import write_series
from helpers.label_bundles import SMALL_2D, SMALL_3D, run_bundle, tiny_bundle, write_weights
from helpers.waiting import wait_until

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')
import nrrd

FOLDERS = {
    "two_d": "bundles/two_d",
    "three_d": "monailabel_app/model/three_d",
    "untrained": "bundles/untrained",
}
FILES = {"plain": "plain.nii.gz", "oblique": "oblique.nii"}


@pytest.fixture(scope="session")
def expected(root, tmp_path_factory):
    """The mask of a bundle for a scan, by the bundle's own inference."""
    known = {}

    def mask(bundle: str, image: str, **settings):
        key = (bundle, image, str(settings))
        if key not in known:
            scan = root / "studies" / FILES[image]
            known[key] = nib.load(
                run_bundle(root / FOLDERS[bundle], scan, tmp_path_factory.mktemp("m"), **settings)
            )
        return known[key]

    return mask


@pytest.fixture
def untrained(root):
    """The folder of the bundle without weights, which has none again for the tests after."""
    folder = root / FOLDERS["untrained"]
    yield folder
    shutil.rmtree(folder / "models")


def assert_same(file: str, mask: nib.Nifti1Image) -> None:
    found = nib.load(file)
    assert found.get_data_dtype() == np.uint8
    assert np.array_equal(np.asanyarray(found.dataobj), np.asanyarray(mask.dataobj))
    assert np.array_equal(found.affine, mask.affine)


# --- start


def test_takes_what_is_a_bundle_and_says_why_the_rest_is_none(client, server):
    info = client.info()
    assert sorted(info["models"]) == [
        *("clean_up", "clicks", "clicks_seg", "scribbles", "three_d", "two_d", "untrained", "waits")
    ]
    log = server.log.read_text()
    for name, reason in {
        "damaged": "no JSON",
        "of_the_future": "expected 9.1",
        "with_code": "code of its own (scripts/network.py)",
    }.items():
        (line,) = (line for line in log.splitlines() if f"Not taken: bundles/{name}" in line)
        assert reason in line
        assert name in info["description"]


def test_starts_and_runs_without_network(client, root):
    client.infer("two_d", "plain", {})
    assert not (root / "connections").exists()


def test_models_say_their_labels_options_and_state(client):
    models = client.info()["models"]
    assert models["two_d"]["labels"] == {"liver": 1, "lesion": 2}
    assert models["three_d"]["labels"]["portal vein"] == 2
    assert {
        name: model["state"] == "ready" for name, model in models.items() if "state" in model
    } == {
        "two_d": True,
        "three_d": True,
        "waits": True,
        "clicks": True,
        "clicks_seg": True,
        "untrained": False,
    }
    assert all(
        models[name]["type"] == "segmentation"
        for name in ("two_d", "three_d", "waits", "untrained")
    )
    assert all(model["dimension"] == 3 for model in models.values())
    options = models["two_d"]["config"]
    assert options["postprocessing"][0] == "none"
    assert options["version"] == ["in use"]
    # 3D Slicer shows lists of text only.
    assert all(isinstance(value, str) for values in options.values() for value in values)


# --- segment


@pytest.mark.parametrize("image", ["plain", "oblique"])
@pytest.mark.parametrize("model", ["two_d", "three_d"])
def test_is_the_bundles_own_inference_voxel_for_voxel(client, root, expected, model, image):
    file, result = client.infer(model, image, {})
    assert_same(file, expected(model, image))
    values = np.asanyarray(expected(model, image).dataobj)
    assert len(np.unique(values)) > 1
    assert sorted(result["label_names"].values()) == sorted(set(np.unique(values)) - {0})
    scan = nib.load(root / "studies" / FILES[image])
    assert nib.load(file).shape == scan.shape
    assert np.allclose(nib.load(file).affine, scan.affine, atol=1e-5)


def test_the_answer_says_what_is_odd_about_the_scan(client, server, tmp_path):
    """Those of the studies are noise; this one is air around tissue and fat."""
    _, result = client.infer("two_d", "plain", {})
    flag = result["flags"]["intensities"]
    assert "not those of a CT in HU" in flag
    assert f"plain.nii.gz: {flag}" in server.log.read_text()
    # 3D Slicer and OHIF show these alone.
    assert result["warnings"] == list(result["flags"].values())
    body = np.full((20, 20, 6), -1000, np.int16)
    body[3:-3, 3:-3], body[3:-3, 3:5] = 40, -100
    save(tmp_path / "body.nii.gz", body)
    _, result = client.infer("two_d", "", {}, file=str(tmp_path / "body.nii.gz"))
    assert "intensities" not in result["flags"] and result["warnings"] == list(
        result["flags"].values()
    )
    save(tmp_path / "metres.nii.gz", body, AFFINE / [[1000], [1000], [1000], [1]])
    _, result = client.infer("two_d", "", {}, file=str(tmp_path / "metres.nii.gz"))
    assert ["seems to be in metres" in warning for warning in result["warnings"][:2]] == [
        True,
        False,
    ]


def test_the_answer_says_why_the_mask_may_be_wrong(client, tmp_path):
    """The bundle with clicks finds what is bright: here on the right, from the lowest slice on."""
    body = np.full((20, 20, 6), -1000, np.int16)
    body[3:-3, 3:-3], body[3:-3, 3:5] = 40, -100
    body[12:16, 7:14, :3] = 290
    save(tmp_path / "body.nii.gz", body)
    file, result = client.infer("clicks_seg", "", {}, file=str(tmp_path / "body.nii.gz"))
    mask = np.asanyarray(nib.load(file).dataobj) == 1
    assert mask[..., 0].any() and not mask[..., -1].any()
    assert sorted(result["flags"]) == ["cut_off", "hu"]
    assert "lowest slice" in result["flags"]["cut_off"]
    assert f"is {body[mask].mean():.0f} HU, expected 20 to 180 HU" in result["flags"]["hu"]
    assert result["warnings"] == list(result["flags"].values())


def test_the_answer_says_what_is_odd_about_a_dicom_series(client, root):
    folder, scan = root / "studies" / "tilt", make_scan(0)[0]
    tilted = np.diag([2.0, 2, 5, 1]) + np.eye(4, k=1) * [[0], [1.5], [0], [0]]
    write_series(
        folder,
        scan,
        tilted,
        [f"{k}.dcm" for k in range(scan.shape[2])],
        SeriesInstanceUID="1.2.3.7",
    )
    try:
        wait_until(lambda: "tilt" in client.datastore()["objects"])
        for _ in range(2):
            _, result = client.infer("two_d", "tilt", {})
            flagged = list(result["flags"].values())
            assert "tilted gantry" in result["warnings"][0] and result["warnings"][1:] == flagged
    finally:
        shutil.rmtree(folder)
    wait_until(lambda: "tilt" not in client.datastore()["objects"])


def test_options_reach_the_bundle(client, expected):
    flips = "[[0], [1], [0, 1]]"
    file, _ = client.infer("two_d", "plain", {"flips": flips})
    mask = expected("two_d", "plain", flips=json.loads(flips))
    assert_same(file, mask)
    assert not np.array_equal(mask.dataobj, expected("two_d", "plain").dataobj)
    file, _ = client.infer("three_d", "plain", {"postprocessing": "keep_largest"})
    mask = expected("three_d", "plain", postprocessing="@postprocessings#keep_largest")
    assert_same(file, mask)
    assert not np.array_equal(mask.dataobj, expected("three_d", "plain").dataobj)


def test_nrrd_holds_the_same_voxels_at_the_same_places(client, expected):
    """With the options that OHIF and 3D Slicer send."""
    slicer = {"result_extension": ".nrrd", "result_dtype": "uint8"}
    client.infer("three_d", "oblique", slicer)
    file, _ = client.infer(
        "three_d", "oblique", {**slicer, "result_compress": False, "restore_label_idx": False}
    )
    voxels, header = nrrd.read(file)
    assert header["encoding"] == "raw"
    mask = expected("three_d", "oblique")
    assert voxels.dtype == np.uint8
    assert np.array_equal(voxels, mask.dataobj)
    corner = np.array(voxels.shape) - 1
    lps = header["space directions"].T @ corner + header["space origin"]
    assert header["space"] == "left-posterior-superior"
    assert np.allclose(lps * [-1, -1, 1], (mask.affine @ [*corner, 1])[:3])


def test_what_ohif_asks_is_answered(server):
    asked = {
        "result_extension": ".nrrd",
        "result_dtype": "uint8",
        "result_compress": False,
        "label_prompt": [1],
    }
    params = {"params": (None, json.dumps({**asked, "restore_label_idx": False}))}
    answer = requests.post(
        f"{server.url}/infer/two_d?image=plain&output=image", files=params, timeout=60
    )
    assert answer.status_code == 200
    assert answer.content.startswith(b"NRRD")


def test_refusals_are_in_the_log(server):
    requests.post(f"{server.url}/infer/untrained?image=nowhere", timeout=60)
    log = requests.get(f"{server.url}/logs/?lines=200&html=false", timeout=60).text
    assert "POST /infer/untrained: 404 image: found 'nowhere'" in log


def test_segments_bear_names_and_colours(client):
    file, result = client.infer("three_d", "plain", {"result_extension": ".seg.nrrd"})
    header = nrrd.read_header(file)
    named = {
        header[f"Segment{i}_Name"]: int(header[f"Segment{i}_LabelValue"])
        for i in range(len(result["label_names"]))
    }
    assert named == result["label_names"]
    # 3D Slicer's GenericAnatomyColors.
    colours = {"liver": (221, 130, 101), "spleen": (157, 108, 162), "pancreas": (249, 180, 111)}
    for number, name in enumerate(named):
        rgb = [float(part) * 255 for part in header[f"Segment{number}_Color"].split()]
        assert np.allclose(rgb, colours.get(name, rgb), atol=0.5)
    assert set(colours) & set(named)


def test_a_scan_that_is_sent_along_and_one_of_a_session(client, root, expected):
    file, _ = client.infer("two_d", "", {}, file=str(root / "studies" / "oblique.nii"))
    assert_same(file, expected("two_d", "oblique"))
    session = client.create_session(str(root / "studies" / "oblique.nii"))["session_id"]
    file, _ = client.infer("two_d", "", {}, session_id=session)
    assert_same(file, expected("two_d", "oblique"))
    client.remove_session(session)


def test_two_bundles_asked_by_eight_threads(server, expected):
    """Every answer is that of the bundle and the scan that were asked for."""
    asked = [(model, image) for model in ("two_d", "three_d") for image in FILES]
    masks = {key: np.asanyarray(expected(*key).dataobj) for key in asked}
    assert len({mask.tobytes() for mask in masks.values()}) == len(asked)

    def ask(thread: int) -> list[bool]:
        right = []
        for number in range(25):
            model, image = asked[(thread + number) % len(asked)]
            answer = requests.post(
                f"{server.url}/infer/{model}?image={image}&output=image", timeout=600
            )
            answer.raise_for_status()
            suffix = "".join(answer.headers["content-disposition"].rstrip('"').partition(".")[1:])
            assert suffix == ".nii.gz"
            found = nib.Nifti1Image.from_bytes(gzip.decompress(answer.content))
            right.append(np.array_equal(found.dataobj, masks[model, image]))
        return right

    with ThreadPoolExecutor(8) as threads:
        right = [one for some in threads.map(ask, range(8)) for one in some]
    assert len(right) == 200
    assert all(right)


def test_weights_that_appear_and_change_need_no_restart(client, server, untrained, expected):
    answer = requests.post(f"{server.url}/infer/untrained?image=plain", timeout=60)
    assert answer.status_code == 409
    assert "models/model.pt" in answer.json()["detail"]
    assert "train it" in answer.json()["detail"]
    answer = requests.post(f"{server.url}/batch/infer/untrained", timeout=60)
    assert answer.status_code == 409

    write_weights(untrained, 3)
    assert client.info()["models"]["untrained"]["state"] == "ready"
    assert_same(client.infer("untrained", "plain", {})[0], expected("untrained", "plain"))

    versions = untrained / "models" / "versions"
    (versions / "1").mkdir(parents=True)
    shutil.copy(versions.parent / "model.pt", versions / "1")
    write_weights(untrained, 4)
    assert client.info()["models"]["untrained"]["config"]["version"] == ["in use", "1"]
    assert_same(
        client.infer("untrained", "plain", {"version": "1"})[0], expected("untrained", "plain")
    )
    found = nib.load(client.infer("untrained", "plain", {})[0])
    assert not np.array_equal(found.dataobj, expected("untrained", "plain").dataobj)


def test_weights_that_are_sent_become_a_version(server, client, root, untrained, tmp_path):
    url = f"{server.url}/model/untrained"
    before = write_weights(untrained, 5).read_bytes()
    new = write_weights(
        tiny_bundle(tmp_path / "other", "mixed_unet_lits", **SMALL_2D), 6
    ).read_bytes()
    answer = requests.put(url, files={"file": ("model.pt", new)}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["checksum"] == f"SHA256:{hashlib.sha256(new).hexdigest()}"
    assert requests.get(url, timeout=60).content == new
    kept = {path.read_bytes() for path in untrained.glob("models/versions/*/model.pt")}
    assert {before, new} <= kept
    mask = run_bundle(tmp_path / "other", root / "studies" / "plain.nii.gz", tmp_path / "mask")
    assert_same(client.infer("untrained", "plain", {})[0], nib.load(mask))

    wrong = write_weights(
        tiny_bundle(tmp_path / "wrong", "unet3d_abdomen", **SMALL_3D), 0
    ).read_bytes()
    for body in (wrong, new[:1000]):
        answer = requests.put(url, files={"file": ("model.pt", body)}, timeout=60)
        assert answer.status_code == 400
        assert "model.pt" in answer.json()["detail"]
    assert (
        requests.put(
            f"{server.url}/model/scribbles", files={"file": ("model.pt", new)}, timeout=60
        ).status_code
        == 404
    )
    assert requests.get(url, timeout=60).content == new


def test_many_scans_of_which_one_is_damaged(client, server):
    url = f"{server.url}/batch/infer"
    assert requests.post(f"{url}/two_d?images=unlabeled", timeout=60).status_code == 200
    # Submitted, it is not running yet.
    wait_until(
        lambda: requests.get(url, timeout=60).json()["status"] not in ("SUBMITTED", "RUNNING")
    )
    task = requests.get(url, timeout=60).json()
    assert task["status"] == "DONE", task
    details = "\n".join(task["details"])
    assert "3 / 3" in details
    assert "not readable as a volume" in details
    labelled = {
        name for name, item in client.datastore()["objects"].items() if "original" in item["labels"]
    }
    assert labelled == {"plain", "oblique"}


# --- behave


def test_answers_while_an_inference_runs(server, client, root):
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(requests.post, f"{server.url}/infer/waits?image=plain", timeout=900)
        try:
            wait_until((root / "begun").exists)
            for address in ("info/", "datastore/", "datastore/image?image=plain"):
                assert requests.get(f"{server.url}/{address}", timeout=60).status_code == 200
            # A second one is not held up either.
            assert (
                requests.post(f"{server.url}/infer/two_d?image=plain", timeout=60).status_code
                == 200
            )
            assert not running.done()
        finally:
            (root / "opened").touch()
        assert running.result().status_code == 200


def test_no_file_of_the_server_is_read(server, root, tmp_path):
    save(tmp_path / "secret.nii.gz", make_scan(5)[0])
    secret = str(tmp_path / "secret.nii.gz")
    for name in (secret, "../studies/plain.nii.gz", str(root / "studies" / "plain.nii.gz")):
        answer = requests.post(f"{server.url}/infer/two_d", params={"image": name}, timeout=60)
        assert answer.status_code == 404, answer.text
        answer = requests.post(
            f"{server.url}/infer/wsi_v2/two_d", params={"image": name}, timeout=60
        )
        assert answer.status_code == 404, answer.text
    for key in ("image", "label", "model", "session"):
        body = {"params": json.dumps({key: secret})}
        answer = requests.post(f"{server.url}/infer/two_d?image=plain", data=body, timeout=60)
        assert answer.status_code == 400, answer.text
    # The first would be read, the second run.
    for body in ({"images": [secret]}, {"bundle_path": str(tmp_path)}):
        answer = requests.post(f"{server.url}/batch/infer/two_d", json=body, timeout=60)
        assert answer.status_code == 400, answer.text


def test_an_upload_is_taken_up(client, root, tmp_path):
    save(tmp_path / "scan.nii.gz", make_scan(3)[0])
    assert client.upload_image(str(tmp_path / "scan.nii.gz"), "new")["image"] == "new"
    assert client.infer("two_d", "new", {})[0]
    requests.delete(
        f"{client.get_server_url()}/datastore/image?id=new", timeout=60
    ).raise_for_status()
