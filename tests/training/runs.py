"""A small run with two transitions, for tests of the trainer: its data, its settings, and what it leaves."""

import json

import numpy as np
import torch

from pggan_fast.training import DatasetWriter, TrainConfig

# 4 px until 64 images, fading until 96, 8 px stable until 160, fading until 192, 16 px until the end.
SETTINGS = {
    "stable_kimg": 0.064,
    "transition_kimg": 0.032,
    "total_kimg": 0.240,
    "batch_size": {4: 16, 8: 8},
    "fmap_base": 64,
    "fmap_max": 8,
    "ema_decay": 0.9,
    "tick_kimg": 0.032,
    "sample_kimg": 0.080,
    "checkpoint_kimg": 0.080,
    "device": "cpu",
    "tensorboard": False,  # takes seconds to import
}


def write_data(path, *, classes=("a", "b"), count=40, channels=3, resolution=16):
    random = np.random.default_rng(0)
    with DatasetWriter(path, resolution=resolution, channels=channels, classes=list(classes)) as writer:
        for index in range(count):
            image = random.integers(0, 256, (channels, resolution, resolution), dtype=np.uint8)
            writer.add(image, index % max(1, len(classes)), f"{index}.png")
        writer.commit()
    return path


def config(data, out, **changes):
    return TrainConfig(data=data, out=out, **{**SETTINGS, **changes})


def stats(run):
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def without_times(lines):
    times = ("seconds", "images_per_second", "peak_memory_mib")
    return [{name: value for name, value in line.items() if name not in times} for line in lines]


def assert_same(found, expected, where=""):
    """Equal to the last bit, containers and all."""
    assert type(found) is type(expected), where
    if isinstance(found, dict):
        assert list(found) == list(expected), where
        for name in found:
            assert_same(found[name], expected[name], f"{where}/{name}")
    elif isinstance(found, (list, tuple)):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}/{index}")
    elif isinstance(found, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected), where
    else:
        assert found == expected, where
