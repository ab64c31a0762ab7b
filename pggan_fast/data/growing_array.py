"""A .npy file that grows by one item at a time, and survives its process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np


class GrowingArray:
    """A uint8 .npy file [count, *shape] whose count is written into its header at the end."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.path = path
        self.shape = shape
        self.count = 0
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 - closed by close()
        self._size = os.fstat(self._file.fileno()).st_size
        with named(path):
            self._write_header()
        self._header = self._file.tell()

    def items_in_file(self) -> int:
        """Return how many whole items an earlier process has left."""
        return max(0, self._size - self._header) // int(np.prod(self.shape))

    def item(self, index: int) -> np.ndarray:
        """Return an item that was written."""
        self.flush()
        size = int(np.prod(self.shape))
        data = os.pread(self._file.fileno(), size, self._header + index * size)
        return np.frombuffer(data, np.uint8).reshape(self.shape)

    def start_after(self, count: int) -> None:
        """Keep the first `count` items and append from there."""
        self.count = count
        with named(self.path):
            self._file.truncate(self._header + count * int(np.prod(self.shape)))
            self._file.seek(0, os.SEEK_END)

    def append(self, item: np.ndarray) -> None:
        with named(self.path):
            self._file.write(np.ascontiguousarray(item).tobytes())
        self.count += 1

    def flush(self) -> None:
        with named(self.path):
            self._file.flush()

    def close(self) -> None:
        if not self._file.closed:
            with named(self.path):
                try:
                    self._file.seek(0)
                    self._write_header()
                finally:
                    self._file.close()

    def _write_header(self) -> None:
        # numpy pads the header for the first axis to grow, so its length does not depend on count.
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Give an error of the system the file's name: a full disk does not say which file it was."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise
