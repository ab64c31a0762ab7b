"""Patches of images: where they are cut, and a store that is not limited by memory."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

PATCH = 7  # pixels
PER_IMAGE = 128
HELD = 2**25  # bytes of patches of one set and level that stay in memory
_ROWS = 8192  # patches read at once: 5 MB in color
_CONSTANT = 1e-6  # a variance below this, in squared grey levels, is rounding


def cut_patches(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """7x7 patches [N*P, 7, 7, C] of images [N, C, H, W] with upper left corners y, x: int64 [N, P].

    Channels come last because a patch is then 7 runs of memory instead of 7 for every channel.
    """
    count, channels, height, width = images.shape
    pixels = images.permute(0, 2, 3, 1).contiguous()
    last = count * height * width - (PATCH - 1) * (width + 1)
    windows = pixels.as_strided((last, PATCH, PATCH, channels), (channels, width * channels, channels, 1))
    image = torch.arange(count, device=images.device)[:, None]
    return windows.index_select(0, ((image * height + y) * width + x).flatten())


class Positions:
    """Uniformly random corners of patches, which follow from seed and image.

    The same image gets the same patches wherever it turns up, in whatever order and batch; other images get
    independent ones, and so do further copies within one set (hence an object per set). So sets of different images
    are sampled as in the paper, and equal sets are at a distance of 0 instead of two samples of the same images apart.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._copies: dict[bytes, int] = {}

    def draw(self, images: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """Corners (y, x) for images uint8 [N, C, H, W] at levels of these sizes: int64 [levels, 2, N, 128]."""
        places = np.array(sizes)[:, :, None] - PATCH + 1
        corners = np.empty((len(sizes), 2, len(images), PER_IMAGE), dtype=np.int64)
        for n, image in enumerate(images.cpu().contiguous().numpy()):
            digest = hashlib.blake2b(image.data, digest_size=16).digest()
            copy = self._copies[digest] = self._copies.get(digest, -1) + 1
            random = np.random.Generator(np.random.PCG64([self.seed, copy, int.from_bytes(digest, "little")]))
            corners[:, :, n] = places * random.random((len(sizes), 2, PER_IMAGE))
        return torch.from_numpy(corners)


class PatchStore:
    """float32 patches of one set at one level, and their statistics.

    Memory holds the newest of them, at most HELD bytes. The others lie in a file without a name in the temporary
    folder (the environment variable TMPDIR chooses it), because the paper's number of images makes 1.2 GB of them per
    set and level. The file is gone when it is closed.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)
        self._held: list[Tensor] = []
        self._held_bytes = 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._file_count = 0

    def append(self, patches: Tensor) -> None:
        """Add float32 patches [n, 7, 7, C]."""
        rows = patches.flatten(1).cpu()
        # float32 is enough for deviations from a mean; what pieces have in common is added up in float64.
        mean = rows.mean(0)
        squares = (rows - mean).square_().sum(0).double() + len(rows) * mean.double().square()
        self._sum += len(rows) * mean.double().view(-1, self.channels).sum(0)
        self._squares += squares.view(-1, self.channels).sum(0)
        self.count += len(rows)
        self._held.append(rows)
        self._held_bytes += rows.nbytes
        if self._held_bytes > HELD:
            self._write()

    def mean_std(self) -> tuple[Tensor, Tensor]:
        """Mean and population standard deviation of each channel, float64 [C]; 0 for a channel that is constant."""
        values = self.count * PATCH**2
        mean = self._sum / values
        variance = self._squares / values - mean.square()
        return mean, torch.where(variance > _CONSTANT, variance, 0).sqrt()

    def chunks(self) -> Iterator[Tensor]:
        """All patches in their order, flattened: float32 [n, 49*C] on the CPU."""
        self._file.seek(0)
        for start in range(0, self._file_count, _ROWS):
            rows = np.empty((min(_ROWS, self._file_count - start), PATCH**2 * self.channels), dtype=np.float32)
            self._file.readinto(rows.data)
            yield torch.from_numpy(rows)
        if len(self._held) > 1:
            self._held = [torch.cat(self._held)]  # one product with all of them is twice as fast as with pieces
        yield from self._held

    def close(self) -> None:
        """Forget the patches."""
        self._file.close()
        self._held.clear()

    def _write(self) -> None:
        self._file.seek(0, os.SEEK_END)
        for rows in self._held:
            self._file.write(rows.numpy().data)
        self._file_count = self.count
        self._held.clear()
        self._held_bytes = 0
