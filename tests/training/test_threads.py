"""One thread less while others take part of the processor, and back when it is free."""

import pytest
import torch

from pggan_fast.training.runtime import threads
from pggan_fast.training.runtime.threads import Threads


class Machine:
    """A clock, and how long threads have waited: `share` seconds a second."""

    def __init__(self):
        self.now = self.waited = 0.0

    def run(self, found: Threads, seconds: float, share: float) -> list[int]:
        counts = []
        for _ in range(int(seconds)):
            self.now, self.waited = self.now + 1, self.waited + share
            found.follow()
            counts.append(found.count)
        return counts


@pytest.fixture
def machine():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield Machine()
    torch.set_num_threads(before)


def make(machine: Machine) -> Threads:
    return Threads(clock=lambda: machine.now, waited=lambda: machine.waited)


def test_alone_all_threads_stay(machine):
    found = make(machine)
    assert set(machine.run(found, 60, 0.02)) == {4}


def test_in_company_one_less_at_a_time_and_never_none(machine):
    found = make(machine)
    counts = machine.run(found, 20, 0.6)
    assert counts[1] == 3 and sorted(counts, reverse=True) == counts and counts[-1] == 1 == torch.get_num_threads()


def test_trials_become_rarer_while_the_company_stays(machine):
    found = make(machine)
    counts = [count for _ in range(600) for count in machine.run(found, 1, 0.6 if found.count == 4 else 0.0)]
    assert counts[10:].count(4) <= 12 and counts[10:].count(3) >= 578
    assert 4 in counts[300:]


def test_all_threads_return_when_the_processor_is_free(machine):
    found = make(machine)
    machine.run(found, 6, 0.6)
    assert found.count == 1
    assert machine.run(found, 400, 0.0)[-1] == 4 == torch.get_num_threads()


def test_waiting_is_counted_on_linux(tmp_path, monkeypatch):
    for name, text in (("1", "5 2000000000 3"), ("2", "7 500000000 1"), ("3", "gone")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "schedstat").write_text(text)
    monkeypatch.setattr(threads, "TASKS", tmp_path)
    assert threads.seconds_waited() == 2.5
    monkeypatch.setattr(threads, "TASKS", tmp_path / "none")
    assert threads.seconds_waited() == 0.0
