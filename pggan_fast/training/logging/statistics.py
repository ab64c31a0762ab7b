"""stats.jsonl: one line per tick with the means of what the steps since the last one reported."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pggan_fast.training.schedule import Stage


class Statistics:
    """Sums of the steps' scalars, kept on their device, and the clock of the run."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes  # one of several processes does
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._noted: dict[str, float] = {}
        self._images = 0  # when the last line was written
        self._seconds = 0.0
        self._aside = 0.0  # seconds since then that were no training
        self._started = time.monotonic()  # of a clock that stands still while the run does

    def add(self, scalars: dict[str, Tensor]) -> None:
        """One step's scalars. Does not wait for the device."""
        for name, value in scalars.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._steps += 1

    def note(self, measure: Callable[[], dict[str, float]]) -> None:
        """What `measure` finds, for the next line; the time it takes is not counted as training."""
        started = self.seconds()
        self._noted |= measure()
        self._aside += self.seconds() - started

    def write(self, images: int, stage: Stage) -> dict[str, Any]:
        """Append a line to the file, start anew, and return the line's values."""
        seconds = self.seconds()
        line = {
            "images": images,
            "resolution": stage.resolution,
            "alpha": stage.alpha,
            "batch_size": stage.batch_size,
            "learning_rate": stage.learning_rate,
            **{name: value.item() / self._steps for name, value in self._sums.items()},
            "seconds": round(seconds, 2),
            "images_per_second": round((images - self._images) / (seconds - self._seconds - self._aside), 2),
            "peak_memory_mib": peak_memory_mib(),
            **self._noted,
        }
        if self.writes:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self._sums, self._steps, self._images, self._seconds = {}, 0, images, seconds
        self._noted, self._aside = {}, 0.0
        return line

    def seconds(self) -> float:
        """Spent in this run so far, earlier sessions included."""
        return time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": self._sums,
            "steps": self._steps,
            "noted": self._noted,
            "images": self._images,
            "seconds": self._seconds,
            "aside": self._aside,
            "now": self.seconds(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._steps, self._images = state["steps"], state["images"]
        self._noted = dict(state["noted"])
        self._seconds, self._aside = state["seconds"], state["aside"]
        self._started = time.monotonic() - state["now"]


def peak_memory_mib() -> int:
    """Of the device's memory under CUDA, of the process otherwise."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20
