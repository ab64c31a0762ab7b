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

from pggan_fast.networks.resolutions import HIGHEST, LOWEST
from pggan_fast.training.schedule import Stage
from pggan_fast.utils.schema import Each, OneOf, any_number, find_problem, number

LINE = Each(
    str,
    OneOf(any_number, None),
    named={
        "images": number(0, whole=True),
        "resolution": number(LOWEST, HIGHEST, whole=True),
        "alpha": number(0, 1),
        "batch_size": number(1, whole=True),
        "learning_rate": number(0),
        "seconds": number(0),
        "images_per_second": number(),
    },
)
"""A line of stats.jsonl; what is not named here is a mean of the steps or a metric."""


def read_line(text: str) -> dict[str, Any] | None:
    """Return the values of a line of stats.jsonl, None for a line that is none."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return None if find_problem(line, LINE) else line


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the values of all lines of a stats.jsonl; foreign ones are left out, and there may be no file."""
    if not path.is_file():
        return []
    texts = path.read_bytes().decode("utf-8", "replace").split("\n")
    return [line for line in map(read_line, texts) if line is not None]


class Statistics:
    """Sums of the steps' scalars, kept on their device, and the clock of the run."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path = path
        self.writes = writes  # one of several processes does
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}  # of the steps that reported a scalar: some are not there in each
        self._steps = 0
        self.line_steps: int | None = None  # in the line written last; None where that is not known
        self._noted: dict[str, float] = {}
        self._images = 0  # when the last line was written
        self._seconds = 0.0
        self._aside = 0.0  # seconds since then that were no training
        self._started = time.monotonic()  # of a clock that stands still while the run does

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Add one step's scalars. Does not wait for the device."""
        for name, value in scalars.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1
        self._steps += 1

    def note(self, measure: Callable[[], dict[str, float]]) -> None:
        """Keep what `measure` returns for the next line; the time it takes is not counted as training."""
        started = self.seconds()
        self._noted |= measure()
        self._aside += self.seconds() - started

    def write(self, images: int, stage: Stage, hyperparameters: dict[str, float] | None = None) -> dict[str, Any]:
        """Append a line to the file, start anew, and return the line's values.

        `hyperparameters` are those that a curve sets, as the last step had them.
        """
        seconds = self.seconds()
        line = {
            "images": images,
            "resolution": stage.resolution,
            "alpha": stage.alpha,
            "batch_size": stage.batch_size,
            "learning_rate": stage.learning_rate,
            **(hyperparameters or {}),
            **{name: value.item() / self._counts.get(name, self._steps) for name, value in self._sums.items()},
            "seconds": round(seconds, 2),
            "images_per_second": round((images - self._images) / max(seconds - self._seconds - self._aside, 1e-9), 2),
            "peak_memory_mib": peak_memory_mib(),
            **self._noted,
        }
        if self.writes:
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                error.filename = error.filename or str(self.path)  # a full disk does not say which file it was
                raise
        self.line_steps = self._steps
        self._sums, self._counts, self._steps, self._images, self._seconds = {}, {}, 0, images, seconds
        self._noted, self._aside = {}, 0.0
        return line

    def seconds(self) -> float:
        """Return the time spent in this run so far, earlier sessions included."""
        return time.monotonic() - self._started

    def state_dict(self) -> dict[str, Any]:
        return {
            "sums": self._sums,
            "counts": self._counts,
            "steps": self._steps,
            "noted": self._noted,
            "images": self._images,
            "seconds": self._seconds,
            "aside": self._aside,
            "now": self.seconds(),
            "line_steps": self.line_steps or 0,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._steps, self._images = state["steps"], state["images"]
        self._counts = dict(state.get("counts") or dict.fromkeys(self._sums, self._steps))
        self._noted = dict(state["noted"])
        self.line_steps = state.get("line_steps") or None
        self._seconds, self._aside = state["seconds"], state["aside"]
        self._started = time.monotonic() - state["now"]


def peak_memory_mib() -> int:
    """Return the peak of the device's memory under CUDA, of the process's otherwise."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() >> 20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20
