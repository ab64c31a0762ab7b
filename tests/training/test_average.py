"""Averages by half-life: at any batch size, ramped up, and read on the device."""

import pytest
import torch

from pggan_fast.training import TrainConfig
from pggan_fast.training.average import decay_of, follow
from pggan_fast.training.hyperparameters import hyperparameters


@pytest.mark.parametrize("batch_sizes", [[100], [50, 50], [10] * 10, [70, 20, 10]])
def test_after_a_half_life_half_is_left_whatever_the_batches(batch_sizes):
    left = 1.0
    for size in batch_sizes:
        left *= decay_of(100, size)
    assert left == pytest.approx(0.5, rel=1e-12)


def test_ramp_bounds_the_half_life_by_the_images_shown():
    assert decay_of(500, 16, images=0, ramp=0.05) == 0
    assert decay_of(500, 16, images=1000, ramp=0.05) == 0.5 ** (16 / 50)
    assert decay_of(500, 16, images=10**6, ramp=0.05) == decay_of(500, 16) == 0.5 ** (16 / 500)
    assert decay_of(0, 16) == 0


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_follow(kind):
    averages, weights = ([torch.randn(shape) for shape in ((3, 4), (5,))] for _ in range(2))
    expected = [0.9 * a + 0.1 * w for a, w in zip(averages, weights, strict=True)]
    follow(averages, weights, kind(0.9))
    for found, value in zip(averages, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-6, atol=1e-6)  # fp32, three roundings


def test_settings_of_a_moment():
    settings = TrainConfig(
        data="d",
        out="o",
        resolution=8,
        batch_size={4: 32, 8: 16},
        d_steps=2,
        stable_kimg=1.0,
        transition_kimg=1.0,
        adam_beta2="linear:0.9:0.99:2",
        r1_weight="linear:2:0:2",
        augment="ada",
        augment_p="linear:0:0.4:2",
        ema_half_life_kimg="linear:0:4:2",
        ema_ramp=0.5,
    )
    schedule = settings.schedule()
    assert hyperparameters(settings, schedule.at(0), 0) == {
        "beta2": 0.9,
        "r1_weight": 2.0,
        "augment_p": 0.0,
        "ema_decay": 0.0,
    }
    # At 1,000 images: 4 px, two batches of 32 images; a half-life of 2,000, bounded by 500.
    found = hyperparameters(settings, schedule.at(1000), 1000)
    assert found == pytest.approx({"beta2": 0.945, "r1_weight": 1.0, "augment_p": 0.2, "ema_decay": 0.5 ** (64 / 500)})
    # At 8,000: 8 px, two batches of 16; 4,000, the bound of the curve's end and of the ramp.
    assert hyperparameters(settings, schedule.at(8000), 8000)["ema_decay"] == 0.5 ** (32 / 4000)
    plain = TrainConfig(data="d", out="o", resolution=8)
    assert hyperparameters(plain, plain.schedule().at(0), 0) == {}
