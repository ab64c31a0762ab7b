"""Tiles of the fused convolution, and where it is taken: a fixed heuristic, then what `tune` measured on this GPU."""

import json
import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import triton

# An H100 as the model sees it: what a plain copy and a large matrix product reach.
BYTES_PER_SECOND = 3e12
HALF_OPERATIONS_PER_SECOND = 600e12
MULTIPROCESSORS = 132
LAUNCH_SECONDS = 3e-6

# Shares of the above that an implicit GEMM in Triton and cuDNN's convolutions are taken to reach where compute-bound.
TRITON_EFFICIENCY = 0.6
CUDNN_EFFICIENCY = 0.8

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
    """A convolution: [n, c_in, ...] -> [n, c_out, h, w], its kernel's size, stride and direction."""

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

    @property
    def phases(self) -> int:
        """The number of phases of the output's rows, and as many of its columns: each has taps of its own."""
        return self.stride if self.transposed else 1

    @property
    def phase_h(self) -> int:
        return triton.cdiv(self.h, self.phases)

    @property
    def phase_w(self) -> int:
        return triton.cdiv(self.w, self.phases)

    @property
    def operations(self) -> float:
        """Multiplications and additions."""
        taps = (self.k / self.phases) ** 2
        return 2 * taps * self.c_in * self.c_out * self.n * self.h * self.w

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
    def operations_per_second(self) -> float:
        """On tensor cores: fp32 is tf32, at half the pace."""
        return HALF_OPERATIONS_PER_SECOND / (2 if self.dtype == torch.float32 else 1)


def dot_precision() -> str:
    """Return the precision of fp32 products: what cuDNN's convolutions are allowed."""
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"


def capability() -> tuple[int, int]:
    """Compute capability of the current GPU, and where there is none, of the modelled one."""
    return torch.cuda.get_device_capability() if torch.cuda.is_initialized() else (9, 0)


def on_tensor_cores(dtype: torch.dtype) -> bool:
    """Whether products of this dtype run on tensor cores; Triton knows those of capability 8.0 and more."""
    narrow = dtype.itemsize == 2 or (dtype == torch.float32 and dot_precision() == "tf32")
    return narrow and capability() >= (8, 0)


def choose_tile(problem: Problem) -> Tile:
    """The measured tile if there is one, else the heuristic's."""
    found = measurement(problem)
    return Tile(*found["tile"]) if found else default_tile(problem)


def default_tile(problem: Problem) -> Tile:
    """128 pixels, 64 where channels are many; square in the image, so that taps meet again in the L1 cache.

    Smaller without tensor cores, whose operands then take the accumulator's registers.
    """
    c_out = max(16, triton.next_power_of_2(problem.c_out))
    if on_tensor_cores(problem.dtype):
        block_out = c_out if problem.pixel_norm else min(c_out, 128)
        # With 128 channels, pixel norm wants eight warps; without, a gradient's gate wants registers.
        pixels = 128 if block_out <= (128 if problem.pixel_norm else 64) else 64
        block_in = max(16, min(32 if problem.dtype.itemsize == 2 else 16, triton.next_power_of_2(problem.c_in)))
        warps = 8 if problem.pixel_norm and block_out >= 128 else 4
    else:
        block_out = c_out if problem.pixel_norm else min(c_out, 64)
        pixels = max(16, min(64, 4096 // block_out))
        block_in, warps = 16, 8 if block_out >= 64 else 4
    shape = tile_shape(pixels, problem.phase_h, problem.phase_w)
    return Tile(*shape, block_in, block_out, warps, stages=3)


def tile_shape(pixels: int, h: int, w: int) -> tuple[int, int, int]:
    """`pixels`, a power of two, as samples x rows x columns of images h x w."""
    # int: a size that torch.compile traces becomes a constant here.
    columns = min(triton.next_power_of_2(int(w)), 1 << pixels.bit_length() // 2)
    rows = min(triton.next_power_of_2(int(h)), pixels // columns)
    return pixels // (rows * columns), rows, columns


def programs(problem: Problem, tile: Tile) -> int:
    """Return the number of programs of one launch."""
    pixel_tiles = triton.cdiv(problem.n, tile.n) * triton.cdiv(problem.phase_h, tile.h)
    pixel_tiles *= triton.cdiv(problem.phase_w, tile.w)
    return pixel_tiles * problem.phases**2 * triton.cdiv(problem.c_out, tile.block_out)


def modelled_seconds(problem: Problem, moved: float, efficiency: float = 1.0) -> float:
    """The larger of the times for `moved` bytes and for the operations, on the modelled GPU."""
    return max(moved / BYTES_PER_SECOND, problem.operations / (problem.operations_per_second * efficiency))


def is_fused_faster(problem: Problem, beside: float, spared: float) -> bool:
    """Whether the fused launch beats cuDNN's convolution and a launch that moves the rest.

    beside: bytes that the fused launch reads beside the convolution's own. spared: what the other launch moves.
    """
    if problem.pixel_norm and problem.c_out > MOST_NORMED_CHANNELS:
        return False
    if not on_tensor_cores(problem.dtype):
        return False
    if found := measurement(problem):
        return found["fused"]
    own = problem.in_bytes + problem.weight_bytes + problem.out_bytes
    busy = min(1.0, programs(problem, default_tile(problem)) / MULTIPROCESSORS)
    fused = modelled_seconds(problem, own + beside, TRITON_EFFICIENCY) / busy
    split = modelled_seconds(problem, own, CUDNN_EFFICIENCY) + spared / BYTES_PER_SECOND + LAUNCH_SECONDS
    return fused < split


def key(problem: Problem) -> str:
    """A problem's name in the table of measurements: sizes to the next power of two of the number of pixels."""
    pixels = math.ceil(math.log2(max(1, problem.n * problem.h * problem.w)))
    way = ("norm " if problem.pixel_norm else "") + ("transposed" if problem.transposed else "plain")
    kind = str(problem.dtype).removeprefix("torch.")
    return f"{kind} {problem.c_in}>{problem.c_out} k{problem.k} s{problem.stride} {way} 2^{pixels}"


def table_path(device: int) -> Path:
    """Return the path of what `tune` measured on this GPU: beside Triton's cache."""
    name = "".join(c if c.isalnum() else "-" for c in torch.cuda.get_device_name(device))
    return Path(triton.knobs.cache.dir).with_name(f"pggan-fast-{name}.json")


def measurement(problem: Problem) -> dict | None:
    """Return what `tune` found on this GPU for such a problem: {"tile": [...], "fused": whether it is faster}."""
    return _table(torch.cuda.current_device()).get(key(problem)) if torch.cuda.is_initialized() else None


@cache
def _table(device: int) -> dict[str, dict]:
    path = table_path(device)
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        raise RuntimeError(f"{path} is not what tuning wrote: remove it, or tune again") from None
