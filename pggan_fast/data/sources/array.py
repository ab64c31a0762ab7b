"""One .npy file with all images in it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pggan_fast.data.names import one_line, printable
from pggan_fast.data.npy import map_npy
from pggan_fast.data.preprocessing import AnyImage, from_array
from pggan_fast.data.sources.listing import file_fingerprint
from pggan_fast.data.sources.source import Item
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.memory import is_out_of_memory


class Array:
    """[N, H, W], [N, C, H, W] or [N, H, W, C], uint8 or floats in 0..1; it is mapped, not read. No classes."""

    classes = None

    def __init__(self, path: Path, *, option: str = "--images") -> None:
        try:
            self._images = map_npy(path)
            if self._images.ndim < 3:
                raise ValueError(f"an array of shape {list(self._images.shape)} holds no images")
            if len(self._images):
                self._check_first()
        except (OSError, ValueError, IndexError, TypeError) as error:
            if is_out_of_memory(error):  # the file may be as it should be
                raise
            raise UserError(f"{option} {printable(str(path))}: is no array of images ({one_line(error)})") from error
        if not len(self._images):
            raise UserError(f"{option} {printable(str(path))}: holds no images")
        self.place, self.option = path, option
        self.count = len(self._images)
        self.names = range(self.count)
        self.metadata: dict[str, Any] = {
            "array": printable(str(path.absolute())),
            "shape": list(self._images.shape),
            "file": file_fingerprint(path),
        }

    def items(self, start: int = 0) -> Iterator[Item]:
        for index in range(start, self.count):
            yield self.item(index)

    def item(self, index: int) -> Item:
        return Item(f"{printable(self.place.name)}[{index}]", None, partial(self._read, index))

    def _read(self, index: int) -> AnyImage:
        return from_array(np.array(self._images[index]))

    def _check_first(self) -> None:
        """Raise ValueError unless the array's shape and dtype are those of images."""
        first = self._images[:1]
        if first.nbytes > 1 << 30:
            raise ValueError(f"images of {first.nbytes:,} bytes each")
        from_array(np.zeros(first.shape, first.dtype))
