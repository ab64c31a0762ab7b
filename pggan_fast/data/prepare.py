"""From pictures of any source to prepared data (see dataset.py): read, crop, resize, write, report."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pggan_fast.data.dataset import DatasetWriter, check_free, pyramid
from pggan_fast.data.preprocessing import fit, reach, size_of
from pggan_fast.data.sources import Item, Source, open_source
from pggan_fast.networks.resolutions import HIGHEST, LOWEST
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.options import option
from pggan_fast.utils.progress_bar import bar_over

SHARE_LARGE_ENOUGH = 0.9  # of the images, for the resolution that is chosen when none is given
SAMPLED = 100  # images measured for that where each has to be read whole
REPORTED = 20  # bad files named on the screen; dataset.json names all of them
AHEAD = 4  # images in work or waiting to be written, per worker


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of `pggan-fast prepare`."""

    images: Path = option(help="folder (subfolders = classes), .zip, .npy, .tfrecords, hf:NAME or torch:MODULE:NAME")
    out: Path = option(help="folder to write the prepared data to; must not exist or be empty")
    resolution: int | None = option(
        None, help="shorter side of the largest level, a power of two (default: fits 90%% of the images)"
    )
    base: str = option("4x4", help="HEIGHTxWIDTH of the smallest level, for images that are not square: 4x6, 8x4, ...")
    crop: str = option("center", choices=("center", "none"), help="cut to the base's shape, or squeeze the whole image")
    channels: int = option(3, choices=(1, 2, 3, 4), help="1: grayscale, 3: RGB, 2 and 4: with transparency")
    workers: int | None = option(None, help="images in work at once (default: one per CPU)")
    split: str = option("train", help="part of a Hugging Face data set")
    streaming: bool = option(False, help="read a Hugging Face data set over the network instead of downloading it")

    def __post_init__(self) -> None:
        r = self.resolution
        if r is not None and not (LOWEST <= r <= HIGHEST and r & (r - 1) == 0):
            raise UserError(f"--resolution {r}: must be a power of two, 4 to {HIGHEST}")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers {self.workers}: must be 1 or more")
        sides = self.base.split("x")
        if len(sides) != 2 or not all(side.isdecimal() for side in sides) or min(map(int, sides)) != LOWEST:
            raise UserError(f"--base {self.base}: must be HEIGHTxWIDTH, the smaller one {LOWEST}")

    @property
    def base_size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.base.split("x")
        return int(height), int(width)

    @property
    def threads(self) -> int:
        if self.workers:
            return self.workers
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare(config: PrepareConfig, source: Source | None = None) -> None:
    """Write `config.out` from what `config.images` names, or from `source`, and print what was left out.

    Images that cannot be read or are smaller than the resolution are skipped and named. Stopped at any
    moment, a second call with the same settings goes on where the first one was.
    Raises UserError if nothing is left or a setting is wrong; then nothing is written.
    """
    check_free(config.out)
    if source is None:
        source = open_source(
            config.images,
            resolution=config.resolution,
            split=config.split,
            streaming=config.streaming,
            workers=config.threads,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large images are wanted
        resolution = config.resolution or _fitting_resolution(config, source)
        writer = DatasetWriter(
            config.out,
            resolution=resolution,
            channels=config.channels,
            classes=source.classes,
            base=config.base_size,
            work={"crop": config.crop, **source.facts},
        )
        with writer:
            _write(config, source, writer)
            writer.commit()
    _report(config, writer)


def _write(config: PrepareConfig, source: Source, writer: DatasetWriter) -> None:
    """Everything that `writer` has not taken yet."""
    if writer.taken:
        print(f"going on after {writer.taken:,} images")

    def levels(item: Item) -> dict[int, np.ndarray]:
        image = item.load()
        side = reach(size_of(image), config.base_size)
        if side < writer.resolution:
            raise TooSmall(f"smaller than {writer.resolution} px ({side} px)")
        fitted = fit(image, writer.resolution, crop=config.crop, channels=config.channels, base=config.base_size)
        return pyramid(fitted)

    work = in_order(levels, source.items(writer.taken), config.threads)
    try:
        for item, found in bar_over(work, "preparing", source.count, writer.taken):
            if isinstance(found, Exception):
                writer.skip(item.name, _reason(found))
            else:
                writer.add(found, _checked_label(item, writer.classes), item.name)
    except KeyboardInterrupt:
        print(f"stopped after {writer.taken:,} images; the same command goes on there")
        raise
    if not writer.files:
        writer.discard()
        if any(reason.startswith("smaller") for reason in writer.skipped.values()):
            raise UserError(f"--resolution {writer.resolution}: all images in {config.images} are smaller than that")
        raise UserError(f"--images {config.images}: none of its images can be read")


class TooSmall(Exception):
    """An image below the resolution."""


def in_order(
    function: Callable[[Item], Any], items: Iterable[Item], threads: int
) -> Iterator[tuple[Item, Any | Exception]]:
    """(item, function(item) or the exception that it raised), computed on `threads` threads.

    Pillow and NumPy work outside of Python's lock, so that threads are enough. No more than `AHEAD` items per
    thread are read ahead of the one that is waited for.
    """
    waiting: deque[tuple[Item, Future]] = deque()
    items = iter(items)
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            for item in islice(items, AHEAD * threads - len(waiting)):
                waiting.append((item, pool.submit(function, item)))
            if not waiting:
                return
            item, future = waiting.popleft()
            error = future.exception()  # whatever a decoder raises, the image is what is wrong
            yield item, future.result() if error is None else error
    finally:
        pool.shutdown(cancel_futures=True)


def _fitting_resolution(config: PrepareConfig, source: Source) -> int:
    """The largest power of two, from 4 to 1024, that 90% of the images reach."""

    def side(item: Item) -> int:
        size = item.measure() if item.measure else size_of(item.load())
        return reach(size, config.base_size)

    items = source.items()
    first = next(items, None)
    if first is None:
        raise UserError(f"--images {config.images}: holds no images")
    every = source.count is not None and first.measure is not None
    items = source.items() if every else islice(source.items(), SAMPLED)
    count = source.count if every else SAMPLED
    found = [each for _, each in bar_over(in_order(side, items, config.threads), "reading sizes", count)]
    sides = sorted((each for each in found if not isinstance(each, Exception)), reverse=True)
    if not sides:
        raise UserError(f"--images {config.images}: none of its {len(found)} files is an image")
    reached = sides[max(0, int(np.ceil(len(sides) * SHARE_LARGE_ENOUGH)) - 1)]
    resolution = min(HIGHEST, max(LOWEST, 1 << (reached.bit_length() - 1)))
    sample = "" if every else f" first {len(found)}"
    print(f"resolution {resolution}: the largest that 90% of the{sample} images reach (--resolution)")
    return resolution


def _checked_label(item: Item, classes: list[str] | None) -> int | str | None:
    """The item's label. Raises UserError for one that is not among the classes."""
    if classes and not (isinstance(item.label, int) and 0 <= item.label < len(classes)):
        raise UserError(f"--images {item.name}: has label {item.label}, must be 0 to {len(classes) - 1}")
    return item.label


def _reason(error: Exception) -> str:
    if isinstance(error, TooSmall):
        return str(error)
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return f"cannot be read ({' '.join(str(error).split()) or type(error).__name__})"


def _report(config: PrepareConfig, writer: DatasetWriter) -> None:
    kinds = f", {len(writer.classes)} classes" if writer.classes else ""
    print(f"{config.out}: {len(writer.files)} images, 4 to {writer.resolution} px{kinds}")
    if writer.skipped:
        print(f"{len(writer.skipped)} files skipped:")
        for name, reason in list(writer.skipped.items())[:REPORTED]:
            print(f"  {name}: {reason}")
        if len(writer.skipped) > REPORTED:
            print(f"  and {len(writer.skipped) - REPORTED} more, all named in {config.out}/dataset.json")
    print(f"train on it: pggan-fast train --data {config.out} --out RUN")
