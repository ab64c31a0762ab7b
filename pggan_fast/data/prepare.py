"""From images of any source to prepared data (see dataset.py): read, crop, resize, write, report."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from pggan_fast.data.dataset import DatasetWriter, pyramid
from pggan_fast.data.in_order import TooSmall, in_order, reason_of
from pggan_fast.data.names import one_line, printable, some_of
from pggan_fast.data.output import INSIDE, work_folder
from pggan_fast.data.preprocessing import fit, quiet_decoders, reach, size_of
from pggan_fast.data.sources import Item, Source, SourceError, open_source
from pggan_fast.networks.resolutions import HIGHEST, LOWEST
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.memory import advice_when_out_of_memory, is_out_of_memory
from pggan_fast.utils.options import check_options, option
from pggan_fast.utils.program import command
from pggan_fast.utils.progress_bar import bar_over

SHARE_LARGE_ENOUGH = 0.9  # of the images, for the resolution that is chosen when none is given
SAMPLED = 100  # images measured for that where each has to be read whole
REPORTED = 20  # bad files named on the screen; dataset.json names all of them
COMPARED = 3  # items read again, of a source that cannot tell whether its images are the same
SHARE_UNREADABLE = 0.5  # of more than REPORTED files: beyond, something else is wrong than the files
SMALLER = "smaller than"  # how the reason begins
ADVICE = "--workers N below the one per CPU that is the default, a lower --resolution"


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of `pggan-fast prepare`."""

    images: Path = option(
        help="Where the images are: a folder (its subfolders are classes), a .zip, .npy or .tfrecords file,"
        " hf:NAME or torch:MODULE:NAME.",
        metavar="SOURCE",
        group="data",
    )
    out: Path = option(help="Folder to write the prepared data to. It must not exist, or be empty.", metavar="FOLDER")
    split: str = option("train", help="Split of a Hugging Face dataset.", metavar="NAME")
    streaming: bool = option(False, help="Read a Hugging Face dataset over the network instead of downloading it.")
    resolution: int | None = option(
        None,
        power_of_two=True,
        min=LOWEST,
        max=HIGHEST,
        help="Shorter side of the largest images in pixels, a power of two (default: the largest that 90%% of the"
        " images reach).",
        group="images",
    )
    base: str = option(
        "4x4",
        help="Height and width of the smallest images; 4x6 or 8x4 keep images that are not square.",
        metavar="HEIGHTxWIDTH",
    )
    crop: str = option(
        "center", choices=("center", "none"), help="Cut images in their middle to the shape of --base, or squeeze them."
    )
    channels: int = option(
        3, choices=(1, 2, 3, 4), help="Channels of the prepared images: 1 grayscale, 3 RGB, 2 and 4 with transparency."
    )
    workers: int | None = option(
        None, min=1, max=1024, help="Number of images that are read at once (default: one per CPU)."
    )

    def __post_init__(self) -> None:
        for name in ("images", "out"):
            if not str(getattr(self, name)):
                raise UserError(f"--{name} is empty: must be a path")
        check_options(self)
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
    moment, a second call with the same settings and images resumes where the first one was.
    Raises UserError if nothing is left, if the place of the images fails or if a setting is wrong.
    """
    work_folder(config.out, INSIDE)  # an error before the work
    with advice_when_out_of_memory(ADVICE), quiet_decoders():
        if source is None:
            source = open_source(
                config.images,
                resolution=config.resolution,
                split=config.split,
                streaming=config.streaming,
                workers=config.threads,
            )
        with _errors_of_the_source(config, None):
            resolution = config.resolution or _fitting_resolution(config, source)
        writer = DatasetWriter(
            config.out,
            resolution=resolution,
            channels=config.channels,
            classes=source.classes,
            base=config.base_size,
            work={"crop": config.crop, **source.metadata},
        )
        with writer:
            with _errors_of_the_source(config, writer):
                _write(config, source, writer)
            _check_result(config, writer)
            left_out = getattr(source, "left_out", {})
            writer.commit(**({"left_out": left_out} if left_out else {}))
        _report(config, writer, source)


Levels = Callable[[Item], dict[int, np.ndarray]]


def _write(config: PrepareConfig, source: Source, writer: DatasetWriter) -> None:
    """Write everything that `writer` has not taken yet."""

    def levels(item: Item) -> dict[int, np.ndarray]:
        image = item.load()
        side = reach(size_of(image), config.base_size)
        if side < writer.resolution:
            raise TooSmall(f"{SMALLER} {writer.resolution} px ({side} px)")
        fitted = fit(image, writer.resolution, crop=config.crop, channels=config.channels, base=config.base_size)
        return pyramid(fitted)

    if writer.taken and not getattr(source, "known", True) and not _are_the_same(config, source, writer, levels):
        print("other images than before: starting anew")
        writer.start_anew()
    if writer.taken:
        print(f"resuming after {writer.taken:,} images")
    work = in_order(levels, _items(config, source, writer.taken), config.threads)
    for item, found in bar_over(work, "preparing", source.count, writer.taken):
        if isinstance(found, Exception):
            writer.skip(item.name, reason_of(found))
        else:
            writer.add(found, _checked_label(item, writer.classes), item.name)


def _are_the_same(config: PrepareConfig, source: Source, writer: DatasetWriter, levels: Levels) -> bool:
    """Return whether the first, the last and one of the images between give what `writer` holds of them."""
    places = {name: index for index, name in enumerate(writer.files)}
    for index in sorted({round(step * (writer.taken - 1) / (COMPARED - 1)) for step in range(COMPARED)}):
        item = next(iter(_items(config, source, index)), None)
        if item is None:
            return False
        [(_, found)] = in_order(levels, [item], 1)
        if isinstance(found, Exception):
            if item.name not in writer.skipped:
                return False
        elif item.name not in places or not np.array_equal(found[writer.resolution], writer.written(places[item.name])):
            return False
    return True


@contextmanager
def _errors_of_the_source(config: PrepareConfig, writer: DatasetWriter | None) -> Iterator[None]:
    """Say what is kept when something ends the work that is not an image, and end it with a UserError."""
    try:
        yield
    except KeyboardInterrupt:
        if writer is not None:
            print(f"stopped after {writer.taken:,} images; the same command resumes there")
        raise
    except (UserError, OSError) as error:
        if is_out_of_memory(error) or (writer is not None and writer.owns(error)):
            raise
        told = isinstance(error, (UserError, SourceError))
        reason = error if told else f"--images {printable(str(config.images))}: cannot be read on ({one_line(error)})"
        kept = f"; {writer.taken:,} images are kept, the same command resumes there" if writer and writer.taken else ""
        raise UserError(f"{reason}{kept}") from error


def _items(config: PrepareConfig, source: Source, start: int = 0) -> Iterator[Item]:
    """Yield the source's items; an error on the way to the next one, of a network or of the user's code, is its own."""
    try:
        yield from source.items(start)
    except (UserError, OSError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise SourceError(f"--images {printable(str(config.images))}: cannot be read on ({one_line(error)})") from error


def _check_result(config: PrepareConfig, writer: DatasetWriter) -> None:
    """Raise UserError, and keep nothing, if no image is left or most files cannot be read."""
    unreadable = {name: why for name, why in writer.skipped.items() if not why.startswith(SMALLER)}
    shown = f"--images {printable(str(config.images))}"
    first = some_of(f"{name}: {reason}" for name, reason in (unreadable or writer.skipped).items())
    if not writer.files:
        writer.discard()
        if len(unreadable) < len(writer.skipped):
            raise UserError(
                f"--resolution {writer.resolution}: all images in {shown[9:]} are smaller than that ({first})"
            )
        raise UserError(f"{shown}: none of its images can be read ({first})" if first else f"{shown}: holds no images")
    if len(unreadable) > max(REPORTED, SHARE_UNREADABLE * writer.taken):
        writer.discard()
        raise UserError(f"{shown}: {len(unreadable):,} of {writer.taken:,} files cannot be read ({first})")


def _fitting_resolution(config: PrepareConfig, source: Source) -> int:
    """Return the largest power of two, from 4 to 1024, that 90% of the images reach."""

    def side(item: Item) -> int:
        size = item.measure() if item.measure else size_of(item.load())
        return reach(size, config.base_size)

    shown = f"--images {printable(str(config.images))}"
    items = _items(config, source)
    first = next(items, None)
    if first is None:
        raise UserError(f"{shown}: holds no images")
    every = source.count is not None and first.measure is not None
    items = _items(config, source) if every else islice(_items(config, source), SAMPLED)
    count = source.count if every else SAMPLED
    found = list(bar_over(in_order(side, items, config.threads), "reading sizes", count))
    sides = sorted((each for _, each in found if not isinstance(each, Exception)), reverse=True)
    if not sides:
        reasons = some_of(f"{item.name}: {reason_of(error)}" for item, error in found)
        raise UserError(f"{shown}: none of its {len(found)} files is an image that can be read ({reasons})")
    reached = sides[max(0, int(np.ceil(len(sides) * SHARE_LARGE_ENOUGH)) - 1)]
    resolution = min(HIGHEST, max(LOWEST, 1 << (reached.bit_length() - 1)))
    sample = "" if every else f" first {len(found)}"
    print(f"resolution {resolution}: the largest that 90% of the{sample} images reach (--resolution)")
    return resolution


def _checked_label(item: Item, classes: list[str] | None) -> int | str | None:
    """Return the item's label. Raises UserError for one that is not among the classes."""
    if classes and not (isinstance(item.label, int) and 0 <= item.label < len(classes)):
        raise UserError(f"--images {item.name}: has label {item.label!r:.40}, must be 0 to {len(classes) - 1}")
    return item.label


def _report(config: PrepareConfig, writer: DatasetWriter, source: Source) -> None:
    out = printable(str(config.out))
    kinds = f", {len(writer.classes)} classes" if writer.classes else ""
    print(f"{out}: {len(writer.files)} images, 4 to {writer.resolution} px{kinds}")
    if writer.classes:
        counts = Counter(writer.labels)
        print("  " + some_of((f"{printable(n)} {counts[i]:,}" for i, n in enumerate(writer.classes)), REPORTED))
    if ignored := getattr(source, "ignored", []):
        print(f"{len(ignored):,} left out as no images by their names: {some_of(ignored)}")
    for name, reason in list(getattr(source, "left_out", {}).items())[:REPORTED]:
        print(f"left out: {name} ({reason})")
    if writer.skipped:
        print(f"{len(writer.skipped)} files skipped:")
        for name, reason in list(writer.skipped.items())[:REPORTED]:
            print(f"  {name}: {reason}")
        if len(writer.skipped) > REPORTED:
            print(f"  and {len(writer.skipped) - REPORTED} more, all named in {out}/dataset.json")
    print(f"train on it: {command('train', '--data', out)} --out RUN")
