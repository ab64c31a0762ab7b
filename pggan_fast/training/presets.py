"""Settings under one name: `pggan-fast train --preset NAME`. An option given beside it has its own value."""

from __future__ import annotations

from typing import Any

from pggan_fast.training.schedule import BATCH_SIZES, LEARNING_RATES

PAPER: dict[str, Any] = {
    "stable_kimg": 600.0,
    "transition_kimg": 600.0,
    "batch_size": BATCH_SIZES,
    "learning_rate": LEARNING_RATES,
    "fmap_base": 8192,
    "fmap_max": 512,
    "ema_decay": 0.999,
    "mirror": True,
}

PRESETS: dict[str, dict[str, Any]] = {
    # The official defaults; the paper's appendix A.1 has the schedule and the optimizer.
    "paper-1gpu": PAPER,
    # The official settings for eight GPUs; batch sizes are those of all eight together.
    "paper-8gpu": {
        **PAPER,
        "batch_size": {4: 512, 8: 256, 16: 128, 32: 64, 64: 32},
        "learning_rate": {4: 1e-3, 128: 1.5e-3, 256: 2e-3, 512: 3e-3},
    },
    # An hour or so for 64 px on two cores: a fiftieth of the images, an eighth of the channels.
    "cpu-small": {
        "stable_kimg": 12.0,
        "transition_kimg": 12.0,
        "batch_size": {4: 16},
        "learning_rate": {4: 1.5e-3},
        "fmap_base": 1024,
        "fmap_max": 128,
        "ema_decay": 0.998,
        "tick_kimg": 1.0,
        "sample_kimg": 6.0,
        "checkpoint_kimg": 12.0,
    },
}
"""Fields of TrainConfig by the preset's name."""
