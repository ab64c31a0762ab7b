"""From an image of any kind to a uint8 array of one shape: upright, cut, Lanczos-resized, converted."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from pggan_fast.data.npy import read_npy
from pggan_fast.networks.resolutions import LOWEST, SQUARE, image_size
from pggan_fast.utils.images import MODES, to_pil

AnyImage = Image.Image | np.ndarray
"""A Pillow image, or a uint8 array [C, H, W] of 1 to 4 channels."""

RGB_KINDS = ("L", "RGB")  # modes without transparency

# What Pillow may open: it has readers for some forty formats, some of which start other programs.
FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "TGA", "JPEG2000", "AVIF", "PCX", "SGI", "QOI",
    "ICO",
)  # fmt: skip


def read(name: str, file: Path | BinaryIO) -> AnyImage:
    """Return the image in `file`: a .npy array of one image by its `name`, else one of FORMATS."""
    if name.lower().endswith(".npy"):
        return from_array(read_npy(file))
    with Image.open(file, formats=_formats()) as opened:
        return ImageOps.exif_transpose(opened)


def measure(name: str, file: Path | BinaryIO) -> tuple[int, int]:
    """Return (width, height) of the upright image, from the header where the format has one."""
    if name.lower().endswith(".npy"):
        height, width = from_array(read_npy(file)).shape[1:]
        return width, height
    with Image.open(file, formats=_formats()) as image:
        # Of cameras' files; a PNG would be decoded for it.
        lies_on_its_side = image.format in ("JPEG", "MPO") and image.getexif().get(ExifTags.Base.Orientation, 1) > 4
        return image.size[::-1] if lies_on_its_side else image.size


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of FORMATS that this Pillow has a reader for."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def from_array(array: np.ndarray) -> np.ndarray:
    """Return uint8 [C, H, W] of an array [H, W], [C, H, W] or [H, W, C], with leading axes of 1 or without.

    Floats are taken for 0..1. Raises ValueError for anything else.
    """
    pixels = array
    while pixels.ndim > 3 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim == 3 and pixels.shape[0] not in MODES and pixels.shape[2] in MODES:
        pixels = pixels.transpose(2, 0, 1)
    if pixels.ndim != 3 or pixels.shape[0] not in MODES or not pixels.size:
        raise ValueError(f"an array of shape {list(array.shape)} is no image of 1 to 4 channels")
    if np.issubdtype(pixels.dtype, np.floating):
        if not 0 <= pixels.min() <= pixels.max() <= 1:
            raise ValueError(f"values from {pixels.min():g} to {pixels.max():g}: floats must be in 0..1")
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"an array of {pixels.dtype}: must be uint8, or floats in 0..1")
    return pixels


def fit(image: AnyImage, resolution: int, *, crop: str, channels: int, base: tuple[int, int] = SQUARE) -> np.ndarray:
    """Return uint8 [channels, *image_size(resolution, base)]; an array of this shape is returned as it is."""
    height, width = image_size(resolution, base)
    if isinstance(image, np.ndarray):
        if image.shape == (channels, height, width):
            return image
        image = to_pil(image.transpose(1, 2, 0))
    image = _to_mode(image, MODES[channels])
    box = _centre(image.size, base) if crop == "center" else None
    image = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def size_of(image: AnyImage) -> tuple[int, int]:
    """Return (width, height)."""
    return (image.shape[2], image.shape[1]) if isinstance(image, np.ndarray) else image.size


def reach(size: tuple[int, int], base: tuple[int, int]) -> int:
    """Return the highest resolution, any whole number, for which `size`, (width, height), is large enough."""
    return min(size[0] * LOWEST // base[1], size[1] * LOWEST // base[0])


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Leave out Pillow's warnings; large images are what is asked for, and bad ones are named with a reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _centre(size: tuple[int, int], base: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the largest box of the base's proportions in the middle: left, top, right, bottom."""
    width = min(size[0], size[1] * base[1] // base[0])
    height = min(size[1], size[0] * base[0] // base[1])
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert from any of Pillow's modes; 16 bits become 8, transparent parts white unless `mode` has alpha."""
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_8_bits(np.asarray(image), image.mode))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if mode in RGB_KINDS:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
    return image.convert(mode)


def _to_8_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Return uint8 of one channel of 16 or 32 bits, which Pillow would clip at 255 instead of scaling it.

    The white of 32 bits is the smallest of 1 (floats only), 255 and 65535 that no value exceeds.
    """
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 65535:
        raise ValueError(f"values from {low:g} to {high:g}: must be in 0..1, 0..255 or 0..65535")
    white = 1 if mode == "F" and high <= 1 else 255
    if mode.startswith("I;16") or high > 255:
        white = 65535
    return np.rint(values * (255.0 / white)).astype(np.uint8)
