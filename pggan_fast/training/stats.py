"""stats.jsonl: one line per tick with the means of what the steps since the last one reported."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pggan_fast.training.schedule import Stage


class Statistics:
    """Sums of the steps' scalars, kept on their device, and the clock of the run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._images = 0  # when the last line was written
        self._seconds = 0.0
        self._started = time.monotonic()  # of a clock that stands still while the run does

    def add(self, scalars: dict[str, Tensor]) -> None:
        """One step's scalars. Does not wait for the device."""
        for name, value in scalars.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._steps += 1

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
            "images_per_second": round((images - self._images) / (seconds - self._seconds), 2),
            "peak_memory_mib": peak_memory_mib(),
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._sums, self._steps, self._images, self._seconds = {}, 0, images, seconds
        return line

    def seconds(self) -> float:
        """Spent in this run so far, earlier sessions included."""
        return time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": self._sums,
            "steps": self._steps,
            "images": self._images,
            "seconds": self._seconds,
            "now": self.seconds(),
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._steps, self._images = state["steps"], state["images"]
        self._seconds = state["seconds"]
        self._started = time.monotonic() - state["now"]


def peak_memory_mib() -> int:
    """Of the device's memory under CUDA, of the process otherwise."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20
