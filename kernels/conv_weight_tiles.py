"""Tiles of the weight gradient's kernel: a fixed heuristic, then what `tune` measured."""

from typing import NamedTuple

import torch

from pggan_fast.kernels.conv_table import measurement
from pggan_fast.kernels.conv_tiles import limits, on_tensor_cores, power_of_2, tile_shape
from pggan_fast.kernels.tensors import cdiv, next_power_of_2

PROGRAMS_PER_MULTIPROCESSOR = 3
"""Programs of 128 threads with up to 168 registers that run at a time: assumed where the kernel is not compiled yet."""


class WeightTile(NamedTuple):
    """A program's pixels (samples x rows x columns), its block of the gradient, and how it is compiled."""

    n: int
    h: int
    w: int
    block_a: int
    block_b: int
    warps: int
    stages: int


class WeightProblem(NamedTuple):
    """The weight gradient of a convolution, between a [n, c_a, h, w] and the taps of b, of c_b channels.

    a is the gradient of the output and b the input; of a transposed convolution, the other way round.
    """

    dtype: torch.dtype
    n: int
    c_a: int
    c_b: int
    h: int
    w: int
    k: int = 3  # of the weight, before folding
    stride: int = 1
    transposed: bool = False
    folded: bool = False

    @property
    def taps(self) -> int:
        return (self.k + self.folded) ** 2

    @property
    def room_for_taps(self) -> int:
        return next_power_of_2(self.taps)

    @property
    def rows(self) -> int:
        """Rows of the product: taps times channels of b."""
        return (self.room_for_taps if self.folded else self.taps) * self.c_b

    @property
    def operations(self) -> float:
        """Multiplications and additions."""
        return 2 * self.taps * self.c_a * self.c_b * self.n * self.h * self.w

    @property
    def read_bytes(self) -> float:
        pixels = self.n * self.h * self.w
        return pixels * (self.c_a + self.c_b * self.stride**2) * self.dtype.itemsize

    @property
    def key(self) -> str:
        """Its name in the table of measurements."""
        words = [str(self.dtype).removeprefix("torch."), f"weight {self.c_a}x{self.c_b} k{self.k} s{self.stride}"]
        words += ["folded"] * self.folded + ["transposed" if self.transposed else "plain"]
        return " ".join([*words, power_of_2(self.n * self.h * self.w)])


def choose_weight_tile(problem: WeightProblem, device: int | None = None) -> WeightTile:
    """Return the measured tile if there is one, else the heuristic's."""
    found = measurement(problem, device)
    return WeightTile(*found["tile"]) if found else default_weight_tile(problem)


def default_weight_tile(problem: WeightProblem) -> WeightTile:
    """Blocks of 128 rows by up to 128 channels where tensor cores take them, over 32 pixels a step."""
    p = problem
    fast = on_tensor_cores(p.dtype)
    pixels = 32 if fast and p.dtype.itemsize == 2 else 16
    largest = (128 if p.dtype.itemsize == 2 else 64) if fast else 32
    block_a = max(16, min(largest, next_power_of_2(p.c_a)))
    block_b = max(16, min(128 if fast else 64, next_power_of_2(p.rows)), p.room_for_taps if p.folded else 1)
    # Few channels of a folded weight leave registers that the many rows' addresses fill.
    warps = 8 if block_a == 128 or (p.folded and block_a == 16) else 4
    return WeightTile(*tile_shape(pixels, p.h, p.w), block_a, block_b, warps, stages=3)


def splits_of(tiles: int, blocks: int, resident: int) -> int:
    """Return the number of programs that share the pixels of a block: one wave of the GPU, and no more to add up.

    resident: programs of the kernel that a multiprocessor holds at a time.
    """
    return max(1, min(int(tiles), limits().multiprocessors * resident // blocks))


def l2_bytes(problem: WeightProblem, tile: WeightTile) -> float:
    """Return the bytes that the launch loads through L2: both operands for every tap and block."""
    p = problem
    steps = cdiv(p.n, tile.n) * cdiv(p.h, tile.h) * cdiv(p.w, tile.w)
    blocks = cdiv(p.rows, tile.block_b) * cdiv(p.c_a, tile.block_a)
    return steps * blocks * tile.n * tile.h * tile.w * (tile.block_a + tile.block_b) * p.dtype.itemsize
