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

# What the presets of R3GAN share (arXiv 2501.05441, appendix, and the published train.py; batch sizes, labels and
# mirroring are in its README's commands): curves end at 20,000 kimg. bf16 takes the place of its fp16.
R3GAN: dict[str, Any] = {
    "network": "r3gan",
    "fmap_base": 12288,
    "fmap_max": 768,
    "blocks": 2,
    "expansion": 2,
    "group_channels": 16,
    "latent_dim": 64,
    "batch_size": {4: 256},
    "objective": "relativistic",
    "penalty_on": "raw",
    "augment": "ada",
    "augment_p": "cosine:0:0.3:20000",
    "learning_rate": "cosine:2e-4:5e-5:20000",
    "adam_beta1": 0.0,
    "adam_beta2": "cosine:0.9:0.99:20000",
    "ema_half_life_kimg": "cosine:0:500:20000",
    "mirror": True,
    "precision": "bf16",
    "total_kimg": 20000.0,
}


def _r3gan(resolution: int, weight: str, **changes: Any) -> dict[str, Any]:
    """Return a preset for images of `resolution` px with R1 and R2 of one `weight`."""
    return {**R3GAN, "resolution": resolution, "r1_weight": weight, "r2_weight": weight, **changes}


PRESETS: dict[str, dict[str, Any]] = {
    # The official defaults; the paper's appendix A.1 has the schedule and the optimizer.
    "paper-1gpu": PAPER,
    # The official settings for eight GPUs; batch sizes are those of all eight together.
    "paper-8gpu": {
        **PAPER,
        "batch_size": {4: 512, 8: 256, 16: 128, 32: 64, 64: 32},
        "learning_rate": {4: 1e-3, 128: 1.5e-3, 256: 2e-3, 512: 3e-3},
    },
    # An hour or so for 64 px on two cores; nearer there than the paper's recipe, one seed each: docs/training.md.
    "cpu-small": {
        "start_resolution": 16,
        "stable_kimg": 16.0,
        "transition_kimg": 4.0,
        "total_kimg": 160.0,
        "batch_size": {4: 16},
        "fmap_base": 1024,
        "fmap_max": 128,
        "objective": "relativistic",
        "r1_weight": 0.1,
        "r2_weight": 0.1,
        "penalty_every": 8,
        "learning_rate": "cosine:3e-3:5e-4:160",
        "ema_half_life_kimg": 4.0,
        "tick_kimg": 1.0,
        "sample_kimg": 6.0,
        "checkpoint_kimg": 12.0,
    },
    # Conditional, as the published command trains it: --no-labels for images without classes.
    "r3gan-cifar10": _r3gan(
        32,
        "cosine:0.05:0.005:20000",
        labels=True,
        batch_size={4: 512},
        augment_p="cosine:0:0.55:20000",
        ema_half_life_kimg="cosine:0:5000:20000",
    ),
    "r3gan-ffhq64": _r3gan(64, "cosine:2:0.2:20000"),
    "r3gan-ffhq256": _r3gan(256, "cosine:150:15:20000"),
    # The same on two cores: a sixteenth of the channels, one block at each size, and curves of an hour or so.
    "r3gan-cpu-small": {
        "network": "r3gan",
        "fmap_base": 768,
        "fmap_max": 48,
        "blocks": 1,
        "group_channels": 8,
        "latent_dim": 64,
        "batch_size": {4: 32},
        "objective": "relativistic",
        "r1_weight": "cosine:2:0.2:150",
        "r2_weight": "cosine:2:0.2:150",
        "learning_rate": "cosine:1e-3:2e-4:150",
        "adam_beta2": "cosine:0.9:0.99:150",
        "ema_half_life_kimg": "cosine:0:10:150",
        "total_kimg": 150.0,
        "tick_kimg": 1.0,
        "sample_kimg": 6.0,
        "checkpoint_kimg": 12.0,
    },
}
"""Fields of TrainConfig by the preset's name."""
