"""What a person sees while work is going on: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

REFRESH_SECONDS = 0.5
RATE_SECONDS = 5.0  # the speed shown is a mean over about this long
COST_OF_DOUBLING = 3.0  # time per image against half the resolution, until it has been measured


def on_terminal() -> bool:
    return sys.stderr.isatty()


def bar_over(items: Collection[Item], text: str) -> Iterator[Item]:
    """Iterate over `items` behind a bar (nothing is shown without a terminal)."""
    return iter(tqdm(items, desc=text, disable=not on_terminal(), leave=False))


class Progress:
    """Images shown, stage, losses, speed and time left. Use as a context manager.

    `images_left(images)` gives the images still to be shown by resolution. Losses are read, which
    waits for the device, only when the bar is redrawn: at most twice a second.
    """

    def __init__(
        self, total: int, initial: int, images_left: Callable[[int], dict[int, int]]
    ) -> None:
        self.images = initial
        self.images_per_second = 0.0
        self._images_left = images_left
        self._seconds_per_image: dict[int, float] = {}
        self._mark = (0, time.monotonic(), initial)  # resolution, time, images
        self._drawn = 0.0
        self._bar = tqdm(
            total=total,
            initial=initial,
            disable=not on_terminal(),
            bar_format="{percentage:3.0f}% |{bar:16}| {n_fmt}/{total_fmt} images {postfix}",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def note(self, line: str) -> None:
        """A line that stays."""
        self._bar.write(line) if on_terminal() else print(line, flush=True)

    def update(self, images: int, resolution: int, status: Callable[[], str]) -> None:
        """`images` shown so far; `status` is asked only if the bar is redrawn."""
        self.images = images
        self._measure(resolution)
        now = time.monotonic()
        if on_terminal() and now - self._drawn >= REFRESH_SECONDS:
            self._drawn = now
            self._bar.n = images
            self._bar.set_postfix_str(f"{status()}, {self.speed()}")

    def speed(self) -> str:
        """Images per second and time left, for people."""
        return f"{self.images_per_second:.0f} img/s, {duration(self.seconds_left())} left"

    def seconds_left(self) -> float:
        """From the measured time per image; a resolution not yet seen costs 3 times the last."""
        seconds, cost = 0.0, next(iter(self._seconds_per_image.values()), 0.0)
        for resolution, images in sorted(self._images_left(self.images).items()):
            cost = self._seconds_per_image.get(resolution, cost * COST_OF_DOUBLING)
            seconds += cost * images
        return seconds

    def _measure(self, resolution: int) -> None:
        before, since, images = self._mark
        now = time.monotonic()
        if resolution != before:
            self._mark = (resolution, now, self.images)
        elif resolution not in self._seconds_per_image or now - since >= RATE_SECONDS:
            self._seconds_per_image[resolution] = (now - since) / (self.images - images)
            self.images_per_second = 1 / max(self._seconds_per_image[resolution], 1e-9)
            self._mark = (resolution, now, self.images)


def duration(seconds: float) -> str:
    """14:05 or 2:14:05, with days where there are some."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02d}:{seconds:02d}" if days or hours else f"{minutes}:{seconds:02d}"
    return f"{days}d {clock}" if days else clock
