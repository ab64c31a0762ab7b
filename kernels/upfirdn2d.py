"""upfirdn2d: upsample by zeros, pad, filter, downsample.

A program computes a tile [BLOCK_R, BLOCK_K] of outputs: rows by columns of planes (contiguous), or pixels by channels
(channels_last). An output has its own taps, every `up`-th of the filter; their inputs are read once from memory and
again from cache. Arithmetic is in fp32 (fp64 for fp64).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.tensors import (
    accumulation_dtype,
    arrange,
    cdiv,
    check_floating,
    is_channels_last,
    launch,
    next_power_of_2,
    scalar,
    scalar_args,
)

SHORT = 8
"""A longer filter [taps] takes two passes, along x and along y."""


@triton.jit
def _first_tap(o, up, down, pad, shift):
    """Return, for outputs o, the first input that a tap multiplies, and the index of that tap.

    shift: a multiple of `up` that makes every position positive, as the division rounds towards zero.
    """
    start = o * down - pad + shift
    first = (start + up - 1) // up
    return first - shift // up, first * up - start


@triton.jit
def _weight(f_ptr, kx, ky, fw, fh, mask, VECTOR: tl.constexpr, FLIP: tl.constexpr, ACC: tl.constexpr):
    """Coefficients of taps (kx, ky) of f [fh, fw], or of f [fw] along both axes (VECTOR)."""
    x = kx if FLIP else fw - 1 - kx
    y = ky if FLIP else fh - 1 - ky
    if VECTOR:
        return tl.load(f_ptr + x, mask=mask, other=0).to(ACC) * tl.load(f_ptr + y, mask=mask, other=0).to(ACC)
    else:
        return tl.load(f_ptr + y * fw + x, mask=mask, other=0).to(ACC)


@triton.jit
def upfirdn2d_kernel(
    x_ptr,
    f_ptr,
    y_ptr,
    gain,
    R,
    K,
    h,
    w,
    oh,
    ow,
    fh,
    fw,
    upx: tl.constexpr,
    upy: tl.constexpr,
    downx: tl.constexpr,
    downy: tl.constexpr,
    x0,
    y0,
    shift_x,
    shift_y,
    TAPS_X: tl.constexpr,
    TAPS_Y: tl.constexpr,
    VECTOR: tl.constexpr,
    FLIP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Write y[o] = gain * sum over taps of f[tap] * x[first input of o + tap]; R x K outputs.

    TAPS_X, TAPS_Y: the most taps that an output has along an axis.
    """
    ACC: tl.constexpr = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = (row < R)[:, None] & (k < K)[None, :]
    line = row // ow if CHANNELS_LAST else row
    ox = (row % ow)[:, None] if CHANNELS_LAST else k[None, :]
    oy = (line % oh)[:, None]
    plane = (line // oh)[:, None]
    first_x, skipped_x = _first_tap(ox, upx, downx, x0, shift_x)
    first_y, skipped_y = _first_tap(oy, upy, downy, y0, shift_y)
    total = tl.zeros([BLOCK_R, BLOCK_K], ACC)
    for i in range(TAPS_Y):
        iy, ky = first_y + i, skipped_y + i * upy
        in_y = (ky < fh) & (iy >= 0) & (iy < h)
        for j in tl.static_range(TAPS_X):
            ix, kx = first_x + j, skipped_x + j * upx
            inside = in_y & (kx < fw) & (ix >= 0) & (ix < w)
            pixel = (plane * h + iy) * w + ix
            offs = pixel * K + k[None, :] if CHANNELS_LAST else pixel
            values = tl.load(x_ptr + offs, mask=inside & mask, other=0).to(ACC)
            total += values * _weight(f_ptr, kx, ky, fw, fh, inside, VECTOR, FLIP, ACC)
    total *= scalar(gain, ACC)
    tl.store(y_ptr + row[:, None] * K + k[None, :], total.to(y_ptr.dtype.element_ty), mask=mask)


def upfirdn2d(
    x: Tensor,
    f: Tensor,
    upx: int,
    upy: int,
    downx: int,
    downy: int,
    x0: int,
    x1: int,
    y0: int,
    y1: int,
    flip_filter: bool,
    gain: float,
) -> Tensor:
    """Return [N, C, OH, OW] in x's dtype and layout."""
    check_floating("upfirdn2d", x, f)
    taps = f.shape[0]
    if f.ndim == 2 or taps <= SHORT:
        return _one_pass(x, f, (upx, upy), (downx, downy), (x0, x1, y0, y1), flip_filter, gain, x.dtype)
    # The pass that shrinks the image the most, or lets it grow the least, comes first.
    passes = [(f[None, :], (upx, 1), (downx, 1), (x0, x1, 0, 0)), (f[:, None], (1, upy), (1, downy), (0, 0, y0, y1))]
    first, second = passes if downx >= upx else passes[::-1]
    between = _one_pass(x, *first, flip_filter, gain, accumulation_dtype(x))
    return _one_pass(between, *second, flip_filter, 1.0, x.dtype)


def _one_pass(
    x: Tensor, f: Tensor, up: tuple, down: tuple, padding: tuple, flip: bool, gain: float, dtype: torch.dtype
) -> Tensor:
    (upx, upy), (downx, downy), (x0, x1, y0, y1) = up, down, padding
    fh, fw = f.shape[0], f.shape[-1]
    n, c, h, w = x.shape
    oh, ow = (h * upy + y0 + y1 - fh) // downy + 1, (w * upx + x0 + x1 - fw) // downx + 1
    channels_last = is_channels_last(x)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.empty((n, c, oh, ow), dtype=dtype, device=x.device, memory_format=memory_format)
    if y.numel() == 0:
        return y
    if x.numel() == 0:
        return y.zero_()
    rows, k = (n * oh * ow, c) if channels_last else (n * c * oh, ow)
    block_k = min(next_power_of_2(k), 128)
    block_r = max(1, 1024 // block_k)
    grid = (cdiv(rows, block_r), cdiv(k, block_k))
    launch(
        upfirdn2d_kernel,
        grid,
        arrange(x, channels_last),
        f.contiguous(),
        y,
        *scalar_args(y.dtype, gain),
        rows,
        k,
        h,
        w,
        oh,
        ow,
        fh,
        fw,
        upx,
        upy,
        downx,
        downy,
        x0,
        y0,
        _shift(x0, upx),
        _shift(y0, upy),
        TAPS_X=-(-fw // upx),
        TAPS_Y=-(-fh // upy),
        VECTOR=f.ndim == 1,
        FLIP=flip,
        CHANNELS_LAST=channels_last,
        BLOCK_R=block_r,
        BLOCK_K=block_k,
    )
    return y


def _shift(pad: int, up: int) -> int:
    """The smallest multiple of `up` from pad on, 0 at least."""
    return -(-max(pad, 0) // up) * up
