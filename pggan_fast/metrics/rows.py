"""Rows of numbers of a set of images, in a file instead of memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

BLOCK = 4096  # rows read at once


class RowStore:
    """Rows of one length, appended in turn and read back in blocks.

    They lie in a file without a name in the temporary folder (the environment variable TMPDIR chooses it), because
    the features of 50,000 images take 400 MB. The file is gone when it is closed.
    """

    def __init__(self) -> None:
        self.count = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._dtype = np.dtype(np.float32)
        self._width = 0

    def append(self, rows: Tensor) -> None:
        """Add rows [n, D] of any device, in the dtype and of the length of the first ones."""
        if not len(rows):
            return
        array = np.ascontiguousarray(rows.cpu().numpy())
        self._dtype, self._width = array.dtype, array.shape[1]
        self._file.write(array.data)
        self.count += len(array)

    def array(self) -> np.ndarray:
        """All rows [count, D], mapped and read-only; there must be one at least."""
        self._file.flush()
        return np.memmap(self._file, self._dtype, mode="r", shape=(self.count, self._width))

    def blocks(self) -> Iterator[Tensor]:
        """All rows in their order as float64 [n, D] on the CPU."""
        for start in range(0, self.count, BLOCK):
            yield torch.from_numpy(self.array()[start : start + BLOCK].astype(np.float64))

    def mean_covariance(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 mean [D] and sample covariance [D, D] of the rows."""
        mean = sum(block.sum(0) for block in self.blocks()) / self.count
        products = sum((block - mean).T @ (block - mean) for block in self.blocks())
        return mean.numpy(), (products / (self.count - 1)).numpy()

    def close(self) -> None:
        """Forget the rows."""
        self._file.close()
