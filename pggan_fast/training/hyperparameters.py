"""The settings of a run at one moment, as curves over the images set them: a pure function."""

from __future__ import annotations

from pggan_fast.training.average import decay_of
from pggan_fast.training.config import TrainConfig, images_of
from pggan_fast.training.schedule import Stage
from pggan_fast.utils.curve import Curve, is_curve

CURVES = {"adam_beta2": "beta2", "r1_weight": "r1_weight", "r2_weight": "r2_weight", "augment_p": "augment_p"}


def hyperparameters(config: TrainConfig, stage: Stage, images: int) -> dict[str, float]:
    """Return the values for `TrainStep.set_hyperparameters` after `images` images, at `stage`.

    Only what changes is there: what a curve sets, and the decay of an average that has a half-life.
    """
    values = {name: getattr(config, field) for field, name in CURVES.items()}
    found = {name: Curve.parse(value).at(images) for name, value in values.items() if is_curve(value)}
    if config.ema_half_life_kimg is not None:
        half_life = Curve.parse(config.ema_half_life_kimg).at(images)
        step_images = stage.batch_size * config.d_steps
        found["ema_decay"] = decay_of(images_of(half_life), step_images, images=images, ramp=config.ema_ramp)
    return found
