"""Versions of a model on the disk, with text in the place of weights."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from helpers.bundle_runs import BUNDLE
from helpers.waiting import SECONDS
from typer.testing import CliRunner

from liverseg import versions
from liverseg.errors import InputError
from liverseg.workbench.cli import app
from liverseg.workbench.zoo.build import build_archive

PARTS = ("liver/localise/model.pt", "liver/axial/model.pt", "lesion/axial/model.pt")
LOCKED = """
import sys
from pathlib import Path
from filelock import FileLock
with FileLock(Path(sys.argv[1]) / ".lock"):
    print("locked", flush=True)
    sys.stdin.read()
"""


def write(folder: Path, content: str, parts=PARTS) -> None:
    for part in parts:
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        # Replaced at once, as training does.
        new = (folder / part).with_suffix(".new")
        new.write_text(content)
        os.replace(new, folder / part)


def read(folder: Path, parts=PARTS) -> set[str]:
    return {(folder / part).read_text() for part in parts}


def add(bundle: Path, content: str, parts=PARTS, **facts) -> str:
    version = versions.new_version(bundle, **{"state": "candidate", **facts})
    write(version.folder, content, parts)
    return version.name


@pytest.fixture
def bundle(tmp_path) -> Path:
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "metadata.json").write_text('{"version": "1"}')
    return tmp_path / "bundle"


def test_all_files_change_at_once(bundle):
    """A process that looks up the folder first reads one version; models/ always has its files."""
    names = [add(bundle, content) for content in "ab"]
    versions.publish(bundle, names[0])
    done = False

    def look() -> tuple[int, set[str]]:
        looks, seen = 0, set()
        while not done:
            folder = versions.weights_in_use(bundle)
            found = read(folder)
            assert len(found) == 1
            assert read(bundle / "models") <= {"a", "b"}
            looks, seen = looks + 1, seen | found
        return looks, seen

    with ThreadPoolExecutor(2) as threads:
        looking = [threads.submit(look) for _ in range(2)]
        for number in range(100):
            versions.publish(bundle, names[1 - number % 2])
        done = True
        for one in looking:
            looks, seen = one.result()
            assert looks > 10
            assert seen == {"a", "b"}


def test_first_publication_and_back(bundle):
    assert versions.version_in_use(bundle) is None
    with pytest.raises(InputError, match="before the one in use"):
        versions.rollback(bundle)
    names = [add(bundle, content) for content in "abc"]
    for name, content in zip(names, "abc", strict=True):
        versions.publish(bundle, name)
        assert versions.version_in_use(bundle) == name
        assert read(bundle / "models") == {content}
    assert [version.name for version in versions.list_versions(bundle)] == names[::-1]
    # Back through all that was in use, also what was twice.
    versions.publish(bundle, names[0])
    for content in "cba":
        versions.rollback(bundle)
        assert read(bundle / "models") == {content}
    with pytest.raises(InputError, match="before the one in use"):
        versions.rollback(bundle)


def test_only_what_was_compared_is_replaced(bundle):
    a, b, c = (add(bundle, content) for content in "abc")
    stale = versions.find_version(bundle, a)
    assert versions.publish(bundle, a, {None})
    assert versions.publish(bundle, b)
    assert stale.update(mean_dice=0.5).record == {
        **versions.find_version(bundle, a).record,
        "state": "published",
    }
    assert not versions.publish(bundle, c, {None, a})
    assert read(bundle / "models") == {"b"}
    assert versions.publish(bundle, c, {b})
    write(bundle / "models", "copied")
    assert not versions.publish(bundle, a, {None, b, c})
    assert read(bundle / "models") == {"copied"}
    assert versions.version_in_use(bundle) not in {None, a, b, c}


def test_weights_that_were_taken_away_are_not_in_use(bundle):
    versions.publish(bundle, add(bundle, "a", parts=("model.json", "model.pt")))
    (bundle / "models" / "model.pt").rename(bundle / "models" / "model.pt.deleted")
    assert versions.version_in_use(bundle) is None
    versions.keep_model_in_use(bundle)
    assert len(versions.list_versions(bundle)) == 1


def test_weights_that_came_otherwise_are_kept(bundle):
    """Copied there, or trained there by the command line after a version was published."""
    write(bundle / "models", "copied")
    versions.publish(bundle, add(bundle, "new"))
    assert read(bundle / "models") == {"new"}
    versions.rollback(bundle)
    assert read(bundle / "models") == {"copied"}

    write(bundle / "models", "trained", PARTS[:1])
    assert versions.version_in_use(bundle) is None
    assert versions.weights_in_use(bundle) == bundle / "models"
    # No version has changed by that.
    kept = {frozenset(read(version.folder)) for version in versions.list_versions(bundle)}
    assert kept == {frozenset({"copied"}), frozenset({"new"})}
    versions.publish(bundle, add(bundle, "newer"))
    assert read(bundle / "models") == {"newer"}
    versions.rollback(bundle)
    assert read(bundle / "models", PARTS[:1]) == {"trained"}
    assert read(bundle / "models", PARTS[1:]) == {"copied"}


def test_what_cannot_be_published_says_why(bundle):
    versions.publish(bundle, add(bundle, "a"))
    (in_use,) = (version.name for version in versions.list_versions(bundle))
    for wrong in ("9", "../elsewhere", "..", ".", "", "in_use", f"{in_use}/"):
        with pytest.raises(
            InputError, match=f"no version '{re.escape(wrong)}', expected one of {in_use}"
        ):
            versions.publish(bundle, wrong)
    with pytest.raises(InputError, match="expected weights"):
        versions.publish(bundle, add(bundle, "", parts=()))
    half = add(bundle, "b", parts=PARTS[:1])
    with pytest.raises(InputError, match=r"lesion/axial/model\.pt, liver/axial/model\.pt"):
        versions.publish(bundle, half)
    assert read(bundle / "models") == {"a"}


def test_a_training_that_was_killed_is_stopped(bundle):
    version = versions.new_version(bundle, state="training")
    command = [sys.executable, "-c", LOCKED, str(version.folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        assert version.state == "training"
        write(version.folder, "half")
        with pytest.raises(InputError, match="still training"):
            versions.publish(bundle, version.name)
        process.kill()
        process.wait(SECONDS)
    assert version.state == "stopped"
    versions.publish(bundle, version.name)
    assert read(bundle / "models") == {"half"}


def test_an_archive_has_the_weights_in_use_and_no_version(bundle, tmp_path):
    shutil.copytree(BUNDLE / "configs", bundle / "configs", dirs_exist_ok=True)
    for number in (1, 2):
        version = versions.new_version(bundle, state="candidate")
        for part in PARTS:
            (version.folder / part).parent.mkdir(parents=True)
            torch.save({"weight": torch.tensor([number])}, version.folder / part)
        versions.publish(bundle, version.name)
    with zipfile.ZipFile(build_archive(bundle, tmp_path / "dist")) as archive:
        archive.extractall(tmp_path / "unpacked")
    models = tmp_path / "unpacked" / "bundle" / "models"
    found = {
        path.relative_to(models).as_posix(): torch.load(path)["weight"].item()
        for path in models.rglob("*.pt")
    }
    assert found == dict.fromkeys(PARTS, 2)


def test_command_line(bundle):
    def run(*arguments: str):
        return CliRunner().invoke(app, ["models", *arguments], env={"COLUMNS": "80"})

    names = [
        add(bundle, content, mean_dice=dice, training=["x", "y"])
        for content, dice in (("a", 0.5), ("b", 0.75))
    ]
    assert "No model is in use" in run("list", str(bundle)).output
    assert run("publish", str(bundle), names[1]).output == f"in use: {names[1]}\n"
    rows = {
        words[0]: words[1:]
        for line in run("list", str(bundle)).output.splitlines()
        if (words := line.split())
    }
    # Also in a narrow terminal a name can be copied.
    assert [name for name in rows if name in names] == names[::-1]
    assert rows[names[1]] == ["in", "use", "2", "0.7500"]
    assert rows[names[0]][0] == "candidate"
    run("publish", str(bundle), names[0])
    assert run("rollback", str(bundle)).output == f"in use: {names[1]}\n"
    failed = run("compare", str(bundle), add(bundle, "", parts=(), state="failed"))
    assert "found no model.pt" in str(failed.exception)
    assert "expected a folder or one of" in str(run("list", "nothing").exception)
    for verb in ("list", "compare", "publish", "rollback"):
        assert f"Example: liverseg models {verb}" in run(verb, "--help").output
