"""fade_in, fade_reals and gradients: the blends of a transition, on the tiles of kernels/resample.py."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.resample import empty_like_layout, grid_of, high_rows, load_quads, low_tile, store_quads
from pggan_fast.kernels.tensors import arrange, check_floating, is_channels_last, launch


@triton.jit
def _weight(alpha, number, ACC: tl.constexpr):
    """The weight of the new path: one value of memory, or a number where alpha is None."""
    if alpha is not None:
        return tl.load(alpha).to(ACC)
    else:
        return tl.full([], number, ACC)


@triton.jit
def _lerp(old, new, weight):
    """torch.lerp: steps from the nearer of the two images.

    A weight of 0 or 1 gives one of them to the bit, and a large one does not swallow the digits of the other.
    """
    return tl.where(tl.abs(weight) < 0.5, old + (new - old) * weight, new + (old - new) * (1 - weight))


@triton.jit
def fade_in_kernel(
    low,
    high,
    out,
    alpha,
    number: tl.float64,
    R,
    K,
    h,
    w,
    extra_h,
    extra_w,
    LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = lerp(low's nearest neighbour, high, alpha)."""
    ACC: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    row, k, at, mask = low_tile(R, K, BLOCK_R, BLOCK_K)
    start, step = high_rows(row, K, h, w, extra_h, extra_w, LAST)
    weight = _weight(alpha, number, ACC)
    v = tl.load(low + at, mask=mask, other=0).to(ACC)
    a, b, c, d = load_quads(high, start, step, k, K, row < R, ACC, LAST, BLOCK_K)
    a, b = _lerp(v, a, weight), _lerp(v, b, weight)
    c, d = _lerp(v, c, weight), _lerp(v, d, weight)
    store_quads(out, start, step, k, K, row < R, a, b, c, d, LAST, BLOCK_K)


@triton.jit
def fade_in_backward_kernel(
    dy,
    d_low,
    d_high,
    alpha,
    number: tl.float64,
    R,
    K,
    h,
    w,
    extra_h,
    extra_w,
    LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """d_low = (1 - alpha) * sums over 2x2 blocks of dy, d_high = alpha * dy."""
    ACC: tl.constexpr = tl.float64 if dy.dtype.element_ty == tl.float64 else tl.float32
    row, k, at, mask = low_tile(R, K, BLOCK_R, BLOCK_K)
    start, step = high_rows(row, K, h, w, extra_h, extra_w, LAST)
    weight = _weight(alpha, number, ACC)
    a, b, c, d = load_quads(dy, start, step, k, K, row < R, ACC, LAST, BLOCK_K)
    # Scaled first: the sum of what 1 - weight leaves nothing of may be no number.
    rest = 1 - weight
    total = rest * a + rest * b + rest * c + rest * d
    tl.store(d_low + at, total.to(d_low.dtype.element_ty), mask=mask)
    a, b, c, d = a * weight, b * weight, c * weight, d * weight
    store_quads(d_high, start, step, k, K, row < R, a, b, c, d, LAST, BLOCK_K)


@triton.jit
def fade_reals_kernel(
    images,
    out,
    alpha,
    number: tl.float64,
    R,
    K,
    h,
    w,
    extra_h,
    extra_w,
    LAST: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out = lerp(2x2 means of images, images, alpha); bytes become -1..1."""
    ACC: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    row, k, at, mask = low_tile(R, K, BLOCK_R, BLOCK_K)
    start, step = high_rows(row, K, h, w, extra_h, extra_w, LAST)
    weight = _weight(alpha, number, ACC)
    a, b, c, d = load_quads(images, start, step, k, K, row < R, ACC, LAST, BLOCK_K)
    if images.dtype.element_ty == tl.uint8:
        a, b = a * (2.0 / 255) - 1, b * (2.0 / 255) - 1
        c, d = c * (2.0 / 255) - 1, d * (2.0 / 255) - 1
    v = (a + b + c + d) * 0.25
    a, b = _lerp(v, a, weight), _lerp(v, b, weight)
    c, d = _lerp(v, c, weight), _lerp(v, d, weight)
    store_quads(out, start, step, k, K, row < R, a, b, c, d, LAST, BLOCK_K)


def _check(op: str, condition: bool, *tensors: Tensor) -> None:
    if not condition:
        raise ValueError(f"{op}: tensors of shapes {', '.join(str(list(t.shape)) for t in tensors)} do not match")


def fade_in(low: Tensor, high: Tensor, alpha: Tensor | None, number: float) -> Tensor:
    """lerp(upsample2x(low), high, alpha or number)."""
    check_floating("fade_in", low, high)
    n, c, h, w = low.shape
    _check("fade_in", high.shape == (n, c, 2 * h, 2 * w) and high.dtype == low.dtype, low, high)
    y = empty_like_layout(high, high.shape)
    if y.numel():
        last = is_channels_last(high)
        grid = grid_of(high, last)
        tensors = (arrange(low, last), arrange(high, last), y)
        launch(fade_in_kernel, grid.programs, *tensors, alpha, number, *grid.sizes, **grid.constants)
    return y


def fade_in_backward(dy: Tensor, alpha: Tensor | None, number: float) -> tuple[Tensor, Tensor]:
    """((1 - alpha) * 2x2 sums of dy, alpha * dy)."""
    check_floating("fade_in_backward", dy)
    n, c, h, w = dy.shape
    _check("fade_in_backward", h % 2 == 0 and w % 2 == 0, dy)
    d_low, d_high = empty_like_layout(dy, [n, c, h // 2, w // 2]), empty_like_layout(dy, dy.shape)
    if dy.numel():
        last = is_channels_last(dy)
        grid = grid_of(dy, last)
        tensors = (arrange(dy, last), d_low, d_high)
        launch(fade_in_backward_kernel, grid.programs, *tensors, alpha, number, *grid.sizes, **grid.constants)
    return d_low, d_high


def fade_reals(images: Tensor, alpha: Tensor | None, number: float, dtype: torch.dtype) -> Tensor:
    """lerp(upsample2x(downsample2x(images)), images, alpha or number) in dtype; uint8 becomes -1..1."""
    n, c, h, w = images.shape
    _check("fade_reals", h % 2 == 0 and w % 2 == 0, images)
    y = empty_like_layout(images, images.shape, dtype)
    check_floating("fade_reals", y, *([images] if images.dtype != torch.uint8 else []))
    if y.numel():
        last = is_channels_last(images)
        grid = grid_of(images, last)
        launch(fade_reals_kernel, grid.programs, arrange(images, last), y, alpha, number, *grid.sizes, **grid.constants)
    return y
