"""From a generator's output to PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pggan_fast.utils.atomic_write import atomic_write

SMALLEST_TILE = 64  # pixels: below that a person sees little
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def to_uint8(images: Tensor) -> np.ndarray:
    """Images in -1..1, [N, C, H, W], as uint8 [N, H, W, C] on the CPU."""
    pixels = (images.float() * 127.5 + 127.5).round().clamp(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def to_pil(image: np.ndarray) -> Image.Image:
    """A Pillow image of uint8 [H, W, C]."""
    mode = MODES[image.shape[2]]
    return Image.fromarray(image[:, :, 0] if mode == "L" else image, mode)


def grid(images: np.ndarray, columns: int, tile: int = SMALLEST_TILE) -> np.ndarray:
    """uint8 [N, H, W, C] laid out row by row; the shorter side is enlarged to `tile` pixels where it is less."""
    repeat = max(1, tile // min(images.shape[1:3]))
    images = images.repeat(repeat, axis=1).repeat(repeat, axis=2)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    filled = np.zeros((rows * columns, height, width, channels), dtype=np.uint8)
    filled[:count] = images
    tiles = filled.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(rows * height, columns * width, channels)


def save_png(path: Path, image: np.ndarray) -> None:
    """Write uint8 [H, W, C] as a PNG, whole or not at all."""
    with atomic_write(path) as aside:
        to_pil(image).save(aside, format="PNG")


def rgb(image: Image.Image) -> Image.Image:
    """Without transparency, which shows white."""
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def rgb_array(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] of uint8 [H, W, 1 to 4]."""
    return np.asarray(rgb(to_pil(image)))
