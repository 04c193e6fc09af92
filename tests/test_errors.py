from __future__ import annotations

import pytest
from monai.data import DistributedSampler

from liverseg.errors import InputError, message


def test_fewer_scans_than_processes_are_reported_in_a_message():
    with pytest.raises(ValueError, match="ranks") as caught:
        DistributedSampler([1, 2], even_divisible=False, num_replicas=3, rank=0)
    assert message(caught.value).startswith("validation: found fewer scans than processes")


def test_the_message_is_found_behind_other_errors_and_only_there():
    try:
        try:
            raise InputError("a.nii: broken.")
        except InputError as error:
            raise RuntimeError("applying transform") from error
    except RuntimeError as error:
        assert message(error) == "a.nii: broken."
    assert message(KeyError("a fault of ours")) is None
