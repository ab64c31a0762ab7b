"""Tiles of the convolution's kernels, and what they take to run: a fixed heuristic, then what `tune` measured."""

import math
from functools import cache
from typing import NamedTuple

import torch

from pggan_fast.kernels.conv_table import measurement
from pggan_fast.kernels.gpu_limits import MODELLED, GPULimits, limits_of_device
from pggan_fast.kernels.tensors import cdiv, next_power_of_2

# Pixel norm needs all channels of a pixel in one program; more than this do not fit a program's registers.
MOST_NORMED_CHANNELS = 512


class Tile(NamedTuple):
    """A program's pixels (samples x rows x columns) and blocks of channels, and how it is compiled."""

    n: int
    h: int
    w: int
    block_in: int
    block_out: int
    warps: int
    stages: int


class Problem(NamedTuple):
    """A convolution: [n, c_in, ...] -> [n, c_out, h, w], its kernel's size, stride and direction, and its epilogue."""

    dtype: torch.dtype
    n: int
    c_in: int
    c_out: int
    h: int
    w: int
    k: int = 3
    stride: int = 1
    transposed: bool = False
    pixel_norm: bool = False
    variant: str = (
        ""  # "signs": writes sign bits, "mask": takes the activation off another tensor, "plain": no epilogue
    )

    @property
    def phases(self) -> int:
        """The number of phases of the output's rows, and as many of its columns: each has taps of its own."""
        return self.stride if self.transposed else 1

    @property
    def phase_h(self) -> int:
        return cdiv(self.h, self.phases)

    @property
    def phase_w(self) -> int:
        return cdiv(self.w, self.phases)

    @property
    def taps(self) -> float:
        """Input pixels that an output pixel reads, on average."""
        return (self.k / self.phases) ** 2

    @property
    def operations(self) -> float:
        """Multiplications and additions."""
        return 2 * self.taps * self.c_in * self.c_out * self.n * self.h * self.w

    @property
    def in_bytes(self) -> float:
        ratio = 1 / self.stride if self.transposed else self.stride
        return self.n * self.c_in * self.h * self.w * ratio**2 * self.dtype.itemsize

    @property
    def out_bytes(self) -> float:
        return self.n * self.c_out * self.h * self.w * self.dtype.itemsize

    @property
    def weight_bytes(self) -> float:
        return self.k**2 * self.c_in * self.c_out * self.dtype.itemsize

    @property
    def key(self) -> str:
        """Its name in the table of measurements: sizes to the next power of two of the number of pixels."""
        words = [str(self.dtype).removeprefix("torch."), f"{self.c_in}>{self.c_out} k{self.k} s{self.stride}"]
        words += ["norm"] * self.pixel_norm + [self.variant] * bool(self.variant)
        return " ".join([*words, "transposed" if self.transposed else "plain", power_of_2(self.n * self.h * self.w)])


def power_of_2(pixels: int) -> str:
    """Return a number of pixels as a key has it: the next power of two."""
    return f"2^{math.ceil(math.log2(max(1, pixels)))}"


def on_hip() -> bool:
    """Whether Triton compiles for AMD's GPUs."""
    return torch.version.hip is not None


def dot_precision(dtype: torch.dtype) -> str:
    """Return the precision of products: of fp32 what cuDNN's convolutions are allowed, on NVIDIA's GPUs alone.

    Triton's tf32 drops the lower bits of an operand where cuDNN may round them.
    """
    if dtype != torch.float32 or on_hip():
        return "ieee"
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"


def capability() -> tuple[int, int]:
    """Compute capability of the current GPU, and where there is none, of the modelled one."""
    return torch.cuda.get_device_capability() if torch.cuda.is_initialized() else limits().capability


def limits() -> GPULimits:
    """Return the limits of the current GPU, and where there is none, of the modelled one."""
    return _limits_of_device(torch.cuda.current_device()) if torch.cuda.is_initialized() else MODELLED


@cache
def _limits_of_device(index: int) -> GPULimits:
    return limits_of_device(index)


def on_tensor_cores(dtype: torch.dtype) -> bool:
    """Whether products of this dtype run on tensor cores; Triton knows those of capability 8.0 and more."""
    narrow = dtype.itemsize == 2 or (dtype == torch.float32 and dot_precision(dtype) == "tf32")
    return narrow and capability() >= (8, 0)


def choose_tile(problem: Problem, device: int | None = None) -> Tile:
    """Return the measured tile if there is one, else the heuristic's."""
    found = measurement(problem, device)
    return Tile(*found["tile"]) if found else default_tile(problem)


def default_tile(problem: Problem) -> Tile:
    """128 pixels by up to 128 channels, square in the image, so that neighbours' taps meet in the L2 cache.

    256 pixels where shared memory holds them and enough programs are left to keep the GPU busy. Smaller where
    registers or shared memory are few: without tensor cores, whose operands then take the accumulator's registers,
    with pixel norm over many channels, and on AMD's GPUs with their 64 KB.
    """
    c_out, c_in = max(16, next_power_of_2(problem.c_out)), max(16, next_power_of_2(problem.c_in))
    half = problem.dtype.itemsize == 2
    stages = 3
    if on_tensor_cores(problem.dtype):
        block_out = c_out if problem.pixel_norm else min(c_out, 128)
        pixels = 128 if block_out <= 128 else 64
        block_in = min(32 if half else 16, c_in)
        if half and block_out == 128:
            block_in = min(64, c_in)  # half the barriers to a product
        # Capability 12 keeps fewer of the accumulator's values in registers.
        warps = 8 if block_out >= (64 if capability() >= (12, 0) else 128) else 4
        # Packing sign bits takes the registers that 256 pixels by 128 channels would need.
        widest = 64 if problem.variant == "signs" else 128
        if half and 64 <= block_out <= widest and (9, 0) <= capability() < (12, 0) and not on_hip():
            # Twice the pixels for the same weights: three quarters of the bytes through L2, which binds these tiles.
            larger = Tile(*tile_shape(256, problem.phase_h, problem.phase_w), min(64, c_in), block_out, 8, stages)
            if programs(problem, larger) >= 2 * limits().multiprocessors:
                return larger
    else:
        block_out = c_out if problem.pixel_norm else min(c_out, 64)
        pixels = max(16, min(64, 4096 // block_out))
        block_in, warps = 16, 8 if block_out >= 64 else 4
    if on_hip():
        operands = (pixels + block_out) * block_in * problem.dtype.itemsize
        # Triton keeps one stage fewer in shared memory, of which there are 64 KB.
        stages = 3 if 2 * operands <= 60 << 10 else 2
        if block_out > 256 and capability() >= (10, 0):
            warps = 16  # of 32 threads there, not 64: eight have no registers for the accumulator
    shape = tile_shape(pixels, problem.phase_h, problem.phase_w)
    return Tile(*shape, block_in, block_out, warps, stages)


def tile_shape(pixels: int, h: int, w: int) -> tuple[int, int, int]:
    """`pixels`, a power of two, as samples x rows x columns of images h x w."""
    columns = min(next_power_of_2(w), 1 << pixels.bit_length() // 2)
    rows = min(next_power_of_2(h), pixels // columns)
    return pixels // (rows * columns), rows, columns


def programs(problem: Problem, tile: Tile) -> int:
    """Return the number of programs of one launch."""
    pixel_tiles = cdiv(problem.n, tile.n) * cdiv(problem.phase_h, tile.h) * cdiv(problem.phase_w, tile.w)
    return pixel_tiles * problem.phases**2 * cdiv(problem.c_out, tile.block_out)


def l2_bytes(problem: Problem, tile: Tile) -> float:
    """Return the bytes that one launch loads through L2: its operands again for every tap and block of channels.

    Triton's asynchronous copies never meet in an L1 cache.
    """
    steps = problem.taps * cdiv(problem.c_in, tile.block_in)
    pixels = tile.n * tile.h * tile.w
    operands = (pixels + tile.block_out) * tile.block_in * problem.dtype.itemsize
    return programs(problem, tile) * steps * operands + problem.out_bytes
