"""Settings of a training run that are fine alone and do not go together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pggan_fast.networks import NETWORKS
from pggan_fast.networks.options import channels
from pggan_fast.networks.resolutions import LOWEST, resolutions_up_to
from pggan_fast.training.losses import OBJECTIVES
from pggan_fast.utils.errors import UserError, nearest
from pggan_fast.utils.optional import require
from pggan_fast.utils.options import flag, table_text

if TYPE_CHECKING:
    from pggan_fast.training.config import TrainConfig

# What only one kind of networks has.
ONLY_PGGAN = (
    "attention_at",
    "residual",
    "minibatch_discrimination",
    "spectral_norm",
    "label_mode",
    "slope",
    "pixel_norm",
    "pixel_norm_eps",
    "normalize_latents",
    "use_wscale",
    "fused_scale",
    "mbstd_group_size",
)
ONLY_R3GAN = ("blocks", "expansion", "group_channels")
# What `AutoencoderDiscriminator` has no place for.
NOT_IN_AN_AUTOENCODER = ("labels", "attention_at", "residual", "minibatch_discrimination")
# The trackers, by the name of their module and of their extra.
TRACKED = ("wandb", "mlflow", "trackio", "tensorboard")


def check_together(config: TrainConfig) -> None:
    """Raise UserError for settings that are fine alone and do not go together."""
    tables = {"batch_size": config.batch_size, "learning_rate": config.learning_rate, "micro_batch": config.micro_batch}
    for name, values in tables.items():
        if isinstance(values, dict) and min(values) > config.start_resolution:
            raise UserError(
                f"{flag(name)} {table_text(values)}: needs a value from {config.start_resolution} px on,"
                " where training starts"
            )
    if config.compile and config.activation_checkpointing:
        raise UserError("--compile and --activation-checkpointing: only one of them at a time")
    if config.activation_checkpointing and config.spectral_norm != "none":
        raise UserError("--activation-checkpointing: does not go with --spectral-norm, which each pass would move on")
    if config.tensorboard:
        require("tensorboard", extra="tensorboard", what="--tensorboard")
    for name in config.trackers():
        if name not in TRACKED:
            raise UserError(
                f"--track {config.track}: {name} must be one of: none, {', '.join(TRACKED)}{nearest(name, TRACKED)}"
            )
    if config.ema_ramp is not None and config.ema_half_life_kimg is None:
        raise UserError(f"--ema-ramp {config.ema_ramp:g}: needs --ema-half-life-kimg")
    if config.augment_p is not None and config.augment != "ada":
        raise UserError(f"--augment-p {config.augment_p}: needs --augment ada")
    if config.penalty_on == "raw" and config.augment == "none":
        raise UserError("--penalty-on raw: needs --augment, without which all images are raw")
    if config.penalty_every > 1 and not _penalizes(config):
        raise UserError(
            f"--penalty-every {config.penalty_every}: --objective {config.objective} has no penalty by itself,"
            " needs --r1-weight, --r2-weight or --penalty-weight"
        )
    if config.label_mode != "acgan" and not config.labels:
        raise UserError(f"--label-mode {config.label_mode}: needs --labels")
    _check_network(config)
    if config.objective == "ebgan":
        for name in NOT_IN_AN_AUTOENCODER:
            if getattr(config, name):
                raise UserError(f"{flag(name)}: does not go with --objective ebgan, whose discriminator has none")
        if config.spectral_norm != "none":
            raise UserError("--spectral-norm: does not go with --objective ebgan")
    if config.resolution is None:  # the data's, checked again when they are known
        return
    if config.start_resolution > config.resolution:
        raise UserError(
            f"--start-resolution {config.start_resolution}: must not be above --resolution {config.resolution}"
        )
    if (config.attention_at or LOWEST) > config.resolution:
        raise UserError(f"--attention-at {config.attention_at}: must not be above --resolution {config.resolution}")
    if config.network == "r3gan":
        _check_groups(config, config.resolution)
    if channels(config.resolution, config.fmap_base, config.fmap_decay, config.fmap_max) < 1:
        raise UserError(
            f"--fmap-base {config.fmap_base}: leaves no channel at {config.resolution} px,"
            f" must be {config.resolution // 2} or more"
        )
    if not any(round(kimg * 1000) for kimg in (config.stable_kimg, config.transition_kimg)):
        raise UserError(
            f"--stable-kimg {config.stable_kimg:g}, --transition-kimg {config.transition_kimg:g}:"
            " one of them must be 0.001 or more, an image"
        )
    config.schedule()  # reports what is wrong with the settings of growth


def _penalizes(config: TrainConfig) -> bool:
    """Whether D's loss has a penalty on gradients; a weight that follows a curve is a text."""
    own = OBJECTIVES[config.objective].default_penalty_weight
    weight = own if config.penalty_weight is None else config.penalty_weight
    return any((weight, config.r1_weight, config.r2_weight))


def _check_network(config: TrainConfig) -> None:
    """Raise UserError for an option that the networks do not have, growth among them."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in ONLY_PGGAN if config.network == "r3gan" else ONLY_R3GAN:
        value = getattr(config, name)
        if value != defaults[name]:
            raise UserError(f"{flag(name)}: does not go with --network {config.network}")
    if config.progressive and not NETWORKS[config.network].generator.grows:
        raise UserError(f"--progressive: does not go with --network {config.network}, which does not grow")
    if config.network == "r3gan" and config.objective == "ebgan":
        raise UserError("--network r3gan: does not go with --objective ebgan, whose discriminator is an autoencoder")


def _check_groups(config: TrainConfig, resolution: int) -> None:
    """Raise UserError unless groups of the 3x3 convolutions divide the channels at every resolution."""
    for r in resolutions_up_to(resolution):
        hidden = channels(r, config.fmap_base, config.fmap_decay, config.fmap_max) * config.expansion
        if hidden % config.group_channels:
            raise UserError(
                f"--group-channels {config.group_channels}: must divide the {hidden} channels of the blocks at {r} px"
            )
