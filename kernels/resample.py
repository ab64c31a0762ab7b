"""upsample2x and downsample2x: kernels between a low resolution and twice that; the fades share their tiles.

A program takes BLOCK_R rows of BLOCK_K values of the low resolution and the four high values that cover each: every
value is read and written once. Along a row of memory, values are pixels (contiguous) or a pixel's channels
(channels_last; of few channels see kernels/flat_rows.py). Arithmetic is in fp32 (fp64 for fp64).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.flat_rows import downsample_rows_kernel, rows_grid, takes_rows, upsample_rows_kernel
from pggan_fast.kernels.tensors import (
    arrange,
    cdiv,
    check_floating,
    is_channels_last,
    launch,
    next_power_of_2,
    scalar,
    scalar_args,
)


@triton.jit
def low_tile(R, K, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr):
    """Return a program's tile: rows, values, offsets at the low resolution, and a mask."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    return row, k, row[:, None] * K + k[None, :], (row < R)[:, None] & (k < K)[None, :]


@triton.jit
def high_rows(row, K, h, w, extra_h, extra_w, CHANNELS_LAST: tl.constexpr):
    """Return for each row the offset of its first value at the high resolution, and from one high row to the next.

    extra_h, extra_w: 1 where the high resolution is odd.
    """
    if CHANNELS_LAST:
        line, x = row // w, row % w
        step = (2 * w + extra_w) * K
        return (2 * line + line // h * extra_h) * step + 2 * x * K, step
    else:
        step = 2 * w + extra_w
        return (2 * row + row // h * extra_h) * step, step


@triton.jit
def load_quads(
    high_ptr, start, step, k, K, rows, ACC: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Return the four values over each low one, as they are numbered in a plane: (0, 0), (0, 1), (1, 0), (1, 1)."""
    if CHANNELS_LAST:
        offs, mask = start[:, None] + k[None, :], rows[:, None] & (k < K)[None, :]
        a = tl.load(high_ptr + offs, mask=mask, other=0).to(ACC)
        b = tl.load(high_ptr + offs + K, mask=mask, other=0).to(ACC)
        c = tl.load(high_ptr + offs + step, mask=mask, other=0).to(ACC)
        d = tl.load(high_ptr + offs + step + K, mask=mask, other=0).to(ACC)
        return a, b, c, d
    else:
        wide = tl.program_id(1) * 2 * BLOCK_K + tl.arange(0, 2 * BLOCK_K)
        offs, mask = start[:, None] + wide[None, :], rows[:, None] & (wide < 2 * K)[None, :]
        first = tl.load(high_ptr + offs, mask=mask, other=0)
        second = tl.load(high_ptr + offs + step, mask=mask, other=0)
        a, b = tl.split(tl.reshape(first, [first.shape[0], BLOCK_K, 2]))
        c, d = tl.split(tl.reshape(second, [second.shape[0], BLOCK_K, 2]))
        return a.to(ACC), b.to(ACC), c.to(ACC), d.to(ACC)


@triton.jit
def store_quads(high_ptr, start, step, k, K, rows, a, b, c, d, CHANNELS_LAST: tl.constexpr, BLOCK_K: tl.constexpr):
    """Write what `load_quads` reads."""
    T: tl.constexpr = high_ptr.dtype.element_ty
    if CHANNELS_LAST:
        offs, mask = start[:, None] + k[None, :], rows[:, None] & (k < K)[None, :]
        tl.store(high_ptr + offs, a.to(T), mask=mask)
        tl.store(high_ptr + offs + K, b.to(T), mask=mask)
        tl.store(high_ptr + offs + step, c.to(T), mask=mask)
        tl.store(high_ptr + offs + step + K, d.to(T), mask=mask)
    else:
        wide = tl.program_id(1) * 2 * BLOCK_K + tl.arange(0, 2 * BLOCK_K)
        offs, mask = start[:, None] + wide[None, :], rows[:, None] & (wide < 2 * K)[None, :]
        tl.store(high_ptr + offs, tl.interleave(a.to(T), b.to(T)), mask=mask)
        tl.store(high_ptr + offs + step, tl.interleave(c.to(T), d.to(T)), mask=mask)


@triton.jit
def upsample_kernel(
    low_ptr,
    high_ptr,
    factor,
    R,
    K,
    h,
    w,
    extra_h,
    extra_w,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write high = factor * low's nearest neighbour, but for an extra row and column."""
    ACC: tl.constexpr = tl.float64 if high_ptr.dtype.element_ty == tl.float64 else tl.float32
    row, k, offs, mask = low_tile(R, K, BLOCK_R, BLOCK_K)
    start, step = high_rows(row, K, h, w, extra_h, extra_w, CHANNELS_LAST)
    v = tl.load(low_ptr + offs, mask=mask, other=0).to(ACC) * scalar(factor, ACC)
    store_quads(high_ptr, start, step, k, K, row < R, v, v, v, v, CHANNELS_LAST, BLOCK_K)


@triton.jit
def downsample_kernel(
    high_ptr,
    low_ptr,
    factor,
    R,
    K,
    h,
    w,
    extra_h,
    extra_w,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write low = factor * sums over 2x2 blocks of high."""
    ACC: tl.constexpr = tl.float64 if low_ptr.dtype.element_ty == tl.float64 else tl.float32
    row, k, offs, mask = low_tile(R, K, BLOCK_R, BLOCK_K)
    start, step = high_rows(row, K, h, w, extra_h, extra_w, CHANNELS_LAST)
    a, b, c, d = load_quads(high_ptr, start, step, k, K, row < R, ACC, CHANNELS_LAST, BLOCK_K)
    total = (a + b + c + d) * scalar(factor, ACC)
    tl.store(low_ptr + offs, total.to(low_ptr.dtype.element_ty), mask=mask)


class Grid(NamedTuple):
    programs: tuple[int, int]
    sizes: tuple  # R, K, h, w, extra_h, extra_w
    constants: dict


def grid_of(high: Tensor, channels_last: bool) -> Grid:
    """Programs for a tensor of the high resolution: 1024 low values each, as long in memory as can be."""
    n, c, height, width = high.shape
    h, w = height // 2, width // 2
    rows, values = (n * h * w, c) if channels_last else (n * c * h, w)
    block_k = min(next_power_of_2(values), 256)
    block_r = 1024 // block_k
    programs = (cdiv(rows, block_r), cdiv(values, block_k))
    return Grid(
        programs,
        (rows, values, h, w, height % 2, width % 2),
        dict(CHANNELS_LAST=channels_last, BLOCK_R=block_r, BLOCK_K=block_k),
    )


def empty_like_layout(x: Tensor, shape: list, dtype: torch.dtype | None = None) -> Tensor:
    """An empty tensor of another shape, contiguous or channels_last as x is."""
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=memory_format)


def upsample(x: Tensor, scale: float, extra_h: int, extra_w: int) -> Tensor:
    """scale * upsample2x(x), then extra rows and columns (0 or 1) of zeros."""
    check_floating("upsample2x", x)
    n, c, h, w = x.shape
    y = empty_like_layout(x, [n, c, 2 * h + extra_h, 2 * w + extra_w])
    if extra_h:
        y[:, :, 2 * h :].zero_()
    if extra_w:
        y[..., 2 * w :].zero_()
    if x.numel():
        channels_last = is_channels_last(x)
        flat = takes_rows(y)
        grid = rows_grid(y) if flat else grid_of(y, channels_last)
        launch(
            upsample_rows_kernel if flat else upsample_kernel,
            grid.programs,
            arrange(x, channels_last),
            y,
            *scalar_args(x.dtype, scale),
            *grid.sizes,
            **grid.constants,
        )
    return y


def downsample(x: Tensor, scale: float) -> Tensor:
    """scale * sums over 2x2 blocks; an odd last row or column is dropped."""
    check_floating("downsample2x", x)
    n, c, h, w = x.shape
    y = empty_like_layout(x, [n, c, h // 2, w // 2])
    if y.numel():
        channels_last = is_channels_last(x)
        flat = takes_rows(x)
        grid = rows_grid(x) if flat else grid_of(x, channels_last)
        launch(
            downsample_rows_kernel if flat else downsample_kernel,
            grid.programs,
            arrange(x, channels_last),
            y,
            *scalar_args(x.dtype, scale),
            *grid.sizes,
            **grid.constants,
        )
    return y
