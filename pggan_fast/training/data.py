"""Batches in an order that is a function of seed and position alone, so that a run can resume."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pggan_fast.training.dataset import PreparedData
from pggan_fast.training.errors import UserError


class Batches:
    """An endless stream over `data`: every epoch shows each image once, shuffled anew.

    `position` counts the images drawn. Image and mirroring at a position follow from `seed` and
    the position only; batch sizes and resolutions may change on the way.
    """

    def __init__(self, data: PreparedData, *, seed: int, mirror: bool = True) -> None:
        if data.count == 0:
            raise UserError(f"--data {data.path}: holds no images")
        self.data = data
        self.seed = seed
        self.mirror = mirror
        self.position = 0
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)
        self._mirrored = np.empty(0, dtype=bool)

    def next(self, batch_size: int, resolution: int) -> tuple[Tensor, Tensor]:
        """The next images, uint8 [N, C, resolution, resolution], and labels, int64 [N]."""
        indices, mirrored = self._draw(batch_size)
        images = self.data.images(resolution)[indices]
        images[mirrored] = images[mirrored][..., ::-1]
        return torch.from_numpy(images), torch.from_numpy(self.data.labels[indices])

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position, self.seed = state["position"], state["seed"]
        self._epoch = -1

    def _draw(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices and mirror flags of the next `count` positions, across epochs if need be."""
        parts = []
        while count > 0:
            epoch, start = divmod(self.position, self.data.count)
            self._enter(epoch)
            taken = slice(start, start + count)
            parts.append((self._order[taken], self._mirrored[taken]))
            self.position += len(parts[-1][0])
            count -= len(parts[-1][0])
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
