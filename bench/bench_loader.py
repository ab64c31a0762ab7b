"""The data's share of a training step, at every stage of the paper's one-GPU schedule.

Images come from prepared data on the disk, in the batch sizes of the schedule, converted and faded as the trainer does
it, while the step before them is computed. The networks are an eighth as wide as the paper's at most: wider ones only
make the share smaller.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.baseline.matched_networks import networks
from bench.harness.timing import spread
from pggan_fast.data.batches import Batches
from pggan_fast.data.prefetch import Prefetcher
from pggan_fast.ops import fade_reals
from pggan_fast.training import DatasetWriter, PreparedData, TrainStep
from pggan_fast.training.schedule import BATCH_SIZES, from_table

RESOLUTIONS = [2**level for level in range(2, 11)]
IMAGES = 96
NARROW = {"fmap_base": 1024, "fmap_max": 64}
STEPS_AT_LEAST, SECONDS = 3, 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise at 1024 px and below, 400 MB."""
    out = tmp_path_factory.mktemp("loader") / "data"
    random = np.random.default_rng(0)
    with DatasetWriter(out, resolution=RESOLUTIONS[-1], channels=3, classes=[]) as writer:
        for index in range(IMAGES):
            shape = (3, RESOLUTIONS[-1], RESOLUTIONS[-1])
            writer.add(random.integers(0, 256, shape, dtype=np.uint8), 0, str(index))
        writer.commit()
    return out


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_loader(resolution: int, folder: Path, record) -> None:
    record(loader_record(folder, resolution, from_table(BATCH_SIZES, resolution)))


def loader_record(folder: Path, resolution: int, batch: int, seconds: float = SECONDS, **options: int) -> dict:
    """Seconds per step, and those of them that are spent waiting for a batch."""
    step = TrainStep(*networks(resolution, **{**NARROW, **options}))
    waits, steps = zip(*list(_timed_steps(step, folder, resolution, batch, seconds)), strict=True)
    return {
        "suite": "loader",
        "shape": f"{batch}x3x{resolution}x{resolution}",
        "dtype": "uint8",
        "layout": "nchw",
        "pass": "training step",
        "rounds": len(steps),
        "seconds": {"ours": spread(waits), "step": spread(steps)},
        "speedups": {"ours": {"step": spread([whole / wait for wait, whole in zip(waits, steps, strict=True)])}},
    }


def _timed_steps(
    step: TrainStep, folder: Path, resolution: int, batch: int, seconds: float
) -> Iterator[tuple[float, float]]:
    """(seconds until the batch was there, seconds of the whole step), after one step to warm up."""
    begin = time.perf_counter()
    with closing(Prefetcher(Batches(PreparedData(folder), seed=0))) as batches:
        count = 0
        while count <= STEPS_AT_LEAST or time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            pixels, _ = batches.next(batch, resolution)
            read = time.perf_counter()
            step(fade_reals(pixels, 1.0).contiguous(memory_format=torch.channels_last))
            if count:
                yield read - start, time.perf_counter() - start
            count += 1
