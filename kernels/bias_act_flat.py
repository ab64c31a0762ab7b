"""bias_act without pixel norm on channels_last tensors of few channels, images above all: flat rows of values.

A thread loads and stores vectors wherever pixels begin in them. Programs are as many as the GPU runs at once, and a
multiple of C where one takes several tiles, so that each place of a tile has the same channel in all of them: its bias
is read once, and its gradient is one sum.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.activation import activated
from pggan_fast.kernels.conv_tiles import limits
from pggan_fast.kernels.tensors import cdiv, scalar

MOST_CHANNELS = 7
"""With more, a pixel's own channels make vectors."""

BLOCK_BYTES = 2048
"""16 for each of a program's threads: with twice as much fp32 spills on capability 10.0."""
PROGRAMS_PER_MULTIPROCESSOR = 16


@triton.jit
def _channel(C: tl.constexpr, BLOCK: tl.constexpr):
    """Return the channel of each place of this program's tiles [BLOCK]."""
    return (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)) % C


@triton.jit
def _tile(tile, size, BLOCK: tl.constexpr):
    """Return offsets and a mask [BLOCK]."""
    offs = tl.full([], tile, tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return offs, offs < size


@triton.jit
def flat_forward_kernel(
    x_ptr, bias_ptr, y_ptr, scale, gain, slope, size, tiles, RELU: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr
):
    """Write y; bias may be None."""
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    gain, slope = scalar(gain, ACC), scalar(slope, ACC)
    scale = gain * scalar(scale, ACC)
    if bias_ptr is not None:
        shift = gain * tl.load(bias_ptr + _channel(C, BLOCK)).to(ACC)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        offs, mask = _tile(tile, size, BLOCK)
        u = scale * tl.load(x_ptr + offs, mask=mask, other=0).to(ACC)
        if bias_ptr is not None:
            u += shift
        u = activated(u, u, slope, RELU)
        if y_ptr.dtype.element_ty == tl.float16:
            # Backward reads the activation's sign off y: what is above zero stays there.
            u = tl.where((u > 0) & (u < 2.0**-24), 2.0**-24, u)
        tl.store(y_ptr + offs, u.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def flat_backward_kernel(
    dy_ptr,
    y_ptr,
    dx_ptr,
    rows_ptr,
    scale,
    gain,
    slope,
    size,
    tiles,
    RELU: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write dx and, unless None, rows [programs, C] of the bias's gradient; y is None where no value of it counts."""
    ACC: tl.constexpr = tl.float64 if dx_ptr.dtype.element_ty == tl.float64 else tl.float32
    scale, gain, slope = scalar(scale, ACC), scalar(gain, ACC), scalar(slope, ACC)
    sums = tl.zeros([BLOCK], ACC)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        offs, mask = _tile(tile, size, BLOCK)
        du = gain * tl.load(dy_ptr + offs, mask=mask, other=0).to(ACC)
        if y_ptr is not None:
            du = activated(du, tl.load(y_ptr + offs, mask=mask, other=0), slope, RELU)
        else:
            du *= slope
        tl.store(dx_ptr + offs, (scale * du).to(dx_ptr.dtype.element_ty), mask=mask)
        sums += du
    if rows_ptr is not None:
        channel, row_ptr = _channel(C, BLOCK), rows_ptr + tl.program_id(0).to(tl.int64) * C
        for c in tl.static_range(C):
            tl.store(row_ptr + c, tl.sum(tl.where(channel == c, sums, 0.0), axis=0))


@triton.jit
def flat_double_backward_kernel(
    d_dy_ptr,
    g_ptr,
    g_bias_ptr,
    y_ptr,
    scale,
    gain,
    slope,
    size,
    tiles,
    RELU: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write d_dy. g and g_bias may be None, y where no value of it counts."""
    ACC: tl.constexpr = tl.float64 if d_dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    scale, gain, slope = scalar(scale, ACC), scalar(gain, ACC), scalar(slope, ACC)
    shift = tl.zeros([BLOCK], ACC)
    if g_bias_ptr is not None:
        shift = tl.load(g_bias_ptr + _channel(C, BLOCK)).to(ACC)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        offs, mask = _tile(tile, size, BLOCK)
        h = shift
        if g_ptr is not None:
            h = scale * tl.load(g_ptr + offs, mask=mask, other=0).to(ACC) + shift
        if y_ptr is not None:
            h = activated(gain * h, tl.load(y_ptr + offs, mask=mask, other=0), slope, RELU)
        else:
            h *= gain * slope
        tl.store(d_dy_ptr + offs, h.to(d_dy_ptr.dtype.element_ty), mask=mask)


@triton.jit
def sum_rows_kernel(rows_ptr, sums_ptr, count, C, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write the sums [C] of rows [count, C]."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_R, BLOCK_C], sums_ptr.dtype.element_ty)
    for first in range(0, count, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        offs = row.to(tl.int64)[:, None] * C + c[None, :]
        total += tl.load(rows_ptr + offs, mask=(row < count)[:, None] & (c < C)[None, :], other=0)
    tl.store(sums_ptr + c, tl.sum(total, axis=0), mask=c < C)


class FlatGrid(NamedTuple):
    programs: int
    sizes: tuple[int, int]  # values, tiles
    constants: dict


def takes_flat(t: Tensor, channels_last: bool, pixel_norm: bool) -> bool:
    """Whether a tensor in this layout is taken as flat rows."""
    return channels_last and not pixel_norm and t.shape[1] <= MOST_CHANNELS


def flat_grid(t: Tensor, most: int | None = None) -> FlatGrid:
    """Return programs for the values of t: a wave of them, or at most `most`."""
    c, size = int(t.shape[1]), t.numel()
    block = BLOCK_BYTES // t.element_size()
    tiles = cdiv(size, block)
    most = min(most or tiles, limits().multiprocessors * PROGRAMS_PER_MULTIPROCESSOR)
    programs = tiles if tiles <= most else max(most // c, 1) * c
    return FlatGrid(programs, (size, tiles), dict(C=c, BLOCK=block, num_warps=4))
