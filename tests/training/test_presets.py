"""Presets: every one is a set of settings that can run, with the published numbers."""

import math

import pytest
import torch

from pggan_fast.training import RunFolder, TrainConfig, train
from pggan_fast.training.build import build_augment, build_networks, build_objective
from pggan_fast.training.hyperparameters import hyperparameters
from pggan_fast.training.losses import Relativistic
from pggan_fast.training.presets import PRESETS
from tests.training.runs import stats, write_data


class Data:
    channels, base, classes = 3, (4, 4), [str(index) for index in range(10)]


def config(preset, **changes):
    return TrainConfig(data="d", out="o", **{"resolution": 64, **PRESETS[preset], **changes})


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_allowed(preset):
    settings = config(preset)
    assert {name: getattr(settings, name) for name in PRESETS[preset]} == PRESETS[preset]
    curves = hyperparameters(settings, settings.schedule().at(0), 0)
    assert all(math.isfinite(value) for value in curves.values())
    assert ("ema_decay" in curves) == (settings.ema_half_life_kimg is not None)


# Channels and groups at 4 px and up, batch size; R1 and R2, augmentation and half-life (kimg) at the start and the end:
# the published code's settings.
PUBLISHED = {
    "r3gan-cifar10": ([768] * 4, [96] * 4, 512, (0.05, 0.005), 0.55, 5000),
    "r3gan-ffhq64": ([768] * 4 + [384], [96] * 4 + [48], 256, (2, 0.2), 0.3, 500),
    "r3gan-ffhq256": ([768] * 4 + [384, 192, 96], [96] * 4 + [48, 24, 12], 256, (150, 15), 0.3, 500),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_settings_of_r3gan_are_the_published_ones(preset):
    widths, groups, batch_size, weights, augment_p, half_life = PUBLISHED[preset]
    settings = config(preset)
    with torch.device("meta"):
        G, _ = build_networks(settings, Data)
    resolutions = [4 << index for index in range(len(widths))]
    assert G.label_dim == (10 if preset == "r3gan-cifar10" else 0)  # that alone is trained with --cond=1
    assert settings.resolution == resolutions[-1] and [G.config.channels(r) for r in resolutions] == widths
    found = {m.groups for m in G.modules() if getattr(m, "groups", 1) > 1}
    assert found == set(groups) and G.latent_dim == 64
    objective, augment = build_objective(settings), build_augment(settings)
    assert isinstance(objective, Relativistic) and objective.penalty_weight == 0 and not augment.adapts
    for images, index in ((0, 0), (20_000_000, 1)):
        stage = settings.schedule().at(images)
        assert (stage.resolution, stage.alpha, stage.batch_size) == (resolutions[-1], 1.0, batch_size)
        assert stage.learning_rate == (2e-4, 5e-5)[index]
        values = hyperparameters(settings, stage, images)
        expected = {
            "beta2": (0.9, 0.99)[index],
            "r1_weight": weights[index],
            "r2_weight": weights[index],
            "augment_p": (0, augment_p)[index],
            "ema_decay": (0, 0.5 ** (batch_size / (1000 * half_life)))[index],
        }
        assert values == pytest.approx(expected)


def test_the_small_preset_trains(tmp_path, threads):
    torch.set_num_threads(1)
    data = write_data(tmp_path / "data", resolution=8)
    small = {**PRESETS["r3gan-cpu-small"], "total_kimg": 0.096, "tick_kimg": 0.032, "tensorboard": False}
    assert train(RunFolder.create(TrainConfig(data=data, out=tmp_path / "run", device="cpu", **small)))
    lines = stats(tmp_path / "run")
    assert [line["images"] for line in lines] == [32, 64, 96] and not any(line["skipped"] for line in lines)
    assert all(line["real_gradient_norm"] > 0 and line["fake_gradient_norm"] > 0 for line in lines)
