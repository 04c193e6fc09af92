from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.waiting import SECONDS
from torch import nn

from liverseg.errors import InputError
from liverseg.networks import DeepLabV3Plus, load_weights


def small_network(num_classes: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, num_classes, 1))


def one_sentence(message: str) -> bool:
    return "\n" not in message and message.endswith(".") and ". " not in message


def test_plain_state_dict(tmp_path: Path) -> None:
    source, path = small_network(), tmp_path / "model.pt"
    nn.init.normal_(source[0].weight)
    torch.save(source.state_dict(), path)
    target = small_network()
    assert load_weights(target, path) is target
    assert all(
        torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items()
    )


def test_state_dict_without_the_counters_of_batch_norm(tmp_path: Path) -> None:
    source, path = small_network(), tmp_path / "model.pt"
    nn.init.normal_(source[1].running_mean)
    state = source.state_dict()
    del state["1.num_batches_tracked"]
    torch.save(state, path)
    assert torch.equal(load_weights(small_network(), path)[1].running_mean, source[1].running_mean)


def test_checkpoint_of_a_training_run(tmp_path: Path) -> None:
    source, path = small_network(), tmp_path / "checkpoint.pt"
    nn.init.normal_(source[0].weight)
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1, momentum=0.9)
    source(torch.randn(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    torch.save(
        {"model": source.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, path
    )
    target = load_weights(small_network(), str(path))
    assert all(
        torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items()
    )


def wrapped(state: dict, how: str) -> dict:
    """A state dict as people's scripts leave it."""
    if how in ("net", "state_dict", "network", "model_state_dict"):
        return {how: state, "epoch": 3}
    if how == "lightning":
        return {"state_dict": {f"network.{key}": value for key, value in state.items()}, "epoch": 3}
    return {f"{how}{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    "how",
    [
        *("net", "state_dict", "network", "model_state_dict"),
        "lightning",
        "module.",
        "_orig_mod.",
        "module._orig_mod.",
    ],
)
def test_state_dict_of_a_wrapped_network(tmp_path: Path, how: str) -> None:
    source, path = small_network(), tmp_path / "model.pt"
    nn.init.normal_(source[0].weight)
    torch.save(wrapped(source.state_dict(), how), path)
    target = load_weights(small_network(), path)
    assert all(
        torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items()
    )


def test_state_dict_that_the_library_saved_of_a_parallel_network(tmp_path: Path) -> None:
    source, path = small_network(), tmp_path / "model.pt"
    nn.init.normal_(source[0].weight)
    torch.save({"net": torch.nn.DataParallel(torch.compile(source)).state_dict()}, path)
    assert torch.equal(load_weights(small_network(), path)[0].weight, source[0].weight)


def test_a_prefix_of_some_names_only_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    state = {
        f"module.{key}" if key.startswith("0") else key: v
        for key, v in small_network().state_dict().items()
    }
    torch.save(state, path)
    with pytest.raises(
        InputError, match=r"2 missing \(first: 0.weight\), 2 unexpected \(first: module.0.weight\)"
    ):
        load_weights(small_network(), path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    source, path = small_network(), tmp_path / "model.pt"
    torch.save({key: value.to(dtype) for key, value in source.state_dict().items()}, path)
    target = load_weights(small_network(), path)
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, source[0].weight.to(dtype).float())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_not_finite(tmp_path: Path, number: float, dtype: torch.dtype) -> None:
    path, state = tmp_path / "model.pt", small_network().state_dict()
    state["2.weight"].view(-1)[3] = number
    torch.save({key: value.to(dtype) for key, value in state.items()}, path)
    target = small_network()
    with pytest.raises(
        InputError,
        match=r"model.pt: found NaN or infinity for 1 of 8 numbers of 2\.weight, expected",
    ):
        load_weights(target, path)
    assert target[2].weight.isfinite().all()


def test_weights_that_are_whole_numbers(tmp_path: Path) -> None:
    path, state = tmp_path / "model.pt", small_network().state_dict()
    state["0.weight"] = (100 * state["0.weight"]).to(torch.int8)
    torch.save(state, path)
    with pytest.raises(InputError, match=r"1 of whole numbers \(first: 0.weight\)"):
        load_weights(small_network(), path)


def test_other_network_is_refused_and_the_network_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    state = small_network(num_classes=5).state_dict()
    del state["0.weight"]
    state |= {"3.weight": torch.zeros(1), "3.bias": torch.zeros(1)}
    nn.init.ones_(state["0.bias"])
    torch.save(state, path)
    target = small_network()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(target, path)
    message = str(caught.value)
    assert str(path) in message
    assert "1 missing (first: 0.weight)" in message
    assert "2 unexpected (first: 3.weight)" in message
    assert "2 of another shape (first: 2.weight is (5, 4, 1, 1) instead of (2, 4, 1, 1))" in message
    assert "num_classes" in message
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_other_number_of_classes_names_the_classifier(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(DeepLabV3Plus(num_classes=5).state_dict(), path)
    with pytest.raises(
        InputError, match=r"2 of another shape \(first: classifier.weight is \(5, 256, 1, 1\)"
    ):
        load_weights(DeepLabV3Plus(num_classes=2), path)


def damage(path: Path, case: str) -> None:
    torch.save(small_network().state_dict(), path)
    whole = path.read_bytes()
    if case == "missing":
        path.unlink()
    elif case == "folder":
        path.unlink()
        path.mkdir()
    elif case == "empty":
        path.write_bytes(b"")
    elif case == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif case == "truncated old format":
        torch.save(small_network().state_dict(), path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:700])
    elif case == "text":
        path.write_bytes(b"hello world")
    elif case == "web page":
        path.write_bytes(b"<!doctype html><html>404</html>")
    elif case == "pointer":
        path.write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 124100000\n"
        )
    elif case == "safetensors":  # the length of the header, the header, the numbers
        header = b'{"0.bias":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    elif case == "two state dicts":
        torch.save({key: small_network().state_dict() for key in ("net", "model")}, path)
    elif case == "pickled network":
        torch.save(small_network(), path)
    elif case == "pickled network, old format":
        torch.save(small_network(), path, _use_new_zipfile_serialization=False)
    elif case == "TorchScript":
        torch.jit.script(small_network()).save(path)
    elif case == "tensor":
        torch.save(torch.zeros(3), path)
    elif case == "list":
        torch.save([1, 2], path)
    elif case == "no tensors":
        torch.save({"epoch": 3, "weights": small_network().state_dict()}, path)
    elif case == "keys of numbers":
        torch.save({**small_network().state_dict(), 3: torch.zeros(1)}, path)
    elif case in ("sparse", "of no device"):
        bias = torch.ones(4).to_sparse() if case == "sparse" else torch.ones(4, device="meta")
        torch.save({**small_network().state_dict(), "0.bias": bias}, path)
    elif case == "empty dict":
        torch.save({"model": {}}, path)


@pytest.mark.filterwarnings("ignore:.*TorchScript.*:UserWarning")
@pytest.mark.parametrize(
    ("case", "found", "advice"),
    [
        ("missing", "cannot be read (No such file or directory)", "check the path"),
        ("folder", "cannot be read (Is a directory)", "check the path"),
        ("empty", "is empty", "copy or download it again"),
        ("truncated", "is truncated, damaged or no weights file", "copy or download it again"),
        (
            "truncated old format",
            "is truncated, damaged or no weights file",
            "copy or download it again",
        ),
        ("text", "is truncated, damaged or no weights file", "copy or download it again"),
        ("web page", "is a web page", "download the file itself"),
        ("pointer", "is a pointer of Git LFS", "git lfs pull"),
        ("safetensors", "is a file of safetensors", "safetensors.torch.load_file"),
        (
            "two state dicts",
            "holds a dict with several state dicts, under model, net",
            "save one alone",
        ),
        (
            "pickled network",
            "holds Python objects or TorchScript code",
            "save the state dict alone",
        ),
        (
            "pickled network, old format",
            "holds Python objects or TorchScript code",
            "save the state dict alone",
        ),
        ("TorchScript", "holds Python objects or TorchScript code", "save the state dict alone"),
        ("tensor", "holds a Tensor", "save the state dict alone"),
        ("list", "holds a list", "save the state dict alone"),
        (
            "no tensors",
            "holds a dict with no plain tensor under 2 of 2 names (first: 'epoch')",
            'under a key out of "model"',
        ),
        (
            "keys of numbers",
            "holds a dict with no plain tensor under 1 of 10 names (first: 3)",
            "under a key out of",
        ),
        (
            "sparse",
            "holds a dict with no plain tensor under 1 of 9 names (first: '0.bias')",
            "under a key out of",
        ),
        (
            "of no device",
            "holds a dict with no plain tensor under 1 of 9 names (first: '0.bias')",
            "under a key out of",
        ),
        ("empty dict", "holds a dict with no keys", 'under a key out of "model"'),
    ],
)
def test_file_that_is_no_state_dict_gets_one_message(
    tmp_path: Path, case: str, found: str, advice: str
) -> None:
    path = tmp_path / "model.pt"
    damage(path, case)
    with pytest.raises(InputError, match=re.escape(f"{path} {found}")) as caught:
        load_weights(small_network(), path)
    assert advice in str(caught.value)
    assert one_sentence(str(caught.value).replace(str(path), "PATH"))


def test_numbers_that_are_infinite_in_float32_are_refused(tmp_path: Path) -> None:
    state = {
        key: value.double()
        for key, value in small_network().state_dict().items()
        if value.is_floating_point()
    }
    state["0.bias"][3] = 1e300
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match="found NaN or infinity for 1 of 4 numbers"):
        load_weights(small_network(), tmp_path / "model.pt")


def test_file_cannot_run_code(tmp_path: Path) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "trace"

    class Payload:
        def __reduce__(self) -> tuple:
            return Path.touch, (trace,)

    torch.save({"0.weight": Payload()}, path)
    with pytest.raises(InputError, match="Python objects"):
        load_weights(small_network(), path)
    assert not trace.exists()


LIMITED = """
import resource, sys
from liverseg.networks.weights import read_state_dict
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**23, resource.RLIM_INFINITY))
read_state_dict(sys.argv[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_too_little_memory_is_not_a_damaged_file(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2**24)}, tmp_path / "model.pt")
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "model.pt")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert "memory" in run.stderr.splitlines()[-1]
    assert "InputError" not in run.stderr
