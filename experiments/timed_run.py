"""A run that ends when it has had its processor time, with its distances to the data on the way."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from pathlib import Path

import torch

from pggan_fast.evaluation import metric_callback_for
from pggan_fast.networks import Generator
from pggan_fast.training import RunFolder, Stage, TrainConfig, train
from pggan_fast.training.checkpoint import checkpoints


class Clock:
    """A metric callback that notes the distances with the processor time of training, and stops the run in time."""

    def __init__(self, run: RunFolder, file: Path, seconds: float, before: float = 0.0) -> None:
        self._metric_callback = metric_callback_for(run)
        self._file = file
        self._seconds = seconds
        self._aside = time.process_time() - before  # not spent on training, less what earlier processes spent on it

    def __call__(self, G: Generator, stage: Stage, alpha: float | torch.Tensor) -> dict[str, float]:
        began = time.process_time()
        trained = began - self._aside
        values = self._metric_callback(G, stage, alpha)
        self._aside += time.process_time() - began
        line = {"seconds": round(trained, 2), "resolution": stage.resolution, **values}
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if trained >= self._seconds:
            signal.raise_signal(signal.SIGTERM)  # training saves and leaves, one iteration later
        return values


def run_for(config: TrainConfig, seconds: float) -> list[dict[str, float]]:
    """Train a run on one thread for so many seconds of the processor. Its distances go to OUT.jsonl beside it.

    A run that was interrupted continues from its newest checkpoint, with the time that it had taken at the distances
    before it; one that has had its time is left as it is. Distances and checkpoints are at the same images.
    """
    config = dataclasses.replace(config, checkpoint_kimg=config.metric_kimg)
    torch.set_num_threads(1)
    file = Path(f"{config.out}.jsonl")
    before = 0.0
    if config.out.exists():
        run = RunFolder.open(config.out, {"checkpoint_kimg": config.checkpoint_kimg})
        saved = checkpoints(run.checkpoints)
        measured = int(saved[-1].stem) // int(1000 * config.metric_kimg) if saved else 0
        lines = (lines_of(file) if file.exists() else [])[:measured]
        before = lines[-1]["seconds"] if lines else 0.0
        if before >= seconds:
            return lines
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    else:
        run = RunFolder.create(config)
    train(run, metric_callback=Clock(run, file, seconds, before))
    return lines_of(file)


def lines_of(file: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
