"""Wrong requests: each gets a sentence that says so, and leaves no trace that others would meet."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile

import nibabel as nib
import numpy as np
import pytest
import requests
from helpers.bundle_runs import AFFINE, make_scan
from helpers.dataset_trees import write_series

pytest.importorskip("monailabel", reason='needs pip install ".[label]"')

LONG = "n" * 300
DEEP = "[" * 5000


def packed(voxels: np.ndarray, affine: np.ndarray = AFFINE) -> bytes:
    return gzip.compress(nib.Nifti1Image(voxels, affine).to_bytes())


SCAN, LABEL = packed(make_scan(9)[0]), packed(make_scan(9)[1])
RGB = [("R", "u1"), ("G", "u1"), ("B", "u1")]


def raw(shape: tuple[int, ...] = (4, 4, 4), value: int = 0) -> bytes:
    return nib.Nifti1Image(np.full(shape, value, np.int8), AFFINE).to_bytes()


def huge(side: int) -> bytes:
    """A file that announces more voxels than it has."""
    header = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), AFFINE).header
    header.set_data_shape((side, side, side))
    header["vox_offset"] = 352
    return gzip.compress(header.binaryblock + bytes(100))


def bent(image: bytes, value: float) -> bytes:
    """The same with an affine that maps nothing."""
    start = bytearray(gzip.decompress(image))
    start[280:284] = np.float32(value).tobytes()
    return gzip.compress(bytes(start))


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


def damaged(archive: bytes) -> bytes:
    return archive[:100] + b"noise" * 9 + archive[145:]


def tarred(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def ask(server, root):
    def ask(method: str, address: str, **sent) -> requests.Response:
        answer = requests.request(method, f"{server.url}/{address}", timeout=60, **sent)
        assert str(root) not in answer.text or answer.status_code == 200
        return answer

    return ask


def check_refused(answer: requests.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert isinstance(detail, str)
    assert "\n" not in detail
    assert "/tmp" not in detail
    assert "site-packages" not in detail
    for word in words:
        assert word in detail, detail


def check_done(answer: requests.Response) -> None:
    assert answer.status_code == 200, answer.text


def put_scan(ask, name: str) -> requests.Response:
    return ask("PUT", f"datastore/image?image={name}", files={"file": ("a.nii.gz", SCAN)})


def objects(ask) -> dict:
    return ask("GET", "datastore/?output=all").json()["objects"]


# --- scans and labels that are sent


def test_a_scan_is_never_replaced(ask):
    before = ask("GET", "datastore/image?image=plain").content
    for sent in (("?image=plain", "a.nii.gz"), ("", "plain.nii.gz"), ("?image=PLAIN", "a.nii.gz")):
        answer = ask("PUT", f"datastore/image{sent[0]}", files={"file": (sent[1], SCAN)})
        check_refused(answer, 409, "'plain'", "there already", "delete")
    assert ask("GET", "datastore/image?image=plain").content == before


def test_an_id_is_the_name_of_the_file(ask):
    names = ["1.2.840.113", "1.3.12.2"]
    for name, content in zip(names, (SCAN, LABEL), strict=True):
        assert ask(
            "PUT", "datastore/image", files={"file": (f"{name}.nii.gz", content)}
        ).json() == {"image": name}
        assert ask("GET", f"datastore/image?image={name}").content == content
    for name in names:
        assert ask("DELETE", f"datastore/image?id={name}").status_code == 200
        # There is room for another one at once.
        check_done(put_scan(ask, name))
        assert ask("DELETE", f"datastore/image?id={name}").status_code == 200


def test_an_id_is_no_path_of_the_server(ask, root):
    assert (root / "bundles").is_dir()
    check_done(put_scan(ask, "bundles"))
    params = {"params": json.dumps({"save_label": True, "label_tag": "tried"})}
    answer = ask("POST", "infer/two_d?image=bundles&output=image", data=params)
    check_done(answer)
    assert ask("GET", "datastore/label?label=bundles&tag=tried").content == answer.content
    assert ask("DELETE", "datastore/image?id=bundles").status_code == 200


SHAPE = (48, 40, 8)
NOISE = b"noise" * 100
COMPLEX = packed(np.zeros(SHAPE, np.complex64))
UPLOADS = {
    "4-D": ("plain", "a.nii.gz", packed(np.zeros((*SHAPE, 2), np.uint8)), 400, ["3-D"]),
    "2-D": ("plain", "a.nii.gz", packed(np.zeros(SHAPE[:2], np.uint8)), 400, ["48×40", "3-D"]),
    "complex": ("plain", "a.nii.gz", COMPLEX, 400, ["complex numbers"]),
    "colours": ("plain", "a.nii.gz", packed(np.zeros(SHAPE, RGB)), 400, ["colours"]),
    "nan": ("plain", "a.nii.gz", bent(LABEL, np.nan), 400, ["sform", "nan"]),
    "flat": ("plain", "a.nii.gz", bent(LABEL, 0), 400, ["sform", "finite length"]),
    "huge": ("plain", "a.nii.gz", huge(30000), 413, ["4 MB", "max_upload_mb"]),
    "noise": ("plain", "a.nii.gz", NOISE, 400, ["'a.nii.gz'", "not readable"]),
    "damaged": ("plain", "a.nii.gz", damaged(LABEL), 400, ["'a.nii.gz'"]),
    "half": ("plain", "a.nii.gz", gzip.compress(raw())[:-20], 400, ["'a.nii.gz'", "not readable"]),
    "nrrd": ("plain", "a.nrrd", raw(), 400, [".nii.gz"]),
    "shape": ("plain", "a.nii", raw(), 400, ["shape 4×4×4", "expected 48×40×8", "plain.nii.gz"]),
    "negative": ("plain", "a.nii", raw(SHAPE, -1), 400, ["values -1", "expected 0 to 255"]),
    "turned": ("oblique", "a.nii", raw((40, 48, 7)), 400, ["oblique.nii", "mm off", "resample"]),
    "nobody": ("nobody", "a.nii", raw(), 404, ["'nobody'"]),
    "tag above": ("plain&tag=../new", "a.nii", raw(), 400, ["tag"]),
    "long tag": (f"plain&tag={LONG}", "a.nii.gz", LABEL, 400, ["tag", "300", "200"]),
    "scan nan": ("image", "a.nii.gz", bent(SCAN, np.nan), 400, ["'a.nii.gz'", "sform"]),
    "scan complex": ("image", "a.nii.gz", COMPLEX, 400, ["complex numbers"]),
    "scan bomb": ("image", "a.nii.gz", huge(200), 413, ["32 MB", "4 MB"]),
    "scan large": ("image", "a.nii", raw((256, 128, 256)), 413, ["4 MB", "max_upload_mb"]),
    "scan noise": ("image&image=new", "a.nii.gz", NOISE, 400, ["'a.nii.gz'", "not readable"]),
    "scan 4-D": ("image&image=new", "a.nii", raw((4, 4, 4, 2)), 400, ["4×4×4×2"]),
    "scan text": ("image&image=new", "a.txt", raw(), 400, [".nii.gz"]),
    "scan above": ("image&image=../new", "a.nii", raw(), 400, ["slashes"]),
    "long id": (f"image&image={LONG}", "a.nii.gz", SCAN, 400, ["image", "300", "200"]),
    "junk": ("session", "a.bin", b"abc", 400, ["'a.bin'", ".nii.gz"]),
    "no volume": ("session", "a.nii.gz", b"abc", 400, ["not readable"]),
    "no name": ("session", "..", raw(), 400, ["'..'"]),
    "expiry": ("session&expiry=-5", "a.nii.gz", SCAN, 400, ["expiry", "-5"]),
    "text": ("archive", "a.txt", b"abc", 400, ["'a.txt'", ".zip"]),
    "no zip": ("archive", "a.zip", b"abc", 400, ["'a.zip'", "archive"]),
    "half a zip": ("archive", "a.zip", damaged(zipped("a", SCAN)), 400, ["'a.zip'"]),
    "no tar": ("archive", "a.tar.gz", SCAN, 400, ["'a.tar.gz'"]),
    "outside": ("archive", "a.tar.gz", tarred("../a", b"abc"), 400, ["'a.tar.gz'", "../a"]),
    "zip bomb": ("archive", "a.zip", zipped("a", bytes(5 * 10**6)), 413, ["5 MB", "4 MB"]),
    "tar bomb": ("archive", "a.tar.gz", tarred("a", bytes(5 * 10**6)), 413, ["5 MB", "4 MB"]),
}
# Where they are sent, and the field of the file.
PLACES = {
    **{scan: (f"datastore/label?image={scan}", "label") for scan in ("plain", "oblique", "nobody")},
    "image": ("datastore/image?", "file"),
    "session": ("session/?", "files"),
    "archive": ("session/?uncompress=true", "files"),
}


@pytest.mark.parametrize("case", UPLOADS)
def test_an_upload_is_whole_and_a_volume(ask, root, case):
    where, name, content, status, words = UPLOADS[case]
    place, _, options = where.partition("&")
    address, field = PLACES[place]
    before = sorted(path for path in root.rglob("*") if "logs" not in path.parts)
    answer = ask("PUT", f"{address}&{options}", files={field: (name, content)})
    check_refused(answer, status, *words)
    assert sorted(path for path in root.rglob("*") if "logs" not in path.parts) == before


def slices(folder, series="1.2.3.4", count=4) -> list[tuple[str, bytes]]:
    """The files of a DICOM series."""
    names = [f"{series}.{number}.dcm" for number in range(count)]
    write_series(
        folder / series, make_scan(0)[0], np.diag([2.0, 2, 5, 1]), names, SeriesInstanceUID=series
    )
    return [(name, (folder / series / name).read_bytes()) for name in names]


def sent_as_session(files: list[tuple[str, bytes]]) -> dict:
    return {"files": [("files", file) for file in files]}


def test_a_session_of_several_files_is_one_series(ask, tmp_path):
    files = slices(tmp_path)
    answer = ask("PUT", "session/", **sent_as_session(files))
    assert answer.status_code == 200, answer.text
    session = f"session/{answer.json()['session_id']}"
    segmented = ask("POST", f"infer/two_d?{session.replace('/', '_id=')}&output=image")
    assert segmented.status_code == 200, segmented.text
    assert nib.Nifti1Image.from_bytes(gzip.decompress(segmented.content)).shape == (48, 40, 4)
    check_refused(ask("GET", f"{session}?image=true"), 404, "found a folder", "one file")
    assert ask("DELETE", session).status_code == 200


@pytest.mark.parametrize(
    ("change", "address", "words"),
    [
        (lambda files, _: [*files[:2], *files[3:]], "session/", ["mm between"]),
        (lambda files, more: files + more, "session/", ["2 series"]),
        (lambda files, _: [*files, files[0]], "session/", ["1.2.3.4.0.dcm", "twice"]),
        (lambda files, _: [*files, ("a.NII.gz", SCAN)], "session/", ["'a.NII.gz'", "each scan"]),
        (
            lambda files, _: [("a.txt", b"abc"), ("b.txt", b"abc")],
            "session/",
            ["no CT or MRI series"],
        ),
        (lambda files, _: files, "session/?uncompress=true", ["4 files", "one archive"]),
    ],
)
def test_a_session_of_several_files_that_are_no_series(ask, root, tmp_path, change, address, words):
    before = sorted(root.joinpath("sessions").rglob("*"))
    files = change(slices(tmp_path), slices(tmp_path, "1.2.3.5"))
    check_refused(ask("PUT", address, **sent_as_session(files)), 400, *words)
    assert sorted(root.joinpath("sessions").rglob("*")) == before


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_archives_are_unpacked_for_a_session(ask, pack):
    name = {zipped: "a.zip", tarred: "a.tar.gz"}[pack]
    answer = ask(
        "PUT", "session/?uncompress=true", files={"files": (name, pack("slice.dcm", b"abc"))}
    )
    assert answer.status_code == 200, answer.text
    assert ask("DELETE", f"session/{answer.json()['session_id']}").status_code == 200


# --- info of scans and labels


@pytest.fixture
def labelled(ask):
    """A scan with a label that is no final one."""
    check_done(put_scan(ask, "drawn"))
    check_done(save_label(ask, LABEL, "datastore/label?image=drawn&tag=draft", liver=1))
    yield "drawn"
    assert ask("DELETE", "datastore/image?id=drawn").status_code == 200


@pytest.fixture
def unchanged(ask, labelled):
    """The query parts of a scan and its draft label, whose entry stays as it is until the end."""
    before = objects(ask)[labelled]
    yield f"info?image={labelled}", f"info?label={labelled}&tag=draft"
    assert objects(ask)[labelled] == before


def test_info_of_clients_is_stored(ask, labelled):
    image, label = f"info?image={labelled}", f"info?label={labelled}&tag=draft"
    info = {"info": '{"params": {"label_names": {"liver": 1}}}'}
    assert ask("PUT", f"datastore/image/{image}", data={"info": '{"note": "é"}'}).status_code == 200
    assert ask("PUT", f"datastore/label/{label}", data=info).status_code == 200
    stored = objects(ask)[labelled]
    assert stored["image"]["info"]["note"] == "é"
    assert stored["labels"]["draft"]["info"]["label_info"] == [{"name": "liver", "idx": 1}]


def put_label(ask, labelled: str, params: str):
    files = {"label": ("a.nii.gz", LABEL)}
    return ask("PUT", f"datastore/label?image={labelled}", files=files, data={"params": params})


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[1]", "3", "null", '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}'),
        pytest.param(f'{{"a": {DEEP}', id="deep"),
    ],
)
def test_info_that_is_no_json_object_is_refused(ask, labelled, unchanged, text):
    image, label = unchanged
    check_refused(ask("PUT", f"datastore/image/{image}", data={"info": text}), 400, "info")
    check_refused(ask("PUT", f"datastore/label/{label}", data={"info": text}), 400, "info")
    check_refused(put_label(ask, labelled, text), 400, "params")


@pytest.mark.parametrize(
    "key", ["served", "strategy", "uncertainty", "dice", "disagreement", "id", "path"]
)
def test_info_under_the_servers_own_keys_is_refused(ask, unchanged, key):
    info = json.dumps({key: 5})
    answer = ask("PUT", f"datastore/image/{unchanged[0]}", data={"info": info})
    check_refused(answer, 400, key, "server's own")
    sent = {"files": {"file": ("a.nii.gz", SCAN)}, "data": {"params": info}}
    check_refused(ask("PUT", "datastore/image?image=new", **sent), 400, key)


@pytest.mark.parametrize(
    "info",
    [
        {"label_info": 3},
        {"label_info": [3]},
        {"label_info": [{"idx": "x"}]},
        {"label_info": [{"name": "liver", "idx": 1.5}]},
        {"label_info": [{"name": "liver", "idx": -1}]},
        {"label_info": [{"name": 3, "idx": 1}]},
        {"params": None},
        {"params": {"label_names": {"liver": "x"}}},
    ],
)
def test_info_of_a_label_with_other_types_is_refused(ask, labelled, unchanged, info):
    answer = ask("PUT", f"datastore/label/{unchanged[1]}", data={"info": json.dumps(info)})
    check_refused(answer, 400, "expected")
    check_refused(put_label(ask, labelled, json.dumps(info)), 400, "expected")


def test_a_client_id_that_is_no_number_of_json_is_refused(ask):
    client = json.dumps({"client_id": float("nan")})
    header = {"Content-Type": "application/json"}
    answer = ask("POST", "activelearning/first", data=client, headers=header)
    check_refused(answer, 400, "finite")


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("GET", "datastore/image?image=nothing"),
        ("GET", "datastore/image/info?image=nothing"),
        ("PUT", "datastore/image/info?image=nothing"),
        ("DELETE", "datastore/image?id=nothing"),
        ("GET", "datastore/label?label=nothing&tag=final"),
        ("GET", "datastore/label?label=plain&tag=nothing"),
        ("GET", "datastore/label/info?label=nothing&tag=final"),
        ("GET", "datastore/label/info?label=plain&tag=nothing"),
        ("DELETE", "datastore/label?id=nothing&tag=final"),
        ("DELETE", "datastore/label?id=plain&tag=nothing"),
        ("GET", "session/nothing"),
        ("DELETE", "session/nothing"),
    ],
)
def test_what_is_not_there_is_named(ask, method, address):
    check_refused(ask(method, address), 404, "'nothing'", "expected")


def test_no_tag_stands_for_others(ask, labelled):
    """Nor does a part of an id."""
    files = {"label": ("a.nii.gz", LABEL)}
    assert ask("PUT", f"datastore/label?image={labelled}&tag=*", files=files).status_code == 200
    for name, tag in (("drawn", "?"), ("drawn", "dra*"), ("draw*", "draft"), ("*", "*")):
        check_refused(ask("DELETE", f"datastore/label?id={name}&tag={tag}"), 404)
    assert ask("DELETE", f"datastore/label?id={labelled}&tag=*").status_code == 200
    assert list(objects(ask)[labelled]["labels"]) == ["draft"]


# --- options


@pytest.mark.parametrize(
    ("address", "body", "status", "words"),
    [
        ("infer/none?image=plain", {}, 404, ["'none'", "two_d", "three_d"]),
        ("infer/two_d?image=nobody", {}, 404, ["'nobody'", "oblique", "plain"]),
        ("infer/two_d", {}, 404, ["image"]),
        ("infer/two_d?session_id=nothing", {}, 404, ["'nothing'"]),
        ("infer/two_d?session_id=../../studies", {}, 400, ["slashes"]),
        (
            "infer/two_d?image=plain",
            {"postprocessing": "polish"},
            400,
            ["two_d", "'polish'", "'dense_crf'"],
        ),
        ("infer/two_d?image=plain", {"flips": [[7]]}, 400, ["flips", "[[0]]"]),
        ("infer/two_d?image=plain", {"version": "7"}, 400, ["version", "in use"]),
        ("infer/two_d?image=plain", {"device": "abacus"}, 400, ["'abacus'", "cpu"]),
        ("infer/two_d?image=plain", {"result_extension": ".jpg"}, 400, [".nii.gz"]),
        (
            "infer/two_d?image=plain",
            {"mask_cleanin": "none"},
            400,
            ["'mask_cleanin'", "postprocessing"],
        ),
        (
            "infer/two_d?image=plain",
            {"save_label": True, "label_tag": "../../x"},
            400,
            ["label_tag", "slashes"],
        ),
        ("infer/two_d?image=plain", [1], 400, ["params"]),
        ("infer/two_d?image=damaged", {}, 400, ["damaged.nii.gz", "not readable"]),
        ("infer/wsi/two_d?image=plain", {}, 404, ["whole slide"]),
        ("batch/infer/none", None, 404, ["'none'"]),
        ("train/none", None, 404, ["'none'", "two_d"]),
        ("train/two_d", None, 400, ["found 0 scans of 0 patients with a final label"]),
        ("activelearning/best", None, 404, ["'best'", "random"]),
        ("scoring/luck", None, 404, ["'luck'"]),
        ("infer/two_d?image=plain", {"device": 5}, 400, ["device", "5"]),
        ("infer/two_d?image=plain", {"device": [5]}, 400, ["device", "5"]),
        ("infer/two_d?image=plain", {"device": {"a": 1}}, 400, ["device"]),
        ("infer/two_d?image=plain", {"device": "cuda:x"}, 400, ["device", "cuda:x"]),
        (
            "infer/two_d?image=plain",
            {"device": "cuda:99"},
            400,
            ["two_d", "cuda:99 was asked for", "CUDA devices"],
        ),
        (
            "batch/infer/two_d",
            {"device": "cuda:99"},
            400,
            ["cuda:99 was asked for", "CUDA devices"],
        ),
        ("train/two_d", {"device": "cuda:99"}, 400, ["cuda:99 was asked for", "CUDA devices"]),
        ("infer/two_d?image=plain", {"label_tag": 5}, 400, ["label_tag", "5"]),
        ("infer/two_d?image=plain", {"label_tag": ["a"]}, 400, ["label_tag"]),
        ("infer/two_d?image=plain", {"label_tag": LONG}, 400, ["label_tag", "200"]),
        ("infer/two_d?image=plain&output=dicom_seg", {}, 400, ["dicom_seg"]),
        ("infer/two_d?image=plain&output=foo", {}, 400, ["output", "'foo'", "dicom_seg"]),
        ("infer/scribbles?image=plain", {"label_info": [1]}, 400, ["label"]),
        ("batch/infer/two_d", {"postprocessing": "zzz"}, 400, ["postprocessing", "'zzz'"]),
        ("batch/infer/two_d", {"nonsense": 1}, 400, ["'nonsense'"]),
        ("batch/infer/two_d", {"max_workers": "x"}, 400, ["max_workers", "'x'"]),
        ("batch/infer/two_d", {"max_batch_size": "abc"}, 400, ["max_batch_size", "'abc'"]),
        ("batch/infer/two_d", {"max_batch_size": None}, 400, ["max_batch_size"]),
        ("batch/infer/two_d", {"gpus": 3}, 400, ["gpus", "3"]),
        ("batch/infer/two_d", {"label_tag": "final"}, 400, ["label_tag", "trained on"]),
        ("batch/infer/two_d?images=foo", {}, 400, ["images", "'foo'"]),
        ("batch/infer/two_d?run_sync=true", {}, 400, ["run_sync"]),
        ("batch/infer/scribbles", {}, 404, ["'scribbles'", "two_d"]),
        ("train/two_d?run_sync=true", {}, 400, ["run_sync"]),
        ("train/?run_sync=true", {}, 400, ["run_sync"]),
        ("train/", {"two_d": 5}, 400, ["two_d", "5"]),
        ("train/", {"max_epochs": "x"}, 400, ["max_epochs", "x"]),
        ("train/", {"clicks": {"max_epochs": "x"}}, 400, ["max_epochs", "x"]),
        ("train/", {"nobody": {}}, 400, ["'nobody'"]),
        ("train/two_d", [1], 400, ["body", "[1]"]),
        ("scoring/", {"dice": 3}, 400, ["dice", "3"]),
        ("scoring/?run_sync=true", {}, 400, ["run_sync"]),
        ("scoring/dice?run_sync=true", {}, 400, ["run_sync"]),
        ("scoring/uncertainty", {"method": "nope"}, 400, ["method"]),
        ("activelearning/random", {"strategy": "nope"}, 400, ["strategy"]),
        ("activelearning/random", {"strategy": None}, 400, ["strategy"]),
    ],
)
def test_wrong_options_start_nothing(ask, address, body, status, words):
    def tasks() -> list:
        kinds = ("batch/infer", "train/", "scoring/")
        return [ask("GET", f"{kind}?all=true").json() for kind in kinds]

    before = tasks()
    sent = (
        {"data": {"params": json.dumps(body)}} if address.startswith("infer/") else {"json": body}
    )
    check_refused(ask("POST", address, **sent), status, *words)
    assert tasks() == before


def test_no_request_is_answered_with_anything_but_a_message(ask):
    check_refused(
        ask("POST", "train/two_d", data="{", headers={"Content-Type": "application/json"}),
        400,
        "JSON",
    )
    check_refused(ask("DELETE", "datastore/label?id=plain"), 400, "tag", "nothing")
    check_refused(ask("GET", "datastore/?output=foo"), 400, "output", "'foo'", "'stats'")
    # Whatever is no file of OHIF is an address within it.
    page = ask("GET", "ohif/").text
    assert "OHIF Viewer" in page
    for address in ("viewer/any", "%2e%2e", "%2e%2e/ohif/app-config.js", "assets", "%00", "a:b"):
        assert ask("GET", f"ohif/{address}").text == page
    assert ask("HEAD", "datastore/image?image=plain&check_sum=FOO:abc").status_code == 400
    check_refused(ask("GET", "datastore/image?image=nobody"), 404, "plain")
    for body in ("{", "null", "[1]", '{"level": "x"}'):
        for kind in ("wsi", "wsi_v2"):
            check_refused(
                ask("POST", f"infer/{kind}/two_d?image=plain", data={"wsi": body}),
                404,
                "whole slide",
            )
    gpu = ask("GET", "logs/gpu")
    assert gpu.status_code == 200 or "nvidia-smi" in gpu.json()["detail"]
    files = {"label": ("l.bin", b"abc")}
    check_refused(
        ask("POST", "infer/scribbles?image=plain", files=files), 400, "'l.bin'", ".nii.gz"
    )
    values = packed(np.full((48, 40, 8), 300, np.int16))
    params = {"label_info": [{"name": "liver", "id": 1}], "selected_label_name": "liver"}
    sent = {"files": {"label": ("mine.nii.gz", values)}, "data": {"params": json.dumps(params)}}
    check_refused(
        ask("POST", "infer/scribbles?image=plain", **sent), 400, "label: found label values"
    )


def info_of(**names) -> dict:
    return {"label_info": [{"name": name, "idx": value} for name, value in names.items()]}


def save_label(ask, label, address="datastore/label?image=plain", **names):
    data = {"params": json.dumps(info_of(**names))}
    return ask("PUT", address, files={"label": ("a.nii.gz", label)}, data=data)


def test_a_final_label_says_what_its_segments_are(ask):
    before = objects(ask)["plain"]
    check_refused(
        save_label(ask, LABEL, liver=1, Segment_1=2),
        400,
        "Segment_1",
        "as ",
        "lesion",
        "portal vein",
    )
    check_refused(save_label(ask, LABEL, liver=1), 400, "values 2 without a name")
    # Without any names, another segment for each bundle.
    check_refused(
        save_label(ask, LABEL), 400, "value 1 without a name", "liver for ", "artery for three_d"
    )
    check_refused(save_label(ask, packed(make_scan(9)[1] * 0), liver=1), 400, "found no segment")
    assert objects(ask)["plain"] == before
    # What nobody learns from may be called as its annotator likes, and names of segments without
    # voxels do no harm.
    check_done(save_label(ask, LABEL, "datastore/label?image=plain&tag=draft", Segment_1=1))
    check_done(save_label(ask, LABEL, Liver=1, kidney_left=2, Segment_1=3))
    info = {"info": json.dumps(info_of(Liver=1, Segment_1=2))}
    answer = ask("PUT", "datastore/label/info?label=plain&tag=final", data=info)
    check_refused(answer, 400, "Segment_1")
    for tag in ("draft", "final"):
        assert ask("DELETE", f"datastore/label?id=plain&tag={tag}").status_code == 200


@pytest.mark.parametrize("tag", ["draft", "final"])
def test_a_label_without_names_has_those_of_the_one_before(ask, tag):
    """MONAI Label's client sends none of its own, nor does `curl`."""
    address = f"datastore/label?image=plain&tag={tag}"
    assert save_label(ask, LABEL, address, tumour=1, liver=2).status_code == 200
    named = objects(ask)["plain"]["labels"][tag]["info"]["label_info"]
    for params in ("{}", '{"client_id": "me", "label_info": []}'):
        files = {"label": ("a.nii.gz", packed(np.minimum(make_scan(9)[1], 1)))}
        assert ask("PUT", address, files=files, data={"params": params}).status_code == 200
        info = objects(ask)["plain"]["labels"][tag]["info"]
        assert info["label_info"] == named and info.get("client_id") == json.loads(params).get(
            "client_id"
        )
    check_done(save_label(ask, LABEL, address, liver=1, tumour=2))
    renamed = objects(ask)["plain"]["labels"][tag]["info"]["label_info"]
    assert renamed == info_of(liver=1, tumour=2)["label_info"]
    assert ask("DELETE", f"datastore/label?id=plain&tag={tag}").status_code == 200


def test_the_log_is_that_of_this_server(ask, root):
    before = ask("GET", "logs/?lines=0").text
    assert "Taken: two_d (ready)" in before
    note = {"PatientID": "Roe's 17", "PatientName": "Roe^Jane", "SeriesInstanceUID": "1.2.3.77"}
    check_refused(
        ask("POST", "activelearning/first?x", json={"label_tag": "/", **note}), 400, "label_tag"
    )
    assert ask("POST", "activelearning/first", json=note).status_code == 200
    with (root / "monailabel_app" / "logs" / "app.log").open("a") as file:
        file.write("a line of another server\n")
    for lines in ("300", "0", "-5", "1" + "0" * 22):
        answer = ask("GET", f"logs/?lines={lines}&html=true&refresh=1")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/plain")
        assert "1.2.3.77" in answer.text
        for patient in ("Roe", "a line of another server"):
            assert patient not in answer.text
    assert (
        ask("GET", "logs/?lines=2").text.splitlines()
        == ask("GET", "logs/?lines=300").text.splitlines()[-2:]
    )
    check_refused(ask("GET", "logs/?lines=1e22"), 400, "lines", "'1e22'")


def test_what_is_written_of_patients_is_for_nobody_else(ask, root):
    answer = ask("PUT", "session/", files={"files": ("a.nii.gz", SCAN)})
    check_done(save_label(ask, LABEL, "datastore/label?image=plain&tag=secret"))
    check_done(put_scan(ask, "private"))
    labels, session = root / "studies" / "labels", answer.json()["session_id"]
    written = [labels, labels / "secret", labels / "secret" / "plain.nii.gz"]
    written += [root / "studies" / name for name in ("private.nii.gz", "datastore_v2.json")]
    written += [root / "monailabel_app/logs/app.log", *(root / "sessions" / session).rglob("*")]
    assert len(written) > 7
    assert [path for path in written if path.stat().st_mode & 0o077] == []
    assert ask("DELETE", "datastore/label?id=plain&tag=secret").status_code == 200
    assert ask("DELETE", "datastore/image?id=private").status_code == 200
    assert ask("DELETE", f"session/{session}").status_code == 200


def test_the_archive_of_the_labels_is_packed(ask):
    check_refused(ask("GET", "datastore/dataset"), 404, "final label")
    assert save_label(ask, LABEL, liver=1, tumour=2).status_code == 200
    check_refused(ask("GET", "datastore/dataset?limit_cases=-1"), 400, "limit_cases")
    answer = ask("GET", "datastore/dataset")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.read("label/plain.nii.gz") == LABEL
    assert ask("DELETE", "datastore/label?id=plain&tag=final").status_code == 200
