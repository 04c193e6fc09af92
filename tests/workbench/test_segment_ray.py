"""The same cases on the machines of a Ray cluster, of which one fails half-way."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from helpers.bundle_runs import ROOT
from helpers.cohorts import (
    masks,
    records,
    segment,
    start,
    write_bundle,
    write_scans,
    written_ns,
)
from helpers.waiting import SECONDS, wait_until
from typer.main import get_command

from liverseg.workbench.cli import app

pytestmark = pytest.mark.slow

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

# The least that Ray takes.
NODE = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture
def cluster(monkeypatch):
    """A head that segments nothing, and two nodes for one scan each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Ray gives way to all else, which on a busy machine is for ever.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(**NODE, num_cpus=1)
    cluster.wait_for_nodes(SECONDS)
    yield cluster
    cluster.shutdown()


def test_a_node_that_dies_half_way_changes_nothing(cluster, tmp_path):
    bundle = write_bundle(tmp_path / "tiny")
    scans = write_scans(tmp_path / "scans", 10, shape=(96, 96, 32))
    segment(scans, tmp_path / "local", bundle)
    out = tmp_path / "out"
    process = start(scans, out, bundle, "--engine", "ray", "--address", cluster.address)
    wait_until(lambda: written_ns(out) or process.poll() is not None)
    before = written_ns(out)
    cluster.remove_node(sorted(cluster.worker_nodes, key=str)[0], allow_graceful=False)
    assert 0 < len(before) < 10
    shown, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, shown + err
    found = records(out)
    assert [*found] == [f"case{number}" for number in range(10)]
    assert not any("error" in record for record in found.values())
    assert shown.count(" ml") == 10
    assert {name: written_ns(out)[name] for name in before} == before
    assert masks(out) == masks(tmp_path / "local")
    assert len(masks(out)) == 10


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        ([], "expected it with --engine ray"),
        (["--engine", "ray"], "found no Ray cluster at 127.0.0.1:1"),
    ],
)
def test_an_address_needs_the_engine_and_a_cluster(tmp_path, engine, sentence):
    scans = write_scans(tmp_path / "scans", 1)
    bundle = write_bundle(tmp_path / "tiny")
    shown = segment(scans, tmp_path / "out", bundle, *engine, "--address", "127.0.0.1:1", status=1)
    assert sentence in shown


def test_the_manifest_for_kuberay_is_whole():
    files = ROOT / "docs" / "how-to" / "cohorts"
    job = yaml.safe_load((files / "rayjob.yaml").read_text())
    spec = job["spec"]["rayClusterSpec"]
    program, verb, *words = shlex.split(job["spec"]["entrypoint"])
    assert (job["apiVersion"], job["kind"], program) == ("ray.io/v1", "RayJob", "liverseg")
    # Typer refuses what is no option of the verb.
    given = get_command(app).commands[verb].make_context(verb, words).params
    (pins,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert given["engine"] == "ray"
    assert spec["rayVersion"] == pins == ray.__version__
    assert f'"ray[default]=={pins}"' in (files / "Dockerfile").read_text()
    head, worker = spec["headGroupSpec"], spec["workerGroupSpecs"][0]
    for group in (head, worker):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
        assert {each["name"] for each in pod["volumes"]} == {*mounts} == {"scans", "results"}
        assert given["source"].is_relative_to(mounts["scans"])
        assert given["output"].is_relative_to(mounts["results"])
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
