"""Arguments of bias_act's launches, checked, and tiles of channels by pixels."""

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.conv_tiles import limits
from pggan_fast.kernels.tensors import accumulation_dtype, cdiv, check_floating, next_power_of_2

ROWS_PER_MULTIPROCESSOR = 8
"""Programs whose sums make a bias's gradient: two full waves of four that run on a multiprocessor at a time."""


@triton.jit
def locate(pid, chunk, C, P, per_sample, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Return a tile's channels [BLOCK_C], pixels counted through all samples [BLOCK_P], whether those exist,
    and offsets and a mask [BLOCK_C, BLOCK_P]."""
    c = (chunk * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    if CHANNELS_LAST:
        # A single sample: a division that costs more than the loads is left out.
        sample, p = 0, tl.full([], pid, tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    else:
        sample = (pid // per_sample).to(tl.int64)
        p = (pid % per_sample).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    offs = c[:, None] + p[None, :] * C if CHANNELS_LAST else sample * C * P + c[:, None] * P + p[None, :]
    return c, sample * P + p, p < P, offs, (c < C)[:, None] & (p < P)[None, :]


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
    return min(t.tiles, limits().multiprocessors * ROWS_PER_MULTIPROCESSOR, most_rows(x))


def most_rows(x: Tensor) -> int:
    """Return how many rows of sums, at least 16, add little to what is read and written of x.

    Each is for 128 bytes of a channel.
    """
    return max(16, x.numel() // x.shape[1] * x.element_size() // 128)


def relative_slope(act: str, slope: float, gain: float) -> float:
    """Return the activation's slope below zero over that above, which is gain."""
    if act not in ("linear", "relu", "lrelu") or slope < 0 or gain < 0:
        raise ValueError(f"bias_act: act is {act!r} (linear, relu, lrelu), slope {slope} and gain {gain} (at least 0)")
    return {"linear": 1.0, "relu": 0.0, "lrelu": slope}[act]


def check(x: Tensor, *, bias: Tensor | None = None, likes: tuple = (), factors: tuple = ()) -> None:
    """Refuse shapes that a kernel would read past the end of. None is what is not given; of factors, r must be."""
    check_floating("bias_act", x, bias, *likes, *factors)
    if x.ndim < 2 or (bias is not None and bias.shape != x.shape[1:2]):
        raise ValueError(f"bias_act: x is {list(x.shape)}, must be [N, C, ...] with one bias for each channel")
    if any(t is not None and t.shape != x.shape for t in likes):
        raise ValueError("bias_act: gradients must have y's shape")
    if any(t is not None and t.shape != (x.shape[0], 1, *x.shape[2:]) for t in factors):
        raise ValueError("bias_act: r and its gradient must have one value per pixel")
    if factors and factors[0] is None:
        raise ValueError("bias_act: pixel norm's gradient needs r")


def empty_factors(x: Tensor, pixel_norm: bool) -> Tensor:
    """An empty tensor like r."""
    return x.new_empty([x.shape[0], 1, *x.shape[2:]] if pixel_norm else [0], dtype=accumulation_dtype(x))


def contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()
