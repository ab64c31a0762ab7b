"""Reading ahead changes nothing about what is read, nor about the state that a checkpoint keeps."""

import threading

import numpy as np
import pytest
import torch

from pggan_fast.data.batches import Batches
from pggan_fast.data.prefetch import Prefetcher
from pggan_fast.training import DatasetWriter, PreparedData
from pggan_fast.utils.errors import UserError

# Several of one kind, then another batch size, then another resolution: what was read ahead is of no use there.
ASKED = [(4, 4)] * 3 + [(6, 4)] * 2 + [(6, 8)] * 3 + [(4, 4)]


@pytest.fixture
def data(tmp_path):
    with DatasetWriter(tmp_path / "data", resolution=8, channels=1, classes=[]) as writer:
        for index in range(10):
            writer.add(np.full((1, 8, 8), index, np.uint8), 0, str(index))
        writer.commit()
    return PreparedData(tmp_path / "data")


def test_batches_and_states_are_those_of_reading_in_turn(data):
    plain, ahead = Batches(data, seed=3), Prefetcher(Batches(data, seed=3))
    for asked in ASKED:
        for expected, found in zip(plain.next(*asked), ahead.next(*asked), strict=True):
            assert torch.equal(expected, found)
        assert ahead.state_dict() == plain.state_dict()


@pytest.mark.parametrize("stop", range(len(ASKED)))
def test_resumes_from_a_state(data, stop):
    before = Prefetcher(Batches(data, seed=3))
    for asked in ASKED[:stop]:
        before.next(*asked)
    state = before.state_dict()
    expected = [before.next(*asked)[0] for asked in ASKED[stop:]]
    after = Prefetcher(Batches(data, seed=0))
    after.load_state_dict(state)
    for asked, images in zip(ASKED[stop:], expected, strict=True):
        assert torch.equal(after.next(*asked)[0], images)


def test_the_next_batch_is_read_by_another_thread_meanwhile(data, monkeypatch):
    threads, read = [], threading.Event()
    batches = Batches(data, seed=0)
    original = batches.next

    def noted(*asked):
        threads.append(threading.current_thread().name)
        if len(threads) == 2:
            read.set()
        return original(*asked)

    monkeypatch.setattr(batches, "next", noted)
    ahead = Prefetcher(batches)
    ahead.next(4, 4)
    assert read.wait(60)  # although nobody has asked for it yet
    assert threads[0] == "MainThread" and threads[1].startswith("data")


def test_a_failure_shows_when_its_batch_is_asked_for_and_is_not_counted(data, monkeypatch):
    batches = Batches(data, seed=0)
    ahead = Prefetcher(batches)
    ahead.next(4, 4)

    def gone(*_):
        raise UserError("the disk is gone")

    ahead._next.result()
    monkeypatch.setattr(batches, "next", gone)
    ahead.next(4, 4)  # was read before
    state = ahead.state_dict()
    with pytest.raises(UserError, match="the disk is gone"):
        ahead.next(4, 4)
    assert ahead.state_dict() == state
