"""SignalHandler from outside: signals and the time limit."""

import os
import signal

import pytest

from pggan_fast.training.runtime import signals
from pggan_fast.training.runtime.signals import SignalHandler


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(signals, "time", clock)
    return clock


def test_the_time_limit_leaves_room_for_the_longest_iteration(clock):
    requests = SignalHandler(3600.0)  # 30 seconds of them are kept back
    for seconds in (10, 140, *[10] * 311):
        clock.now += seconds
        assert not requests.leave()
    clock.now += 31  # 3291 seconds gone, and the next iteration may take 140, the save after it too
    assert requests.leave()


def test_a_short_limit_is_not_all_kept_back(clock):
    requests = SignalHandler(10.0)
    clock.now += 0.5
    assert not requests.leave()
    clock.now += 7.8
    assert requests.leave()


def test_without_a_limit_it_never_leaves(clock):
    requests = SignalHandler()
    clock.now += 1e9
    assert not requests.leave()


def test_a_ctrl_c_that_torchrun_repeats_is_one(clock):
    with SignalHandler(forwarded=True) as requests:
        os.kill(os.getpid(), signal.SIGINT)
        clock.now += 0.5
        os.kill(os.getpid(), signal.SIGINT)
        assert requests.leave()
        clock.now += 5
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()


def test_sigterm_after_ctrl_c_changes_nothing():
    with SignalHandler() as requests:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests.leave()


def test_a_save_is_asked_for_once_and_handlers_are_put_back():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with SignalHandler() as requests:
        assert not requests.save()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert requests.save() and not requests.save() and not requests.leave()
    assert [signal.getsignal(number) for number in numbers] == before
