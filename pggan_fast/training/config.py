"""The settings of a training run. The command line of `pggan-fast train` is made from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pggan_fast.training.errors import UserError
from pggan_fast.training.options import flag, option, table
from pggan_fast.training.schedule import BATCH_SIZES, LEARNING_RATES, Schedule


@dataclass(frozen=True)
class TrainConfig:
    """Settings of `pggan-fast train`; a run keeps them in its config.json."""

    # Where
    data: Path = option(help="prepared data (pggan-fast prepare)", changeable=True)
    out: Path = option(help="folder of the run; must not hold another one", changeable=True)
    device: str = option("auto", help="auto, cpu, cuda or cuda:N", changeable=True)

    # Growth
    resolution: int | None = option(None, help="final side in pixels (default: the data's)")
    start_resolution: int = option(4, help="side in pixels that training starts with")
    stable_kimg: float = option(600.0, help="thousand images per stable phase")
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
    ema_decay: float = option(0.999, help="decay per step of the averaged generator")

    # Running
    precision: str = option("fp32", choices=("fp32", "bf16", "fp16"), help="autocast of the step")
    mirror: bool = option(True, help="show every second image mirrored")
    seed: int = option(0, help="of weights, latents and data order")

    # Reporting
    tick_kimg: float = option(4.0, help="thousand images per status line and line of stats.jsonl", changeable=True)
    sample_kimg: float = option(20.0, help="thousand images per sample grid", changeable=True)
    checkpoint_kimg: float = option(50.0, help="thousand images per checkpoint", changeable=True)

    def __post_init__(self) -> None:
        for name in ("tick_kimg", "sample_kimg", "checkpoint_kimg"):
            if images_of(getattr(self, name)) < 1:
                raise UserError(f"{flag(name)} {getattr(self, name)}: must be 0.001 or more")
        for name in ("fmap_base", "fmap_max", "latent_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{flag(name)} {value}: must be 1 or more")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"--ema-decay {self.ema_decay}: must be from 0 to below 1")
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
        )


def images_of(kimg: float) -> int:
    """Thousands of images as a count."""
    return round(kimg * 1000)
