"""The tiles of bias_act's kernels: channels by pixels."""

import math
from typing import NamedTuple

from torch import Tensor

from pggan_fast.kernels.conv_tiles import limits
from pggan_fast.kernels.tensors import cdiv, next_power_of_2

ROWS_PER_MULTIPROCESSOR = 8
"""Programs whose sums make a bias's gradient: two full waves of four that run on a multiprocessor at a time."""


class Tiling(NamedTuple):
    """How a tensor is cut. channels_last, and one pixel a sample, count as a single sample of N P pixels."""

    C: int
    P: int
    per_sample: int  # tiles of pixels in a sample
    tiles: int  # and in all
    programs_c: int  # programs that share the channels
    constants: dict
    warps: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.C, self.P, self.per_sample


def tiling(t: Tensor, channels_last: bool, norm: bool, tensors: int) -> Tiling:
    """Return the tiling of t for a kernel that holds tiles of `tensors` tensors: 32 values a thread, 16 for many.

    Depends on N only through the number of tiles, so that a compiled graph serves every batch size.
    """
    n, c, p = t.shape[0], int(t.shape[1]), math.prod(t.shape[2:])
    channels_last = channels_last or p == 1
    samples, p = (1, n * p) if channels_last else (n, int(p))
    channels, elements = next_power_of_2(c), 4096
    if channels_last:
        block_c = min(channels, 4096 if norm else 128)
        block_p = elements // block_c
    else:
        # 16 pixels are at least 32 bytes, a sector.
        block_c = min(channels, 512) if norm else 1
        block_p = max(min(next_power_of_2(p), elements // block_c, 256), 16)
        block_c = block_c if norm else min(channels, elements // block_p)
    chunks = cdiv(c, block_c)
    per_sample = cdiv(p, block_p)
    threads = block_c * block_p // (32 if tensors < (2 if norm else 3) else 16)
    constants = dict(
        CHANNELS_LAST=channels_last, NORM=norm, CHUNKS=chunks if norm else 1, BLOCK_C=block_c, BLOCK_P=block_p
    )
    warps = min(max(threads // 32, 1), 16)
    return Tiling(c, p, per_sample, samples * per_sample, 1 if norm else chunks, constants, warps)


def rows_of_sums(t: Tiling, x: Tensor) -> int:
    """Return the number of programs that go through the tiles of x, and each leave a row of sums."""
    if t.constants["CHUNKS"] > 1:
        return t.tiles
    most = limits().multiprocessors * ROWS_PER_MULTIPROCESSOR
    # Rows add little to what is read and written where each is for 128 bytes of a channel.
    return min(t.tiles, most, max(16, x.numel() // t.C * x.element_size() // 128))
