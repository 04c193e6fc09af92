from __future__ import annotations

import errno
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import IterationEvents
from monai.handlers import MeanDice, from_engine
from monai.transforms import AsDiscreted, Compose, CopyItemsd

from liverseg.engines import ScanDataset, ScanEvaluator
from liverseg.errors import InputError, message
from liverseg.transforms import LoadVolumed


class ImageIsTheAnswer(torch.nn.Module):
    """Logits of two classes from an image that holds the class to predict."""

    def forward(self, image):
        return torch.cat([(image == 0).float(), (image > 0).float()], dim=1)


class Fails:
    """A postprocessing or inferer that fails for the scans with this many slices."""

    def __init__(self, error: Exception, slices: tuple[int, ...], then=lambda x, *_: x):
        self.error, self.slices, self.then = error, slices, then

    def __call__(self, data, *args):
        image = data["image"] if isinstance(data, dict) else data
        if image.shape[-1] in self.slices:
            raise self.error
        return self.then(data, *args)


@pytest.fixture
def scans(write_nifti) -> list[dict[str, str]]:
    """Five scans of 1 to 5 slices, all right."""
    return [
        {"image": write_nifti(f"{n}.nii.gz", np.eye(4, dtype=np.int16)[..., None].repeat(n, 2))}
        for n in range(1, 6)
    ]


def evaluator(scans, num_workers=0, **settings) -> ScanEvaluator:
    transform = Compose([LoadVolumed("image"), CopyItemsd("image", names="label")])
    settings.setdefault("postprocessing", AsDiscreted("pred", argmax=True))
    engine = ScanEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(
            ScanDataset(scans, transform), batch_size=1, num_workers=num_workers
        ),
        network=ImageIsTheAnswer(),
        key_val_metric={
            "dice": MeanDice(
                output_transform=from_engine(["pred", "label"]), include_background=False
            )
        },
        **settings,
    )
    engine.seen = []
    engine.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda: engine.seen.append(
            Path(engine.state.output[0]["image"].meta["filename_or_obj"]).name
        ),
    )
    return engine


def spoil(scans, number: int) -> str:
    path = Path(scans[number - 1]["image"])
    path.write_bytes(path.read_bytes()[:60])
    return str(path)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_scan_that_cannot_be_read_is_named_at_the_end(scans, num_workers, caplog):
    broken, missing = spoil(scans, 2), scans[3]["image"]
    Path(missing).unlink()
    engine = evaluator(scans, num_workers)
    with pytest.raises(InputError, match=r"^2 of 5 scans failed") as error:
        engine.run()
    assert engine.seen == ["1.nii.gz", "3.nii.gz", "5.nii.gz"]
    assert engine.state.metrics == {"dice": 1.0}
    assert [failure["image"] for failure in engine.failures] == [broken, missing]
    assert f"{broken}: not readable as a volume" in str(error.value)
    assert f"{missing}: there is no such file" in str(error.value)
    assert "\n" not in str(error.value)
    warnings = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert [name in warning for name, warning in zip((broken, missing), warnings, strict=True)] == [
        True,
        True,
    ]
    # As often as it is run.
    with pytest.raises(InputError, match=r"^2 of 5 scans failed"):
        engine.run()


@pytest.mark.parametrize(
    ("setting", "error", "words"),
    [
        (
            "inferer",
            RuntimeError("kernel larger than the scan"),
            "RuntimeError: kernel larger than the scan",
        ),
        ("inferer", MemoryError(), "MemoryError"),
        ("postprocessing", InputError("a word to the user."), "a word to the user"),
        ("postprocessing", OSError(errno.EIO, "Input/output error"), "OSError"),
    ],
)
def test_a_scan_that_fails_later(scans, setting, error, words):
    own = {
        "inferer": lambda x, network: network(x),
        "postprocessing": AsDiscreted("pred", argmax=True),
    }[setting]
    engine = evaluator(scans, **{setting: Fails(error, (1, 4), own)})
    with pytest.raises(
        InputError, match=rf"2 of 5 scans failed.*1\.nii\.gz: {words}.*4\.nii\.gz: {words}"
    ):
        engine.run()
    assert engine.seen == ["2.nii.gz", "3.nii.gz", "5.nii.gz"]
    assert engine.state.metrics == {"dice": 1.0}


def test_what_is_unexpected_is_in_the_log_with_its_traceback(scans, caplog):
    engine = evaluator(
        scans,
        postprocessing=Fails(TypeError("no such thing"), (2,), AsDiscreted("pred", argmax=True)),
    )
    with pytest.raises(InputError, match="TypeError: no such thing"):
        engine.run()
    assert "in __call__" in caplog.text


def test_a_scan_that_cannot_be_measured(scans):
    def measure(engine):
        if engine.state.output[0]["image"].shape[-1] == 3:
            raise MemoryError

    engine = evaluator(scans)
    engine.add_event_handler(Events.ITERATION_COMPLETED, measure)
    with pytest.raises(InputError, match=r"1 of 5 scans failed.*3\.nii\.gz: MemoryError"):
        engine.run()


def test_when_all_fail_all_are_named(scans):
    broken = [spoil(scans, number) for number in range(1, 6)]
    engine = evaluator(scans)
    completed = []
    engine.add_event_handler(Events.COMPLETED, lambda: completed.append(len(engine.failures)))
    with pytest.raises(InputError, match=r"^5 of 5 scans failed") as error:
        engine.run()
    assert all(path in str(error.value) for path in broken)
    assert completed == [5]
    assert engine.state.metrics == {}


def test_many_failures_fit_into_a_message(scans):
    broken = spoil(scans, 1)
    data = [{"image": broken}] * 12 + scans[1:2]
    with pytest.raises(InputError, match=r"^1 of 2 scans failed"):  # The same one, each time.
        evaluator(data).run()
    missing = [{"image": f"/gone/{number}.nii"} for number in range(12)]
    with pytest.raises(
        InputError, match=r"12 of 13 scans failed.*/gone/9\.nii: [^;]*; and 2 more\.$"
    ):
        evaluator([*missing, scans[1]]).run()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_is_full_ends_the_run(scans, code):
    def save(data):
        try:
            raise OSError(code, "no")
        except OSError as error:
            raise InputError("the mask could not be saved.") from error

    engine = evaluator(scans, postprocessing=save)
    with pytest.raises(RuntimeError) as error:
        engine.run()
    assert message(error.value) == "the mask could not be saved."
    assert engine.state.iteration == 1


def test_what_the_first_two_fail_with_is_no_fault_of_theirs(scans):
    engine = evaluator(
        scans, postprocessing=Fails(InputError("found no package."), (1, 2, 3, 4, 5))
    )
    with pytest.raises(RuntimeError) as error:
        engine.run()
    assert message(error.value) == "found no package."
    assert engine.state.iteration == 2


def test_a_single_scan_fails_with_its_own_error(scans):
    failing = evaluator(scans[:1], inferer=Fails(KeyError("own"), (1,)))
    with pytest.raises(KeyError, match="own"):
        failing.run()
    spoil(scans, 1)
    with pytest.raises(RuntimeError) as error:
        evaluator(scans[:1]).run()
    assert "1.nii.gz: not readable as a volume" in message(error.value)


def test_a_second_run_begins_with_none_that_failed(scans):
    engine = evaluator(scans, inferer=Fails(KeyError("own"), (2,)))
    for _ in range(2):
        with pytest.raises(InputError, match=r"^1 of 5 scans failed"):
            engine.run()


def test_another_update_than_monais(scans):
    def update(engine, batch):
        if batch["image"].shape[-1] == 2:
            raise ValueError("own")
        engine.state.output = {
            "image": batch["image"],
            "label": batch["label"],
            "pred": batch["label"],
        }
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    engine = evaluator(scans, iteration_update=update, postprocessing=None)
    with pytest.raises(InputError, match=r"1 of 5 scans failed.*2\.nii\.gz: ValueError: own"):
        engine.run()
    assert len(engine.seen) == 4
