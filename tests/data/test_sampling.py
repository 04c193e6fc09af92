from __future__ import annotations

import collections

import numpy as np
import pytest

from liverseg.data import PatientSampler

# Patient a has three scans, the others one each.
DATA = [{"image": f"{n}.nii", "patient": p} for n, p in enumerate("aaabcdefg")]


def batches(sampler, size=3):
    return np.array(list(sampler)).reshape(-1, size)


def patients(indices):
    return [DATA[index]["patient"] for index in indices]


def test_each_batch_is_of_different_patients_and_an_epoch_of_so_many():
    sampler = PatientSampler(DATA, batch_size=3, num_batches=50)
    drawn = batches(sampler)
    assert len(drawn) == 50
    assert len(sampler) == 150
    assert all(len(set(patients(batch))) == 3 for batch in drawn)


def test_patients_and_their_scans_are_drawn_alike():
    drawn = batches(PatientSampler(DATA, 3, 3000)).ravel()
    shares = collections.Counter(patients(drawn))
    assert all(count / len(drawn) == pytest.approx(1 / 7, abs=0.01) for count in shares.values())
    scans = collections.Counter(index for index in drawn.tolist() if index < 3)
    assert all(count / scans.total() == pytest.approx(1 / 3, abs=0.04) for count in scans.values())


def test_epochs_differ_and_are_repeatable():
    sampler, other = PatientSampler(DATA, 3, 20, seed=5), PatientSampler(DATA, 3, 20, seed=5)
    first = list(sampler)
    assert first == list(other)
    sampler.set_epoch(2)
    assert first != list(sampler)
    other.set_epoch(2)
    assert list(sampler) == list(other)
    assert first != list(PatientSampler(DATA, 3, 20, seed=6))


def test_ranks_share_one_batch():
    drawn = []
    for rank in range(2):
        sampler = PatientSampler(DATA, 2, 30)
        sampler.rank, sampler.num_replicas = rank, 2
        drawn.append(batches(sampler, 2))
    together = np.concatenate(drawn, 1)
    assert all(len(set(patients(batch))) == 4 for batch in together)
    assert np.array_equal(together, batches(PatientSampler(DATA, 4, 30), 4))


def test_fewer_patients_than_places_repeat():
    drawn = batches(PatientSampler(DATA[:4], 3, 20))
    assert set(patients(drawn.ravel())) == {"a", "b"}
