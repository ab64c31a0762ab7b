"""fade_in, fade_reals and gradients: the blends of a transition, on the tiles of resample.py or flat_rows.py."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.flat_rows import (
    fade_in_backward_rows_kernel,
    fade_in_rows_kernel,
    fade_reals_rows_kernel,
    fade_weight,
    lerp,
    rows_grid,
    takes_rows,
)
from pggan_fast.kernels.resample import empty_like_layout, grid_of, high_rows, load_quads, low_tile, store_quads
from pggan_fast.kernels.tensors import (
    Output,
    arrange,
    cdiv,
    check_floating,
    is_channels_last,
    launch,
    scalar_args,
)


@triton.jit
def _load(high_ptr, R, K, h, w, extra_h, extra_w, ACC, CHANNELS_LAST: tl.constexpr, BLOCK_R, BLOCK_K: tl.constexpr):
    """Return a program's four high values over each low one, and the low ones' offsets and mask."""
    row, k, offs, mask = low_tile(R, K, BLOCK_R, BLOCK_K)
    start, step = high_rows(row, K, h, w, extra_h, extra_w, CHANNELS_LAST)
    a, b, c, d = load_quads(high_ptr, start, step, k, K, row < R, ACC, CHANNELS_LAST, BLOCK_K)
    return a, b, c, d, offs, mask


@triton.jit
def _store(
    high_ptr, R, K, h, w, extra_h, extra_w, a, b, c, d, CHANNELS_LAST: tl.constexpr, BLOCK_R, BLOCK_K: tl.constexpr
):
    """Write what `_load` reads."""
    row, k, _, _ = low_tile(R, K, BLOCK_R, BLOCK_K)
    start, step = high_rows(row, K, h, w, extra_h, extra_w, CHANNELS_LAST)
    store_quads(high_ptr, start, step, k, K, row < R, a, b, c, d, CHANNELS_LAST, BLOCK_K)


@triton.jit
def fade_in_kernel(
    low_ptr,
    high_ptr,
    out_ptr,
    alpha_ptr,
    constant,
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
    """Write out = lerp(low's nearest neighbour, high, alpha)."""
    ACC: tl.constexpr = tl.float64 if out_ptr.dtype.element_ty == tl.float64 else tl.float32
    a, b, c, d, offs, mask = _load(high_ptr, R, K, h, w, extra_h, extra_w, ACC, CHANNELS_LAST, BLOCK_R, BLOCK_K)
    weight = fade_weight(alpha_ptr, constant, ACC)
    v = tl.load(low_ptr + offs, mask=mask, other=0).to(ACC)
    a, b, c, d = lerp(v, a, weight), lerp(v, b, weight), lerp(v, c, weight), lerp(v, d, weight)
    _store(out_ptr, R, K, h, w, extra_h, extra_w, a, b, c, d, CHANNELS_LAST, BLOCK_R, BLOCK_K)


@triton.jit
def fade_in_backward_kernel(
    dy_ptr,
    d_low_ptr,
    d_high_ptr,
    alpha_ptr,
    constant,
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
    """Write d_low = (1 - alpha) * sums over 2x2 blocks of dy, d_high = alpha * dy."""
    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    a, b, c, d, offs, mask = _load(dy_ptr, R, K, h, w, extra_h, extra_w, ACC, CHANNELS_LAST, BLOCK_R, BLOCK_K)
    weight = fade_weight(alpha_ptr, constant, ACC)
    # Scaled first: the sum of what 1 - weight leaves nothing of may be no number.
    rest = 1 - weight
    total = rest * a + rest * b + rest * c + rest * d
    tl.store(d_low_ptr + offs, total.to(d_low_ptr.dtype.element_ty), mask=mask)
    a, b, c, d = a * weight, b * weight, c * weight, d * weight
    _store(d_high_ptr, R, K, h, w, extra_h, extra_w, a, b, c, d, CHANNELS_LAST, BLOCK_R, BLOCK_K)


@triton.jit
def fade_reals_kernel(
    images_ptr,
    out_ptr,
    alpha_ptr,
    constant,
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
    """Write out = lerp(2x2 means of images, images, alpha); bytes become -1..1."""
    ACC: tl.constexpr = tl.float64 if out_ptr.dtype.element_ty == tl.float64 else tl.float32
    a, b, c, d, _, _ = _load(images_ptr, R, K, h, w, extra_h, extra_w, ACC, CHANNELS_LAST, BLOCK_R, BLOCK_K)
    weight = fade_weight(alpha_ptr, constant, ACC)
    if images_ptr.dtype.element_ty == tl.uint8:
        a, b = a * (2.0 / 255) - 1, b * (2.0 / 255) - 1
        c, d = c * (2.0 / 255) - 1, d * (2.0 / 255) - 1
    v = (a + b + c + d) * 0.25
    a, b, c, d = lerp(v, a, weight), lerp(v, b, weight), lerp(v, c, weight), lerp(v, d, weight)
    _store(out_ptr, R, K, h, w, extra_h, extra_w, a, b, c, d, CHANNELS_LAST, BLOCK_R, BLOCK_K)


@triton.jit
def blend_backward_kernel(dy_ptr, d_old_ptr, d_new_ptr, alpha_ptr, constant, size, BLOCK: tl.constexpr):
    """Write d_old = (1 - alpha) * dy, d_new = alpha * dy; a tensor alpha is rounded to dy's dtype, as forward was."""
    T: tl.constexpr = dy_ptr.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    weight = fade_weight(alpha_ptr, constant, ACC)
    if alpha_ptr is not None:
        weight = weight.to(T).to(ACC)
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dy = tl.load(dy_ptr + offs, mask=offs < size, other=0).to(ACC)
    tl.store(d_old_ptr + offs, ((1 - weight) * dy).to(T), mask=offs < size)
    tl.store(d_new_ptr + offs, (weight * dy).to(T), mask=offs < size)


def _check(op: str, condition: bool, *tensors: Tensor) -> None:
    if not condition:
        raise ValueError(f"{op}: tensors of shapes {', '.join(str(list(t.shape)) for t in tensors)} do not match")


def _launch(
    kernel, rows_kernel, tensors: tuple, high: Tensor, alpha: Tensor | None, constant: float, dtype: torch.dtype
) -> None:
    """Launch one of two kernels on `tensors`, laid out as `high` is, for the tiles of `high`."""
    if takes_rows(high):
        # From bytes to fp32, twice as many values would spill a register on capability 10.0.
        widened = high.dtype == torch.uint8 and dtype == torch.float32
        kernel, grid = rows_kernel, rows_grid(high, 512 if widened else 1024)
    else:
        grid = grid_of(high, is_channels_last(high))
    launch(kernel, grid.programs, *tensors, alpha, *scalar_args(dtype, constant), *grid.sizes, **grid.constants)


def fade_in(low: Tensor, high: Tensor, alpha: Tensor | None, constant: float) -> Tensor:
    """Return lerp(upsample2x(low), high, alpha or constant)."""
    check_floating("fade_in", low, high)
    n, c, h, w = low.shape
    _check("fade_in", high.shape == (n, c, 2 * h, 2 * w) and high.dtype == low.dtype, low, high)
    y = empty_like_layout(high, high.shape)
    if y.numel():
        channels_last = is_channels_last(high)
        tensors = (arrange(low, channels_last), arrange(high, channels_last), y)
        _launch(fade_in_kernel, fade_in_rows_kernel, tensors, high, alpha, constant, y.dtype)
    return y


def fade_in_backward(dy: Tensor, alpha: Tensor | None, constant: float) -> tuple[Tensor, Tensor]:
    """Return ((1 - alpha) * 2x2 sums of dy, alpha * dy)."""
    check_floating("fade_in_backward", dy)
    n, c, h, w = dy.shape
    _check("fade_in_backward", h % 2 == 0 and w % 2 == 0, dy)
    d_low, d_high = empty_like_layout(dy, [n, c, h // 2, w // 2]), empty_like_layout(dy, dy.shape)
    if dy.numel():
        tensors = (arrange(dy, is_channels_last(dy)), d_low, d_high)
        _launch(fade_in_backward_kernel, fade_in_backward_rows_kernel, tensors, dy, alpha, constant, dy.dtype)
    return d_low, d_high


def blend_backward(dy: Tensor, alpha: Tensor | None, constant: float) -> tuple[Tensor, Tensor]:
    """Return ((1 - alpha) * dy, alpha * dy), laid out as dy is."""
    check_floating("blend_backward", dy)
    d_old, d_new = Output(torch.empty_like(dy)), Output(torch.empty_like(dy))
    if dy.numel():
        dense, block = arrange(dy, d_old.channels_last), 4096
        args = (dense, d_old.buffer, d_new.buffer, alpha, *scalar_args(dy.dtype, constant), dy.numel())
        launch(blend_backward_kernel, (cdiv(dy.numel(), block),), *args, BLOCK=block, num_warps=4)
    return d_old.finish(), d_new.finish()


def fade_reals(images: Tensor, alpha: Tensor | None, constant: float, dtype: torch.dtype) -> Tensor:
    """Return lerp(upsample2x(downsample2x(images)), images, alpha or constant) in dtype; uint8 becomes -1..1."""
    n, c, h, w = images.shape
    _check("fade_reals", h % 2 == 0 and w % 2 == 0, images)
    y = empty_like_layout(images, images.shape, dtype)
    check_floating("fade_reals", y, *([images] if images.dtype != torch.uint8 else []))
    if y.numel():
        tensors = (arrange(images, is_channels_last(images)), y)
        _launch(fade_reals_kernel, fade_reals_rows_kernel, tensors, images, alpha, constant, dtype)
    return y
