"""The settings of a training run. The command line of `pggan-fast train` is made from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pggan_fast.networks.discriminator import LABEL_MODES
from pggan_fast.training.augment import AUGMENTS
from pggan_fast.training.losses import OBJECTIVES
from pggan_fast.training.schedule import BATCH_SIZES, LEARNING_RATES, Schedule
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.optional import require
from pggan_fast.utils.options import flag, option, table, table_text

# What `AutoencoderDiscriminator` has no place for.
NOT_IN_AN_AUTOENCODER = ("labels", "attention_at", "residual", "minibatch_discrimination")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `pggan-fast train`; a run keeps them in its config.json."""

    # Where
    data: Path = option(help="prepared data (pggan-fast prepare)", changeable=True)
    out: Path = option(help="folder of the run; must not hold another one", changeable=True)
    device: str = option("auto", help="auto, cpu, cuda or cuda:N", changeable=True)

    # Growth
    resolution: int | None = option(None, help="final side in pixels, the shorter one (default: the data's)")
    start_resolution: int = option(4, help="side in pixels that training starts with")
    progressive: bool = option(True, help="grow; without, train at the full size from the start, for as many images")
    init_from: Path | None = option(None, help="start from the weights of this run or .safetensors file")
    stable_kimg: float = option(600.0, help="thousand images per stable phase")
    first_stable_kimg: float | None = option(None, help="the same for the start resolution, if it is to differ")
    transition_kimg: float = option(600.0, help="thousand images per transition")
    total_kimg: float | None = option(
        None,
        help="thousand images in all (default: the growth and 3 more stable phases)",
        changeable=True,
    )
    batch_size: dict[int, int] = option(
        BATCH_SIZES, parse=table(int), help="one number, or numbers from a resolution on"
    )
    learning_rate: dict[int, float] = option(LEARNING_RATES, parse=table(float), help="Adam's, in the same form")

    # Networks
    labels: bool = option(False, help="train a conditional GAN on the data's classes")
    latent_dim: int | None = option(None, help="size of the latent (default: channels at 4 px)")
    fmap_base: int = option(8192, help="channels at a resolution r: 2 * fmap-base / r ...")
    fmap_max: int = option(512, help="... but at most this many")
    label_mode: str = option("acgan", choices=LABEL_MODES, help="how D sees the classes")
    attention_at: int | None = option(None, help="resolution with a self-attention layer in G and D")
    residual: bool = option(False, help="residual blocks, which fade in from 0 by training")
    spectral_norm: str = option("none", choices=("none", "discriminator", "both"), help="networks it is used in")
    minibatch_discrimination: bool = option(False, help="a layer of it before D's last")
    ema_decay: float = option(0.999, help="decay per step of the averaged generator")

    # Objective
    objective: str = option("wgan-gp", choices=tuple(OBJECTIVES), help="what D and G minimise")
    penalty_weight: float | None = option(None, help="of the gradient penalty (default 10 with wgan-gp, else 0)")
    penalty_target: float = option(1.0, help="gradient norm it pulls to; the paper's CIFAR-10 run had 750")
    penalty_at: str = option("live", choices=("live", "final"), help="size of the images it is of; official: final")
    r1_weight: float = option(0.0, help="of the R1 penalty")
    drift_weight: float | None = option(None, help="of mean(real score^2) (default 0.001 with wgan-gp, else 0)")
    clip: float = option(0.5, help="bound of D's weights with wgan")
    margin: float = option(0.3, help="of ebgan")
    d_steps: int = option(1, help="steps of D, each on a batch of its own, for one of G")
    d_learning_rate_factor: float = option(1.0, help="D's learning rate as a multiple of G's (TTUR)")
    augment: str = option("none", choices=("none", *AUGMENTS), help="of what D sees, for small data sets")
    augment_target: float = option(0.6, help="of ada: the overfitting that it aims at")
    augment_kimg: float = option(500.0, help="of ada: thousand images in which it would go from nothing to all")

    # Running
    precision: str = option("fp32", choices=("fp32", "bf16", "fp16"), help="autocast of the step", changeable=True)
    micro_batch: dict[int, int] | None = option(
        None,
        parse=table(int),
        help="most images at once, as for --batch-size; the parts' gradients add up",
        changeable=True,
    )
    activation_checkpointing: bool = option(
        False, help="compute each block again in the backward passes: less memory, more time", changeable=True
    )
    compile: bool = option(False, help="the networks through torch.compile, at each stage anew", changeable=True)
    cuda_graphs: bool = option(False, help="record the step as a CUDA graph, at each stage anew", changeable=True)
    time_limit: float | None = option(None, help="minutes after which to have saved and left", changeable=True)
    mirror: bool = option(True, help="show every second image mirrored")
    seed: int = option(0, help="of weights, latents and data order")

    # Reporting
    tensorboard: bool | None = option(
        None, help="events for TensorBoard (default: if it is installed)", changeable=True
    )
    tick_kimg: float = option(4.0, help="thousand images per status line and line of stats.jsonl", changeable=True)
    sample_kimg: float = option(20.0, help="thousand images per sample grid", changeable=True)
    checkpoint_kimg: float = option(50.0, help="thousand images per checkpoint", changeable=True)
    metrics: str = option("", help="measured while training, comma-separated: see evaluate --help", changeable=True)
    metric_kimg: float = option(50.0, help="thousand images from one measurement to the next", changeable=True)
    metric_images: int = option(2000, help="generated and real images that are compared", changeable=True)

    def __post_init__(self) -> None:
        for name in ("tick_kimg", "sample_kimg", "checkpoint_kimg", "metric_kimg"):
            if images_of(getattr(self, name)) < 1:
                raise UserError(f"{flag(name)} {getattr(self, name)}: must be 0.001 or more")
        if self.time_limit is not None and self.time_limit <= 0:
            raise UserError(f"--time-limit {self.time_limit}: must be above 0 minutes")
        if self.micro_batch is not None and (
            min(self.micro_batch) > self.start_resolution or min(self.micro_batch.values()) < 1
        ):
            raise UserError(
                f"--micro-batch {table_text(self.micro_batch)}: needs 1 or more, from {self.start_resolution} px on"
            )
        if self.compile and self.activation_checkpointing:
            raise UserError("--compile and --activation-checkpointing: only one of them at a time")
        if self.metric_images < 2:
            raise UserError(f"--metric-images {self.metric_images}: must be 2 or more")
        for name in ("fmap_base", "fmap_max", "latent_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{flag(name)} {value}: must be 1 or more")
        if self.tensorboard:
            require("tensorboard", extra="tensorboard", what="--tensorboard")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"--ema-decay {self.ema_decay}: must be from 0 to below 1")
        check_networks_and_objective(self)
        if self.resolution is not None:
            self.schedule()  # reports what is wrong with the settings of growth

    def schedule(self) -> Schedule:
        """The growth schedule; `resolution` must be known."""
        assert self.resolution is not None
        return Schedule(
            resolution=self.resolution,
            start_resolution=self.start_resolution,
            stable_images=images_of(self.stable_kimg),
            transition_images=images_of(self.transition_kimg),
            batch_sizes=self.batch_size,
            learning_rates=self.learning_rate,
            total_images=None if self.total_kimg is None else images_of(self.total_kimg),
            first_images=None if self.first_stable_kimg is None else images_of(self.first_stable_kimg),
            progressive=self.progressive,
        )


def images_of(kimg: float) -> int:
    """Thousands of images as a count."""
    return round(kimg * 1000)


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
