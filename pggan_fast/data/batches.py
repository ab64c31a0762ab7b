"""Batches in an order that is a function of seed and position alone, so that a run can resume."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pggan_fast.data.dataset import PreparedData
from pggan_fast.data.rows import ImageRows
from pggan_fast.reference import stddev_group
from pggan_fast.utils.batch_split import take
from pggan_fast.utils.distributed import Processes
from pggan_fast.utils.errors import UserError


class Batches:
    """An endless stream over `data`: every epoch shows each image once, shuffled anew.

    `position` counts the images drawn. Image and mirroring at a position follow from `seed` and
    the position only; batch sizes and resolutions may change on the way. Of several `processes` each
    reads its own part of every batch, made of whole groups of the minibatch statistics (at most
    `group_size` samples each) where that is possible.
    """

    def __init__(
        self,
        data: PreparedData,
        *,
        seed: int,
        mirror: bool = True,
        processes: Processes = Processes(),  # noqa: B008 - frozen
        group_size: int = 1,
    ) -> None:
        if data.count == 0:
            raise UserError(f"--data {data.path}: holds no images")
        self.data = data
        self.seed = seed
        self.mirror = mirror
        self.processes = processes
        self.group_size = group_size
        self.position = 0
        self._rows: dict[int, ImageRows] = {}
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self._mirrored = np.empty(0, dtype=bool)

    def next(self, batch_size: int, resolution: int) -> tuple[Tensor, Tensor]:
        """This process's part of the next `batch_size` images: uint8 [N, C, H, W], and labels, int64 [N]."""
        rank, count = self.processes.rank, self.processes.count
        group = stddev_group(batch_size, self.group_size)
        indices, mirrored = (take(drawn, rank, count, group) for drawn in self._draw(batch_size))
        images = self._rows_at(resolution).take(indices)
        images[mirrored] = images[mirrored][..., ::-1]
        self.position += batch_size
        return torch.from_numpy(images), torch.from_numpy(self.data.labels[indices])

    def _rows_at(self, resolution: int) -> ImageRows:
        if resolution not in self._rows:
            self._rows = {resolution: ImageRows(self.data.images(resolution))}
        return self._rows[resolution]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position, self.seed = state["position"], state["seed"]
        self._epoch = -1

    def _draw(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices and mirror flags of the next `count` positions, across epochs if need be."""
        parts, position, end = [], self.position, self.position + count
        while position < end:
            epoch, start = divmod(position, self.data.count)
            self._enter(epoch)
            taken = slice(start, start + end - position)
            parts.append((self._order[taken], self._mirrored[taken]))
            position += len(parts[-1][0])
        indices, mirrored = zip(*parts, strict=True)
        return np.concatenate(indices), np.concatenate(mirrored)

    def _enter(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        self._epoch = epoch
        random = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        self._order = random.permutation(self.data.count)
        self._mirrored = random.random(self.data.count) < 0.5
        if not self.mirror:
            self._mirrored[:] = False
