"""Upsampling, 2x2 means and fades of channels_last images with few channels, RGB above all, as flat rows of values.

A row of w pixels with C channels is w C neighbours in memory, of which a thread loads and stores vectors whatever C is.
Value j of a high row lies over value j // (2 C) * C + j % C of the low row; what is read at such an index is in a line
of the cache that neighbours read too. Arithmetic is in fp32 (fp64 for fp64).
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.tensors import cdiv, is_channels_last, next_power_of_2, scalar

MOST_CHANNELS = 7
"""With more, a pixel's own channels make vectors."""


@triton.jit
def high_tile(R, J, h, extra_h, step, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_J: tl.constexpr):
    """Return a program's values of the upper of two high rows: indices in the row [BLOCK_J], offsets, offsets of the
    low values under them, and a mask [BLOCK_R, BLOCK_J]. The lower row is `step` further on."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    j = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    offs = ((2 * row + row // h * extra_h) * step)[:, None] + j[None, :]
    low = (row * (J // 2))[:, None] + (j // (2 * C) * C + j % C)[None, :]
    return j, offs, low, (row < R)[:, None] & (j < J)[None, :]


@triton.jit
def load_sums(high_ptr, factor, R, J, h, extra_h, step, ACC, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_I):
    """Return factor times each of the four values over a low one, added up; offsets of those; and their mask."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    mask = (row < R)[:, None] & (i < J // 2)[None, :]
    first = ((2 * row + row // h * extra_h) * step)[:, None] + (i // C * (2 * C) + i % C)[None, :]
    a = tl.load(high_ptr + first, mask=mask, other=0).to(ACC)
    b = tl.load(high_ptr + first + C, mask=mask, other=0).to(ACC)
    c = tl.load(high_ptr + first + step, mask=mask, other=0).to(ACC)
    d = tl.load(high_ptr + first + step + C, mask=mask, other=0).to(ACC)
    # Scaled first: the sum of what a factor of 0 leaves nothing of may be no number.
    return factor * a + factor * b + factor * c + factor * d, (row * (J // 2))[:, None] + i[None, :], mask


@triton.jit
def fade_weight(alpha_ptr, constant, ACC: tl.constexpr):
    """Return the weight of the new path: one value of memory, or a constant where alpha is None."""
    if alpha_ptr is not None:
        return tl.load(alpha_ptr).to(ACC)
    else:
        return scalar(constant, ACC)


@triton.jit
def lerp(old, new, weight):
    """torch.lerp: steps from the nearer of the two images.

    A weight of 0 or 1 gives one of them to the bit, and a large one does not swallow the digits of the other.
    """
    return tl.where(tl.abs(weight) < 0.5, old + (new - old) * weight, new + (old - new) * (1 - weight))


@triton.jit
def upsample_rows_kernel(
    low_ptr, high_ptr, factor, R, J, h, extra_h, step, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_J: tl.constexpr
):
    """Write high = factor * low's nearest neighbour, but for an extra row and column."""
    T: tl.constexpr = high_ptr.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if high_ptr.dtype.element_ty == tl.float64 else tl.float32
    _, offs, low, mask = high_tile(R, J, h, extra_h, step, C, BLOCK_R, BLOCK_J)
    v = (tl.load(low_ptr + low, mask=mask, other=0).to(ACC) * scalar(factor, ACC)).to(T)
    tl.store(high_ptr + offs, v, mask=mask)
    tl.store(high_ptr + offs + step, v, mask=mask)


@triton.jit
def downsample_rows_kernel(
    high_ptr, low_ptr, factor, R, J, h, extra_h, step, C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_J: tl.constexpr
):
    """Write low = factor * sums over 2x2 blocks of high."""
    ACC: tl.constexpr = tl.float64 if low_ptr.dtype.element_ty == tl.float64 else tl.float32
    total, offs, mask = load_sums(high_ptr, 1.0, R, J, h, extra_h, step, ACC, C, BLOCK_R, BLOCK_J)
    tl.store(low_ptr + offs, (total * scalar(factor, ACC)).to(low_ptr.dtype.element_ty), mask=mask)


@triton.jit
def fade_in_rows_kernel(
    low_ptr,
    high_ptr,
    out_ptr,
    alpha_ptr,
    constant,
    R,
    J,
    h,
    extra_h,
    step,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Write out = lerp(low's nearest neighbour, high, alpha)."""
    T: tl.constexpr = out_ptr.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if out_ptr.dtype.element_ty == tl.float64 else tl.float32
    _, offs, low, mask = high_tile(R, J, h, extra_h, step, C, BLOCK_R, BLOCK_J)
    weight = fade_weight(alpha_ptr, constant, ACC)
    old = tl.load(low_ptr + low, mask=mask, other=0).to(ACC)
    upper = tl.load(high_ptr + offs, mask=mask, other=0).to(ACC)
    lower = tl.load(high_ptr + offs + step, mask=mask, other=0).to(ACC)
    tl.store(out_ptr + offs, lerp(old, upper, weight).to(T), mask=mask)
    tl.store(out_ptr + offs + step, lerp(old, lower, weight).to(T), mask=mask)


@triton.jit
def fade_in_backward_rows_kernel(
    dy_ptr,
    d_low_ptr,
    d_high_ptr,
    alpha_ptr,
    constant,
    R,
    J,
    h,
    extra_h,
    step,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Write d_low = (1 - alpha) * sums over 2x2 blocks of dy, d_high = alpha * dy."""
    T: tl.constexpr = dy_ptr.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    weight = fade_weight(alpha_ptr, constant, ACC)
    _, offs, _, mask = high_tile(R, J, h, extra_h, step, C, BLOCK_R, BLOCK_J)
    upper = tl.load(dy_ptr + offs, mask=mask, other=0).to(ACC)
    lower = tl.load(dy_ptr + offs + step, mask=mask, other=0).to(ACC)
    tl.store(d_high_ptr + offs, (upper * weight).to(T), mask=mask)
    tl.store(d_high_ptr + offs + step, (lower * weight).to(T), mask=mask)
    total, offs, mask = load_sums(dy_ptr, 1 - weight, R, J, h, extra_h, step, ACC, C, BLOCK_R, BLOCK_J // 2)
    tl.store(d_low_ptr + offs, total.to(T), mask=mask)


@triton.jit
def _pixels(ptr, offs, mask, ACC: tl.constexpr):
    """Load values of images; bytes become -1..1."""
    v = tl.load(ptr + offs, mask=mask, other=0).to(ACC)
    return v * (2.0 / 255) - 1 if ptr.dtype.element_ty == tl.uint8 else v


@triton.jit
def fade_reals_rows_kernel(
    images_ptr,
    out_ptr,
    alpha_ptr,
    constant,
    R,
    J,
    h,
    extra_h,
    step,
    C: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Write out = lerp(2x2 means of images, images, alpha); bytes become -1..1."""
    T: tl.constexpr = out_ptr.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if out_ptr.dtype.element_ty == tl.float64 else tl.float32
    j, offs, _, mask = high_tile(R, J, h, extra_h, step, C, BLOCK_R, BLOCK_J)
    weight = fade_weight(alpha_ptr, constant, ACC)
    # The other pixel of a block is one to the right or one to the left.
    is_left = (j // C % 2 == 0)[None, :]
    other = offs + tl.where(is_left, C, -C)
    a, b = _pixels(images_ptr, offs, mask, ACC), _pixels(images_ptr, other, mask, ACC)
    c, d = _pixels(images_ptr, offs + step, mask, ACC), _pixels(images_ptr, other + step, mask, ACC)
    # Added up from left to right, wherever this pixel is: both have the same mean, to the bit.
    mean = (a + b + tl.where(is_left, c, d) + tl.where(is_left, d, c)) * 0.25
    tl.store(out_ptr + offs, lerp(mean, a, weight).to(T), mask=mask)
    tl.store(out_ptr + offs + step, lerp(mean, c, weight).to(T), mask=mask)


class RowsGrid(NamedTuple):
    programs: tuple[int, int]
    sizes: tuple  # R, J, h, extra_h, step
    constants: dict


def takes_rows(high: Tensor) -> bool:
    """Whether an image of the high resolution is taken as flat rows."""
    return high.shape[1] <= MOST_CHANNELS and is_channels_last(high)


def rows_grid(high: Tensor, values: int = 1024) -> RowsGrid:
    """Return programs of `values` neighbours of two high rows each, or of as many rows as have so many."""
    n, c, height, width = high.shape
    h, w, c = height // 2, width // 2, int(c)
    rows, along = n * h, 2 * w * c
    block_j = min(next_power_of_2(along), values)
    block_r = values // block_j
    return RowsGrid(
        (cdiv(rows, block_r), cdiv(along, block_j)),
        (rows, along, h, height % 2, width * c),
        dict(C=c, BLOCK_R=block_r, BLOCK_J=block_j),
    )
