"""Networks, objective and augmentation as the settings of a run describe them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from pggan_fast.data.dataset import PreparedData
from pggan_fast.networks import NETWORKS, AutoencoderDiscriminator, BaseDiscriminator, BaseGenerator
from pggan_fast.networks.options import chosen
from pggan_fast.training.augment import AUGMENTS, AdaptiveAugment, DiffAugment
from pggan_fast.training.losses import OBJECTIVES, Objective

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
        r1_weight=config.r1_weight,
        drift_weight=config.drift_weight,
        **own.get(config.objective, {}),
    )


def build_augment(config: TrainConfig) -> DiffAugment | AdaptiveAugment | None:
    if config.augment == "none":
        return None
    if config.augment == "ada":
        return AdaptiveAugment(config.augment_target, config.augment_kimg)
    return AUGMENTS[config.augment]()
