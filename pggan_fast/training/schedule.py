"""The growth schedule, a pure function: images seen -> resolution, alpha, batch, learning rate.

Progress is counted in real images shown to the discriminator. The start resolution is trained
for one stable phase; every later one fades in during a transition and then has a stable phase of
its own (paper, section 2 and appendix A). The tables are the official ones for one GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pggan_fast.networks.resolutions import HIGHEST, LOWEST
from pggan_fast.utils.curve import Curve
from pggan_fast.utils.errors import UserError

LAST_PHASES = 3  # stable ones after the growth, in the official schedule

# Each entry holds from its resolution upwards, until the next one.
BATCH_SIZES = {4: 128, 32: 64, 64: 32, 128: 16, 256: 8, 512: 4}
LEARNING_RATES = {4: 1e-3, 1024: 1.5e-3}


@dataclass(frozen=True)
class Stage:
    """Settings of training at one moment."""

    resolution: int
    alpha: float  # weight of the newest layers: 0 -> 1 during a transition, 1.0 outside
    batch_size: int
    learning_rate: float

    @property
    def fading(self) -> bool:
        return self.alpha < 1

    @property
    def active_layers(self) -> tuple[int, bool]:
        """Return the name of the set of active layers: Adam's state is dropped whenever this changes."""
        return self.resolution, self.fading


@dataclass(frozen=True)
class Schedule:
    """Phases in images; `batch_sizes` and `learning_rates` map "from this resolution on" to values.

    The learning rate may be a `Curve` over the images instead.

    `total_images` None: the whole growth and three more stable phases, 12,000 kimg at 1024 px.
    `first_images`: the stable phase of the start resolution, if it has another length (0 for networks
    that are trained already). Not `progressive`: the full resolution from the first image on, for as
    many images as the growth would take.
    """

    resolution: int
    start_resolution: int = LOWEST
    stable_images: int = 600_000
    transition_images: int = 600_000
    batch_sizes: Mapping[int, int] = field(default_factory=lambda: dict(BATCH_SIZES))
    learning_rates: Mapping[int, float] | Curve = field(default_factory=lambda: dict(LEARNING_RATES))
    total_images: int | None = None
    first_images: int | None = None
    progressive: bool = True

    def __post_init__(self) -> None:
        for name in ("resolution", "start_resolution"):
            value = getattr(self, name)
            if not LOWEST <= value <= HIGHEST or value & (value - 1):
                raise UserError(f"{name} {value}: must be a power of two, {LOWEST} to {HIGHEST}")
        if self.start_resolution > self.resolution:
            raise UserError(f"start_resolution {self.start_resolution}: must not be above resolution {self.resolution}")
        if min(self.stable_images, self.transition_images) < 0 or not self.phase_images:
            raise UserError(
                f"phases of {self.stable_images} stable and {self.transition_images} transition"
                " images: neither may be negative and one must be above 0"
            )
        if self.first_images is None:
            object.__setattr__(self, "first_images", self.stable_images)
        if self.first_images < 0:
            raise UserError(f"first_images {self.first_images}: must not be negative")
        if self.total_images is None:
            object.__setattr__(self, "total_images", self._default_total())
        if self.total_images < 1:
            raise UserError(f"total_images {self.total_images}: must be 1 or more")
        for name in ("batch_sizes", "learning_rates"):
            table = getattr(self, name)
            if isinstance(table, Curve):
                continue
            if not table or min(table) > self.start_resolution or min(table.values()) <= 0:
                raise UserError(
                    f"{name} {dict(table)}: needs positive values, the first of them for"
                    f" resolution {self.start_resolution} or lower"
                )

    @property
    def phase_images(self) -> int:
        """Return the images of one transition and one stable phase."""
        return self.stable_images + self.transition_images

    def at(self, images: int) -> Stage:
        """Return the stage after `images` real images were shown."""
        rates, shown = self.learning_rates, images
        # As if the first stable phase had been as long as the others.
        images += self.stable_images - self.first_images
        grown, position = divmod(max(0, images), self.phase_images)
        resolution = self.start_resolution << grown
        alpha = 1.0
        if not self.progressive:
            resolution, position = self.resolution, 0
        if position > self.stable_images:
            resolution *= 2
            alpha = (position - self.stable_images) / self.transition_images
        if resolution > self.resolution:
            resolution, alpha = self.resolution, 1.0
        return Stage(
            resolution=resolution,
            alpha=alpha,
            batch_size=from_table(self.batch_sizes, resolution),
            learning_rate=rates.at(shown) if isinstance(rates, Curve) else from_table(rates, resolution),
        )

    def images_per_resolution(self, images: int) -> dict[int, int]:
        """Return how many images are still to be shown at each resolution after `images` of them."""
        if not self.progressive:
            return {self.resolution: max(0, self.total_images - images)}
        left, start = {}, 0
        for grown in range(self._transitions + 1):
            end = min(self.first_images + grown * self.phase_images, self.total_images)
            end = self.total_images if grown == self._transitions else end
            left[self.start_resolution << grown] = max(0, end - max(start, images))
            start = end
        return left

    @property
    def _transitions(self) -> int:
        return (self.resolution // self.start_resolution).bit_length() - 1

    def _default_total(self) -> int:
        growth = self.first_images + self._transitions * self.phase_images
        return growth + LAST_PHASES * self.stable_images or self.phase_images


def from_table(table: Mapping[int, float], resolution: int) -> float:
    """Return the entry of the largest listed resolution that is not above `resolution`."""
    return table[max(listed for listed in table if listed <= resolution)]
