"""Progress for a person to see: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor
from tqdm import tqdm

from pggan_fast.training.schedule import Schedule, Stage
from pggan_fast.utils.progress_bar import duration, on_terminal, terminal_size

REFRESH_SECONDS = 0.5
RATE_SECONDS = 5.0  # the speed shown is a mean over about this long
COST_OF_DOUBLING = 3.0  # time per image against half the resolution, until it has been measured


class Progress:
    """Images shown, stage, losses, speed and time left. Use as a context manager.

    A line per tick, and on a terminal a bar below them. Losses are read, which waits for the
    device, only when the bar is redrawn: at most twice a second.
    """

    def __init__(self, schedule: Schedule, images: int) -> None:
        self.schedule = schedule
        self.images = images
        self.images_per_second = 0.0
        self._seconds_per_image: dict[int, float] = {}
        self._mark = (0, time.monotonic(), images)  # resolution, time, images
        self._drawn = 0.0
        self._bar = tqdm(
            total=schedule.total_images,
            initial=images,
            disable=not on_terminal(),
            bar_format="{percentage:3.0f}%|{bar}|{n_fmt}/{total_fmt} images{postfix}",
            **terminal_size(),
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, images: int, stage: Stage, scalars: dict[str, Tensor]) -> None:
        """After every step: images shown so far and what the step reported."""
        self.images = images
        self._measure(stage.resolution)
        now = time.monotonic()
        if on_terminal() and now - self._drawn >= REFRESH_SECONDS:
            self._drawn = now
            self._bar.n = images
            losses = {name: scalars[name].item() for name in ("d_loss", "g_loss")}
            self._bar.set_postfix_str(self._status(stage.resolution, stage.alpha, losses))

    def note_stage(self, images: int, stage: Stage) -> None:
        """Print a line that stays, when other layers become active."""
        what = "layers fade in" if stage.fading else "stable"
        self._note(
            f"{images:,} images: {stage.resolution} px, {what}, batch {stage.batch_size},"
            f" learning rate {stage.learning_rate:g}"
        )

    def note_tick(self, line: dict[str, Any]) -> None:
        """The status line of a tick, from the values of its line of stats.jsonl."""
        self._note(f"{line['images']:,} images: {self._status(line['resolution'], line['alpha'], line)}")

    def _note(self, text: str) -> None:
        if on_terminal():
            self._bar.write(text)
        else:
            print(text, flush=True)

    def _status(self, resolution: int, alpha: float, losses: dict[str, Any]) -> str:
        return (
            f"{resolution} px alpha {alpha:.2f} D {losses['d_loss']:.2f} G {losses['g_loss']:.2f}"
            f" {self.images_per_second:.0f} img/s {duration(self.seconds_left())} left"
        )

    def seconds_left(self) -> float:
        """From the measured time per image; a resolution not yet seen costs 3 times the last."""
        seconds, cost = 0.0, next(iter(self._seconds_per_image.values()), 0.0)
        for resolution, images in sorted(self.schedule.images_per_resolution(self.images).items()):
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
