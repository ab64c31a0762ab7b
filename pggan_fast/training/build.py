"""Networks, objective and augmentation as the settings of a run describe them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pggan_fast.data.dataset import PreparedData
from pggan_fast.networks import AutoencoderDiscriminator, Discriminator, Generator
from pggan_fast.training.augment import AUGMENTS, AdaptiveAugment, DiffAugment
from pggan_fast.training.losses import OBJECTIVES, Objective

if TYPE_CHECKING:
    from pggan_fast.training.config import TrainConfig


def build_networks(config: TrainConfig, data: PreparedData) -> tuple[Generator, Discriminator]:
    """Fresh ones, on the CPU."""
    shared: dict[str, Any] = {
        "image_channels": data.channels,
        "base": data.base,
        "fmap_base": config.fmap_base,
        "fmap_max": config.fmap_max,
    }
    options = {
        **shared,
        "label_dim": len(data.classes) if config.labels else 0,
        "attention_at": config.attention_at,
        "residual": config.residual,
    }
    both = config.spectral_norm == "both"
    G = Generator(config.resolution, latent_dim=config.latent_dim, spectral_norm=both, **options)
    if config.objective == "ebgan":
        return G, AutoencoderDiscriminator(config.resolution, **shared)
    D = Discriminator(
        config.resolution,
        label_mode=config.label_mode,
        minibatch_discrimination=config.minibatch_discrimination,
        spectral_norm=config.spectral_norm != "none",
        **options,
    )
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
