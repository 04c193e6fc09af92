"""Where memory is short, less is done at a time; where it lasts, one message says so."""

from __future__ import annotations

import json
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from helpers.bundle_runs import ROOT, make_scan, save
from helpers.segment_bundles import command, simple_bundle
from helpers.waiting import SECONDS

from liverseg.errors import InputError


@pytest.fixture
def scan(tmp_path):
    save(tmp_path / "scan.nii.gz", make_scan(0)[0])
    return tmp_path / "scan.nii.gz"


def short_bundle(folder, most):
    network = {"_target_": "helpers.short_of_memory.ShortOfMemory", "most": most}
    return simple_bundle(folder, seed=0, network_def=network)


def test_it_goes_on_with_less_and_says_so(scan, tmp_path, caplog):
    command(scan, tmp_path / "out", "--bundle", short_bundle(tmp_path / "short", most=1))
    (warning,) = [text for text in caplog.messages if "memory" in text]
    assert warning == (
        f"{scan}: the memory does not suffice (OutOfMemoryError: CUDA out of memory. Tried to "
        "allocate 2.00 GiB.); tried again with one window at a time."
    )
    command(scan, tmp_path / "expected", "--bundle", simple_bundle(tmp_path / "all", seed=0))
    found, expected = (
        np.asarray(nib.load(tmp_path / name / "scan_liver.nii.gz").dataobj)
        for name in ("out", "expected")
    )
    assert 0 < expected.mean() < 1
    assert (found != expected).mean() < 1e-3
    (entry,) = json.loads((tmp_path / "out" / "summary.json").read_text())["scans"]
    assert "error" not in entry


def test_a_lasting_lack_ends_in_one_message(scan, tmp_path, caplog):
    with pytest.raises(InputError) as error:
        command(scan, tmp_path / "out", "--bundle", short_bundle(tmp_path / "short", most=0))
    assert "found too little memory for short (OutOfMemoryError: CUDA out of" in str(error.value)
    assert "end other programs" in str(error.value)
    assert not [record for record in caplog.records if record.exc_info]


LIMITED = """
import logging, resource, sys
from pathlib import Path
logging.basicConfig(level=logging.WARNING)
import torch
torch.set_num_threads(1)
from liverseg.workbench.segment.inference import Options, run_inference
bundle, small, scan, out = map(Path, sys.argv[1:])
# What is imported, and started, takes memory of its own.
run_inference([bundle], str(small), out, Options())
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)
found, _ = run_inference([bundle], str(scan), out, Options(settings={"sw_batch_size": 48}))
print(found.mask.shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_limit_of_the_system_is_kept(scan, tmp_path):
    # 48 slices of 64 channels and 4 bytes take 770 MB in the first layer, one takes 16 MB.
    save(tmp_path / "large.nii.gz", make_scan(1, (256, 256, 48))[0])
    bundle = simple_bundle(tmp_path / "simple", seed=0)
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, bundle, scan, tmp_path / "large.nii.gz", tmp_path / "out"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    assert result.stdout == "(256, 256, 48)\n", result.stderr
    assert "large.nii.gz: the memory does not suffice" in result.stderr
    assert "tried again with one window at a time" in result.stderr
