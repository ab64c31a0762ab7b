"""Images of prepared data, read so that a file that shrinks meanwhile is an error and not the end of the process."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from pggan_fast.utils.errors import UserError


class ImageRows:
    """Rows of the mapped array of one resolution, [count, channels, height, width], read instead of touched.

    The kernel answers a read beyond the end of a truncated file with fewer bytes, a touch of mapped memory by SIGBUS.
    """

    def __init__(self, array: np.memmap) -> None:
        """Open the file of `array`. Raises UserError unless it holds rows, one after the other."""
        filename = getattr(array, "filename", None)
        if filename is None or not array.flags.c_contiguous:
            raise UserError(f"{filename or '--data'}: must hold images, each after the other (C order)")
        self.path = Path(filename)
        self._array = array
        self._row_bytes = array[:1].nbytes
        self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - closed with the object

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the rows `indices`. Raises UserError if the file ends before one of them."""
        rows = np.empty((len(indices), *self._array.shape[1:]), dtype=self._array.dtype)
        for row, index in zip(rows.reshape(len(indices), -1), indices, strict=True):
            self._read(memoryview(row.view(np.uint8)), self._array.offset + int(index) * self._row_bytes)
        return rows

    def _read(self, row: memoryview, start: int) -> None:
        done = 0
        while done < len(row):
            count = os.preadv(self._file.fileno(), [row[done:]], start + done)
            if not count:
                raise UserError(
                    f"--data {self.path.parent}: {self.path.name} has become shorter while it was read"
                    " (truncated or written anew); restore it and resume"
                )
            done += count
