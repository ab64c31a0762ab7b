"""A run that ends when it has had its processor time, with its distances to the data on the way."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from pggan_fast.evaluation import metric_callback_for
from pggan_fast.networks import Generator
from pggan_fast.training import RunFolder, Stage, TrainConfig, train


class OutOfTime(Exception):
    """The run has had its share."""


class Clock:
    """A metric callback that notes the distances with the processor time of training, and ends the run in time."""

    def __init__(self, run: RunFolder, file: Path, seconds: float) -> None:
        self._metric_callback = metric_callback_for(run)
        self._file = file
        self._seconds = seconds
        self._aside = time.process_time()  # not spent on training

    def __call__(self, G: Generator, stage: Stage, alpha: float | torch.Tensor) -> dict[str, float]:
        began = time.process_time()
        trained = began - self._aside
        values = self._metric_callback(G, stage, alpha)
        self._aside += time.process_time() - began
        line = {"seconds": round(trained, 2), "resolution": stage.resolution, **values}
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if trained >= self._seconds:
            raise OutOfTime
        return values


def run_for(config: TrainConfig, seconds: float) -> list[dict[str, float]]:
    """Train a new run on one thread for so many seconds of the processor. Its distances go to OUT.jsonl beside it."""
    torch.set_num_threads(1)
    file = Path(f"{config.out}.jsonl")
    run = RunFolder.create(config)
    try:
        train(run, metric_callback=Clock(run, file, seconds))
    except OutOfTime:
        print(f"{config.out}: {seconds:g} s are over")
    return lines_of(file)


def lines_of(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
