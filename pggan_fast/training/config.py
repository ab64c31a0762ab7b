"""The settings of a training run. The command line of `pggan-fast train` is made from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pggan_fast.networks import NETWORKS
from pggan_fast.networks.options import LABEL_MODES, MOST_BLOCKS
from pggan_fast.networks.resolutions import HIGHEST, LOWEST
from pggan_fast.training.adam import EPS_PLACES
from pggan_fast.training.augment import AUGMENTS
from pggan_fast.training.config_checks import check_together
from pggan_fast.training.losses import OBJECTIVES
from pggan_fast.training.precision import AUTO, PRECISIONS
from pggan_fast.training.schedule import BATCH_SIZES, LEARNING_RATES, Schedule
from pggan_fast.training.step import PENALTY_ON
from pggan_fast.utils.curve import Curve, is_curve
from pggan_fast.utils.options import check_options, option, table

MOST_KIMG = 1e9  # a trillion images
SEEDS = (1 << 63) - 1


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `pggan-fast train`; a run keeps them in its config.json.

    Every value is checked here, wherever it comes from: alone by `check_options`, together by `check_together`.
    A number that takes a curve may be its text, "cosine:START:END:KIMG": see `utils.curve`.
    """

    data: Path = option(
        help="Folder of prepared data, made by pggan-fast prepare.", changeable=True, group="data and folders"
    )
    out: Path = option(help="Folder of the run, new or empty.", changeable=True)
    init_from: Path | None = option(None, help="Start from the weights of this run or .safetensors file.")
    mirror: bool = option(True, help="Show every second image mirrored.")
    seed: int = option(0, min=0, max=SEEDS, help="Seed of weights, latents and the order of the data.")

    resolution: int | None = option(
        None,
        min=LOWEST,
        max=HIGHEST,
        power_of_two=True,
        group="growth and schedule",
        help="Shorter side of the final images in pixels (default: that of the data).",
    )
    start_resolution: int = option(
        4, min=LOWEST, max=HIGHEST, power_of_two=True, help="Side in pixels that training starts with."
    )
    progressive: bool | None = option(
        None,
        help="Grow; without growth the full size is trained from the start, for as many images (default: as --network"
        " does).",
    )
    stable_kimg: float = option(600.0, min=0, max=MOST_KIMG, metavar="KIMG", help="Thousand images per stable phase.")
    first_stable_kimg: float | None = option(
        None,
        min=0,
        max=MOST_KIMG,
        metavar="KIMG",
        help="Thousand images in the stable phase of the start resolution (default: as --stable-kimg).",
    )
    transition_kimg: float = option(600.0, min=0, max=MOST_KIMG, metavar="KIMG", help="Thousand images per transition.")
    total_kimg: float | None = option(
        None,
        min=0.001,
        max=MOST_KIMG,
        metavar="KIMG",
        help="Thousand images in all (default: the growth and 3 more stable phases).",
        changeable=True,
    )
    batch_size: dict[int, int] = option(
        BATCH_SIZES,
        parse=table(int),
        min=1,
        max=1 << 20,
        help="Images per batch: one number, or numbers from a resolution on.",
    )
    minibatch_repeats: int = option(
        1, min=1, max=1 << 20, help="Steps from one look at the schedule to the next; officially 4."
    )

    learning_rate: dict[int, float] | str = option(
        LEARNING_RATES,
        parse=table(float),
        min=1e-12,
        max=1e3,
        curve=True,
        help="Learning rate of Adam: one number, numbers from a resolution on, or a curve over the images (as other"
        " options with CURVE): linear:START:END:KIMG or cosine:START:END:KIMG.",
        group="optimizer",
    )
    d_learning_rate_factor: float = option(
        1.0, min=1e-6, max=1e6, help="Learning rate of D as a multiple of that of G (TTUR)."
    )
    adam_beta1: float = option(0.0, min=0, below=1, help="Decay of the first moment of Adam.")
    adam_beta2: float | str = option(0.99, min=0, below=1, curve=True, help="Decay of the second moment of Adam.")
    adam_eps: float = option(1e-8, above=0, max=1, help="Number that keeps Adam from dividing by 0.")
    adam_eps_place: str = option(
        "corrected",
        choices=EPS_PLACES,
        help="Root of the second moment that --adam-eps is added to: bias-corrected, as in PyTorch, or not, as in the"
        " official code's TensorFlow.",
    )
    reset_optimizers: bool = option(True, help="Forget Adam's moments whenever layers come or go, as officially.")

    network: str = option(
        "pggan",
        choices=tuple(NETWORKS),
        help="Networks to train: the paper's, which grow, or R3GAN's, which do not.",
        group="networks",
    )
    labels: bool = option(False, help="Train a conditional GAN on the classes of the data.")
    label_mode: str = option(
        "acgan", choices=LABEL_MODES, help="How the paper's D sees the classes; R3GAN's has its own way."
    )
    latent_dim: int | None = option(
        None, min=1, max=1 << 16, help="Size of the latent (default: the channels at 4 px; 64 with r3gan)."
    )
    fmap_base: int = option(8192, min=1, max=1 << 24, help="Channels at a resolution r are 2 * fmap-base / r.")
    fmap_decay: float = option(
        1.0, min=0, max=16, help="Exponent of the channels: fmap-base / (r / 2) ** fmap-decay at a resolution r."
    )
    fmap_max: int = option(512, min=1, max=1 << 16, help="Most channels of any layer.")
    blocks: int = option(2, min=1, max=MOST_BLOCKS, help="Residual blocks at each resolution, with --network r3gan.")
    expansion: int = option(
        2, min=1, max=MOST_BLOCKS, help="Channels inside a block as a multiple of those outside, with --network r3gan."
    )
    group_channels: int = option(
        16, min=1, max=1 << 16, help="Channels per group of the 3x3 convolutions, with --network r3gan."
    )
    slope: float = option(0.2, min=0, max=1, help="Slope of G's leaky ReLU below 0; 0 is the official ReLU.")
    pixel_norm: bool = option(True, help="Normalize the features of every pixel in G.")
    pixel_norm_eps: float = option(
        1e-8, above=0, max=1, help="Number that pixel norm adds to the mean square; officially 1e-4 with fp16."
    )
    normalize_latents: bool = option(True, help="Normalize the latents before the first layer of G.")
    use_wscale: bool = option(
        True, help="Multiply weights by their equalized constant at run time; otherwise they start with it."
    )
    fused_scale: bool = option(True, help="Resize inside D's convolutions, before their activation, as officially.")
    mbstd_group_size: int = option(
        4, min=1, max=1 << 16, help="Samples that the minibatch standard deviation compares; 1 for none of it."
    )
    attention_at: int | None = option(
        None,
        min=LOWEST,
        max=HIGHEST,
        power_of_two=True,
        help="Resolution whose layers in G and D get self-attention.",
    )
    residual: bool = option(False, help="Use residual blocks, which start at 0 and are faded in by training.")
    spectral_norm: str = option(
        "none", choices=("none", "discriminator", "both"), help="Networks that get spectral norm."
    )
    minibatch_discrimination: bool = option(False, help="Put minibatch discrimination before the last layer of D.")

    ema_decay: float = option(
        0.999, min=0, below=1, help="Decay per step of the averaged generator.", group="average of the generator"
    )
    ema_half_life_kimg: float | str | None = option(
        None,
        min=0,
        max=MOST_KIMG,
        curve=True,
        metavar="KIMG",
        help="Thousand images in which a weight's share of the average halves, at any batch size, in place of"
        " --ema-decay (default: none).",
    )
    ema_ramp: float | None = option(
        None,
        above=0,
        max=1e6,
        help="Most of the half-life as a share of the images shown so far; 0.05 with StyleGAN2-ADA (default: no"
        " bound).",
    )

    objective: str = option("wgan-gp", choices=tuple(OBJECTIVES), help="Loss that D and G minimise.", group="objective")
    penalty_weight: float | None = option(
        None, min=0, max=1e9, help="Weight of the gradient penalty (default: 10 with wgan-gp, else 0)."
    )
    penalty_target: float = option(
        1.0, above=0, max=1e9, help="Gradient norm that the penalty pulls to; 750 for the paper's CIFAR-10."
    )
    penalty_at: str = option(
        "live",
        choices=("live", "final"),
        help="Size of the images that the penalty is taken at: that of the stage, or the final one as officially.",
    )
    r1_weight: float | str = option(
        0.0, min=0, max=1e9, curve=True, help="Weight of the R1 penalty, on D's gradient at reals."
    )
    r2_weight: float | str = option(
        0.0, min=0, max=1e9, curve=True, help="Weight of the R2 penalty, on D's gradient at generated images."
    )
    penalty_every: int = option(
        1,
        min=1,
        max=1 << 20,
        help="Steps of D from one with the penalties to the next, in which they weigh as much more.",
    )
    penalty_on: str = option(
        "augmented", choices=PENALTY_ON, help="Images in which the penalties take D's gradient, with --augment."
    )
    drift_weight: float | None = option(
        None, min=0, max=1e9, help="Weight of mean(real score^2) (default: 0.001 with wgan-gp, else 0)."
    )
    label_weight: float = option(1.0, min=0, max=1e9, help="Weight of the classification of AC-GAN.")
    g_label_weight: float | None = option(
        None, min=0, max=1e9, help="The same for G alone (default: as --label-weight)."
    )
    clip: float = option(0.5, above=0, max=1e9, help="Bound of the weights of D with --objective wgan.")
    margin: float = option(0.3, above=0, max=1e9, help="Margin of --objective ebgan.")
    d_steps: int = option(1, min=1, max=1000, help="Steps of D, each on a batch of its own, for one of G.")

    augment: str = option(
        "none",
        choices=("none", *AUGMENTS),
        help="Augmentation of the images that D sees, for small datasets.",
        group="augmentation",
    )
    augment_p: float | str | None = option(
        None,
        min=0,
        max=1,
        curve=True,
        help="Probability of each transform of --augment ada (default: it adapts to D's overfitting).",
    )
    augment_target: float = option(0.6, above=-1, below=1, help="Overfitting that --augment ada aims at.")
    augment_kimg: float = option(
        500.0,
        min=0.001,
        max=MOST_KIMG,
        metavar="KIMG",
        help="Thousand images in which --augment ada would go from nothing to all.",
    )

    device: str = option(
        "auto",
        help="Device to train on: auto, cpu, cuda, cuda:N, xpu or mps.",
        changeable=True,
        metavar="NAME",
        group="precision, memory and speed",
    )
    threads: int | None = option(
        None,
        min=0,
        max=1024,
        help="Threads of a CPU; 0 takes one less while other programs use it, so that results depend on the load"
        " to rounding. None: torch's own number.",
        changeable=True,
    )
    precision: str = option(
        "fp32",
        choices=(*PRECISIONS, AUTO),
        help="Autocast of the step; auto is bf16 where the device has instructions for it, else fp32.",
        changeable=True,
    )
    micro_batch: dict[int, int] | None = option(
        None,
        parse=table(int),
        min=1,
        max=1 << 20,
        help="Most images at once, in the form of --batch-size; the gradients of the parts add up.",
        changeable=True,
    )
    activation_checkpointing: bool = option(
        False, help="Compute each block again in the backward passes: less memory, more time.", changeable=True
    )
    compile: bool = option(False, help="Run the networks through torch.compile, at each stage anew.", changeable=True)
    cudnn_benchmark: bool = option(
        False,
        help="Let cuDNN time its algorithms at each stage: faster, but a resumed run may differ in its last bits.",
        changeable=True,
    )
    cuda_graphs: bool = option(
        True, help="On a CUDA device, record the step as a CUDA graph, at each stage anew.", changeable=True
    )
    time_limit: float | None = option(
        None,
        above=0,
        max=1e9,
        metavar="MINUTES",
        help="Minutes after which the run has saved and left.",
        changeable=True,
    )

    tick_kimg: float = option(
        4.0,
        min=0.001,
        max=MOST_KIMG,
        metavar="KIMG",
        help="Thousand images per status line and line of stats.jsonl.",
        changeable=True,
        group="reporting and checkpoints",
    )
    sample_kimg: float = option(
        20.0, min=0.001, max=MOST_KIMG, metavar="KIMG", help="Thousand images per sample grid.", changeable=True
    )
    checkpoint_kimg: float = option(
        50.0, min=0.001, max=MOST_KIMG, metavar="KIMG", help="Thousand images per checkpoint.", changeable=True
    )
    tensorboard: bool | None = option(
        None, help="Write events for TensorBoard (default: if it is installed).", changeable=True
    )
    track: str = option(
        "none",
        help="Experiment trackers, comma-separated: wandb, mlflow, trackio, tensorboard.",
        metavar="NAME,...",
        changeable=True,
    )
    metrics: str = option(
        "",
        help="Metrics to measure while training, comma-separated: see evaluate --help.",
        changeable=True,
        metavar="NAME,...",
    )
    metric_kimg: float = option(
        50.0,
        min=0.001,
        max=MOST_KIMG,
        metavar="KIMG",
        help="Thousand images from one measurement to the next.",
        changeable=True,
    )
    metric_images: int = option(
        2000, min=2, max=10_000_000, help="Generated and real images that a measurement compares.", changeable=True
    )

    def __post_init__(self) -> None:
        check_options(self)
        check_together(self)

    def trackers(self) -> list[str]:
        """Return the names in `track`."""
        names = [name.strip() for name in self.track.split(",")]
        return list(dict.fromkeys(name for name in names if name not in ("", "none")))

    def schedule(self) -> Schedule:
        """Return the growth schedule; `resolution` must be known."""
        assert self.resolution is not None
        return Schedule(
            resolution=self.resolution,
            start_resolution=self.start_resolution,
            stable_images=images_of(self.stable_kimg),
            transition_images=images_of(self.transition_kimg),
            batch_sizes=self.batch_size,
            learning_rates=Curve.parse(rate) if is_curve(rate := self.learning_rate) else rate,
            total_images=None if self.total_kimg is None else images_of(self.total_kimg),
            first_images=None if self.first_stable_kimg is None else images_of(self.first_stable_kimg),
            progressive=self.grows,
        )

    @property
    def grows(self) -> bool:
        """Whether the networks grow: what --progressive says, else what --network does."""
        return NETWORKS[self.network].generator.grows if self.progressive is None else self.progressive


def images_of(kimg: float) -> int:
    """Return thousands of images as a count."""
    return round(kimg * 1000)
