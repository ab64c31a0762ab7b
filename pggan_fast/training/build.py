"""Networks, objective and augmentation as the settings of a run describe them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pggan_fast.networks import AutoencoderDiscriminator, Discriminator, Generator
from pggan_fast.training.augment import AUGMENTS, AdaptiveAugment, DiffAugment
from pggan_fast.training.dataset import PreparedData
from pggan_fast.training.errors import UserError
from pggan_fast.training.losses import OBJECTIVES, Objective
from pggan_fast.training.options import flag

if TYPE_CHECKING:
    from pggan_fast.training.config import TrainConfig

# What `AutoencoderDiscriminator` has no place for.
NOT_IN_AN_AUTOENCODER = ("labels", "attention_at", "residual", "minibatch_discrimination")


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


def check_networks_and_objective(config: TrainConfig) -> None:
    """Raises UserError for settings that do not go together or are out of range."""
    for name in ("penalty_weight", "r1_weight", "drift_weight"):
        value = getattr(config, name)
        if value is not None and value < 0:
            raise UserError(f"{flag(name)} {value}: must be 0 or more")
    for name in ("penalty_target", "clip", "margin", "d_learning_rate_factor", "augment_kimg"):
        if getattr(config, name) <= 0:
            raise UserError(f"{flag(name)} {getattr(config, name)}: must be above 0")
    if config.d_steps < 1:
        raise UserError(f"--d-steps {config.d_steps}: must be 1 or more")
    if not -1 < config.augment_target < 1:
        raise UserError(f"--augment-target {config.augment_target}: must be between -1 and 1")
    at = config.attention_at
    if at is not None and (at < 4 or at & (at - 1) or at > (config.resolution or at)):
        raise UserError(f"--attention-at {at}: must be a power of two from 4 to --resolution")
    if config.label_mode != "acgan" and not config.labels:
        raise UserError(f"--label-mode {config.label_mode}: needs --labels")
    if config.objective == "ebgan":
        for name in NOT_IN_AN_AUTOENCODER:
            if getattr(config, name):
                raise UserError(f"{flag(name)}: does not go with --objective ebgan, whose discriminator has none")
        if config.spectral_norm != "none":
            raise UserError("--spectral-norm: does not go with --objective ebgan")
