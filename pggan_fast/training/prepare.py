"""From a folder of images to prepared data (see dataset.py): read, crop, resize, write, report."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pggan_fast.training.dataset import DatasetWriter, check_free
from pggan_fast.training.errors import UserError
from pggan_fast.training.options import option
from pggan_fast.training.progress import bar_over

SHARE_LARGE_ENOUGH = 0.9  # of the images, for the resolution that is chosen when none is given
HIGHEST_DEFAULT = 1024
REPORTED = 20  # bad files named on the screen; dataset.json names all of them


@dataclass(frozen=True)
class PrepareConfig:
    """Settings of `pggan-fast prepare`."""

    images: Path = option(help="folder of images, in any format Pillow reads; subfolders = classes")
    out: Path = option(help="folder to write the prepared data to; must not exist or be empty")
    resolution: int | None = option(
        None, help="side of the largest level, a power of two (default: fits 90%% of the images)"
    )
    crop: str = option("center", choices=("center", "none"), help="centre square, or squeeze the whole image")
    channels: int = option(3, choices=(1, 3), help="1: grayscale, 3: RGB")

    def __post_init__(self) -> None:
        r = self.resolution
        if r is not None and (r < 4 or r & (r - 1)):
            raise UserError(f"--resolution {r}: must be a power of two, 4 or more")


def prepare(config: PrepareConfig) -> None:
    """Write `config.out` and print what was done and which files were left out.

    Images that cannot be read or are smaller than the resolution are skipped and named.
    Raises UserError if nothing is left or a setting is wrong; then nothing is written.
    """
    check_free(config.out)
    files = _files_in(config.images)
    skipped: dict[str, str] = {}
    sides = _shorter_sides(files, config.images, skipped)
    if not sides:
        raise UserError(f"--images {config.images}: none of its {len(files)} files is an image")
    resolution = config.resolution or _fitting_resolution(sides)
    if config.resolution is None:
        print(f"resolution {resolution}: the largest that 90% of the images reach (--resolution)")
    for file in [file for file, side in sides.items() if side < resolution]:
        skipped[_name(file, config.images)] = f"smaller than {resolution} px ({sides.pop(file)} px)"
    if not sides:
        raise UserError(f"--resolution {resolution}: all images in {config.images} are smaller than that")

    classes, labels = _classes(list(sides), config.images)
    writer = DatasetWriter(config.out, resolution=resolution, channels=config.channels, classes=classes)
    with writer:
        for file in bar_over(sides, "preparing"):
            name = _name(file, config.images)
            try:
                image = load_image(file, resolution, crop=config.crop, channels=config.channels)
            except Exception as error:  # whatever a decoder raises, the file is what is wrong
                skipped[name] = _reason(error)
                continue
            writer.add(image, labels[file], name)
        if not writer.files:
            raise UserError(f"--images {config.images}: none of its images can be read")
        writer.commit(skipped=skipped)

    _report(config, writer, skipped)


def load_image(file: Path, resolution: int, *, crop: str, channels: int) -> np.ndarray:
    """A uint8 array [channels, resolution, resolution]: upright, square, Lanczos-resized."""
    with Image.open(file) as opened:
        image = _to_mode(ImageOps.exif_transpose(opened), "L" if channels == 1 else "RGB")
    width, height = image.size
    box = None
    if crop == "center":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        box = (left, top, left + side, top + side)
    image = image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)
    return np.asarray(image).reshape(resolution, resolution, channels).transpose(2, 0, 1)


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert from any of Pillow's modes; transparent parts show white, 16 bits become 8."""
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow clips these at 255 instead of scaling them.
        values = np.asarray(image, dtype=np.float64)
        values = values / 257 if image.mode.startswith("I;16") or values.max() > 255 else values
        image = Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def _files_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"--images {folder}: no such folder")
    files = [
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    ]
    if not files:
        raise UserError(f"--images {folder}: the folder is empty")
    return sorted(files)


def _shorter_sides(files: list[Path], root: Path, skipped: dict[str, str]) -> dict[Path, int]:
    """Reads headers only. Files that are no images go to `skipped`."""
    sides = {}
    for file in bar_over(files, "reading sizes"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of large images; these are wanted
                with Image.open(file) as image:
                    sides[file] = min(image.size)
        except Exception as error:  # whatever a decoder raises, the file is what is wrong
            skipped[_name(file, root)] = _reason(error)
    return sides


def _fitting_resolution(sides: dict[Path, int]) -> int:
    """The largest power of two, from 4 to 1024, that 90% of the images reach."""
    ordered = sorted(sides.values(), reverse=True)
    reached = ordered[max(0, int(np.ceil(len(ordered) * SHARE_LARGE_ENOUGH)) - 1)]
    return min(HIGHEST_DEFAULT, max(4, 1 << (reached.bit_length() - 1)))


def _classes(files: list[Path], root: Path) -> tuple[list[str], dict[Path, int]]:
    """Class names, the first folder below `root` ("." for none), and each file's index.

    No classes at all if there are no subfolders.
    """
    folders = {file: file.relative_to(root).parts[0] for file in files if file.parent != root}
    if not folders:
        return [], dict.fromkeys(files, 0)
    of_file = {file: folders.get(file, ".") for file in files}
    classes = sorted(set(of_file.values()))
    return classes, {file: classes.index(name) for file, name in of_file.items()}


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    return f"cannot be read ({' '.join(str(error).split()) or type(error).__name__})"


def _report(config: PrepareConfig, writer: DatasetWriter, skipped: dict[str, str]) -> None:
    kinds = f", {len(writer.classes)} classes" if writer.classes else ""
    print(f"{config.out}: {len(writer.files)} images, 4 to {writer.resolution} px{kinds}")
    if skipped:
        print(f"{len(skipped)} files skipped:")
        for name, reason in list(skipped.items())[:REPORTED]:
            print(f"  {name}: {reason}")
        if len(skipped) > REPORTED:
            print(f"  and {len(skipped) - REPORTED} more, all named in {config.out}/dataset.json")
    print(f"train on it: pggan-fast train --data {config.out} --out RUN")
