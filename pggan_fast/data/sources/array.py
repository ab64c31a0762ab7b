"""One .npy file with all images in it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pggan_fast.data.preprocessing import Picture, from_array
from pggan_fast.data.sources.source import Item
from pggan_fast.utils.errors import UserError


class Array:
    """[N, H, W], [N, C, H, W] or [N, H, W, C], uint8 or floats in 0..1; it is mapped, not read. No classes."""

    classes = None

    def __init__(self, path: Path) -> None:
        try:
            self._images = np.load(path, mmap_mode="r", allow_pickle=False)
            from_array(np.array(self._images[:1]))
        except (OSError, ValueError, EOFError, IndexError) as error:
            raise UserError(f"--images {path}: is no array of images ({' '.join(str(error).split())})") from error
        self.path = path
        self.count = len(self._images)
        self.facts: dict[str, Any] = {"array": str(path.absolute()), "shape": list(self._images.shape)}

    def items(self, start: int = 0) -> Iterator[Item]:
        for index in range(start, self.count):
            yield Item(f"{self.path.name}[{index}]", None, partial(self._read, index))

    def _read(self, index: int) -> Picture:
        return from_array(np.array(self._images[index]))
