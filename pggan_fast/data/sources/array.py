"""One .npy file with all images in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pggan_fast.data.names import one_line, printable
from pggan_fast.data.npy import map_npy
from pggan_fast.data.preprocessing import AnyImage, from_array
from pggan_fast.data.sources.listing import check_unchanged, file_fingerprint
from pggan_fast.data.sources.source import Item, SourceError
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.memory import is_out_of_memory


class Array:
    """[N, H, W], [N, C, H, W] or [N, H, W, C], uint8 or floats in 0..1. No classes.

    Images are read one by one: a touch of mapped memory beyond the end of a file that shrinks would end the process.
    """

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
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with the object
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
        check_unchanged(self.place, self.metadata["file"], self.option)

    def item(self, index: int) -> Item:
        return Item(f"{printable(self.place.name)}[{index}]", None, partial(self._read, index))

    def _read(self, index: int) -> AnyImage:
        if not self._images.flags.c_contiguous:  # its values lie all over the file
            check_unchanged(self.place, self.metadata["file"], self.option)
            return from_array(np.array(self._images[index]))
        image = self._images[:1]
        data = os.pread(self._file.fileno(), image.nbytes, self._images.offset + index * image.nbytes)
        if len(data) < image.nbytes:
            check_unchanged(self.place, self.metadata["file"], self.option)
            raise SourceError(f"{self.option} {printable(str(self.place))}: ends before image {index}")
        return from_array(np.frombuffer(data, image.dtype).reshape(image.shape[1:]))

    def _check_first(self) -> None:
        """Raise ValueError unless the array's shape and dtype are those of images."""
        first = self._images[:1]
        if first.nbytes > 1 << 30:
            raise ValueError(f"images of {first.nbytes:,} bytes each")
        from_array(np.zeros(first.shape, first.dtype))
