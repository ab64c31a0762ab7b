"""Networks, objective and augmentation as the settings of a run describe them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from pggan_fast.data.dataset import PreparedData
from pggan_fast.networks import NETWORKS, AutoencoderDiscriminator, BaseDiscriminator, BaseGenerator
from pggan_fast.networks.options import chosen
from pggan_fast.training.augment import AUGMENTS, AdaptiveAugment, DiffAugment
from pggan_fast.training.losses import OBJECTIVES, Objective
from pggan_fast.training.penalties import Weight
from pggan_fast.utils.curve import Curve, is_curve

if TYPE_CHECKING:
    from pggan_fast.training.config import TrainConfig


def build_networks(config: TrainConfig, data: PreparedData) -> tuple[BaseGenerator, BaseDiscriminator]:
    """Fresh ones, on the CPU: each takes the settings that are named as its options are, and what the data say."""
    settings: dict[str, Any] = {
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(config)},
        "image_channels": data.channels,
        "base": data.base,
        "label_dim": len(data.classes) if config.labels else 0,
    }
    generator, discriminator = NETWORKS[config.network]
    if config.latent_dim is None:
        del settings["latent_dim"]  # each network has a default of its own
    if config.objective == "ebgan":
        discriminator = AutoencoderDiscriminator
    G = generator(**chosen(generator.Options, {**settings, "spectral_norm": config.spectral_norm == "both"}))
    D = discriminator(**chosen(discriminator.Options, {**settings, "spectral_norm": config.spectral_norm != "none"}))
    return G, D


def build_objective(config: TrainConfig) -> Objective:
    own = {"wgan": {"clip": config.clip}, "ebgan": {"margin": config.margin}}
    return OBJECTIVES[config.objective](
        penalty_weight=config.penalty_weight,
        penalty_target=config.penalty_target,
        full_resolution=config.resolution if config.penalty_at == "final" else None,
        r1_weight=_weight(config.r1_weight),
        r2_weight=_weight(config.r2_weight),
        drift_weight=config.drift_weight,
        label_weight=config.label_weight,
        g_label_weight=config.g_label_weight,
        **own.get(config.objective, {}),
    )


def _weight(value: float | str) -> Weight:
    """Return a weight as an objective takes it: one that a curve changes lives on the device."""
    return torch.tensor(Curve.parse(value).at(0)) if is_curve(value) else value


def build_augment(config: TrainConfig) -> DiffAugment | AdaptiveAugment | None:
    if config.augment == "none":
        return None
    if config.augment == "ada":
        p = None if config.augment_p is None else Curve.parse(config.augment_p).at(0)
        return AdaptiveAugment(config.augment_target, config.augment_kimg, p)
    return AUGMENTS[config.augment]()
