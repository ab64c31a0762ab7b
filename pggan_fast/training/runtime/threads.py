"""Threads of a CPU that other programs use too: one less while they take part of it.

Threads of one parallel region wait for the last of them, so one that is not scheduled holds up all: on two cores beside
one busy program two threads are slower than one. How long threads were ready to run and did not is what Linux counts
in /proc/self/task/*/schedstat.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

TASKS = Path("/proc/self/task")
PERIOD = 2.0  # seconds between two looks
CROWDED = 0.25  # seconds that threads waited for a core, per second: one less from here on
FREE = 0.05
FIRST_PATIENCE = 10.0  # seconds without waiting until one more is tried
MOST_PATIENCE = 160.0


class Threads:
    """A choice that follows the load: `follow` is called at every step, and looks every two seconds.

    Results depend on the number of threads to rounding, and so on the load.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, waited: Callable[[], float] | None = None):
        self._clock, self._waited = clock, waited or seconds_waited
        self.most = self.count = torch.get_num_threads()
        self._looked, self._last = clock(), self._waited()
        self._free_since, self._patience = clock(), FIRST_PATIENCE

    def follow(self) -> None:
        """Take one thread less or more, if it is time."""
        now = self._clock()
        if now - self._looked < PERIOD:
            return
        waited = self._waited()
        crowded = (waited - self._last) / (now - self._looked)
        self._looked, self._last = now, waited
        if crowded > FREE:
            self._free_since = now
        if crowded > CROWDED and self.count > 1:
            # One more was tried and did not pay: the next trial waits longer.
            self._set(self.count - 1)
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        elif self.count < self.most and now - self._free_since >= self._patience:
            self._set(self.count + 1)
            self._free_since = now
        elif self.count == self.most and now - self._free_since >= MOST_PATIENCE:
            self._patience = FIRST_PATIENCE

    def _set(self, count: int) -> None:
        self.count = count
        torch.set_num_threads(count)


def seconds_waited() -> float:
    """Seconds that this process's threads were ready to run without a core; 0 where nobody counts them."""
    total = 0
    for task in TASKS.glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[1])
        except (OSError, ValueError, IndexError):  # a thread that has just ended
            continue
    return total * 1e-9
