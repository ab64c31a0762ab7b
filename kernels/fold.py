"""Weights folded with a 2x rescaling, and the adjoint; pggan_fast/ops/weights.py says what for.

A program takes BLOCK numbers of what it writes, in the order of memory, and reads the up to four that make each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.tensors import check_floating, launch

BLOCK = 1024


@triton.jit
def _place(B, K: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr):
    """Of a dense [A, B, K, K]: the numbers of a program's elements in memory, and their four indices."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if LAST:
        return index, index // (K * K * B), index % B, index // (B * K) % K, index // B % K
    return index, index // (K * K * B), index // (K * K) % B, index // K % K, index % K


@triton.jit
def fold_kernel(
    weight,
    folded,
    scale: tl.float64,
    size,
    B,
    w_a,
    w_b,
    w_h,
    w_w,
    K: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """folded [A, B, K, K]: the sum of four shifts of the weight [.., .., K - 1, K - 1], turned where TRANSPOSED."""
    index, a, b, h, w = _place(B, K, LAST, BLOCK)
    if TRANSPOSED:
        a, b, h, w = b, a, K - 1 - h, K - 1 - w
    total = tl.zeros([BLOCK], ACC)
    for shift in tl.static_range(4):
        row, column = h - shift // 2, w - shift % 2
        mask = (index < size) & (row >= 0) & (row < K - 1) & (column >= 0) & (column < K - 1)
        total += tl.load(weight + a * w_a + b * w_b + row * w_h + column * w_w, mask=mask, other=0).to(ACC)
    tl.store(folded + index, (total * tl.full([], scale, ACC)).to(folded.dtype.element_ty), mask=index < size)


@triton.jit
def unfold_kernel(
    folded,
    weight,
    scale: tl.float64,
    size,
    B,
    f_a,
    f_b,
    f_h,
    f_w,
    K: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """weight [A, B, K, K]: the sum of four windows of folded [.., .., K + 1, K + 1], turned where TRANSPOSED."""
    index, a, b, h, w = _place(B, K, LAST, BLOCK)
    total = tl.zeros([BLOCK], ACC)
    for shift in tl.static_range(4):
        row, column = h + shift // 2, w + shift % 2
        if TRANSPOSED:
            at = b * f_a + a * f_b + (K - row) * f_h + (K - column) * f_w
        else:
            at = a * f_a + b * f_b + row * f_h + column * f_w
        total += tl.load(folded + at, mask=index < size, other=0).to(ACC)
    tl.store(weight + index, (total * tl.full([], scale, ACC)).to(weight.dtype.element_ty), mask=index < size)


def fold(weight: Tensor, scale: float, transposed: bool, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """[A, B, k, k] -> [A, B, k + 1, k + 1], or [B, A, ...] where transposed; dense, in dtype."""
    return _run(fold_kernel, weight, 1, scale, transposed, dtype, channels_last)


def unfold(folded: Tensor, scale: float, transposed: bool, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """The adjoint: [A, B, k, k] -> [A, B, k - 1, k - 1], or [B, A, ...] where transposed; dense, in dtype."""
    return _run(unfold_kernel, folded, -1, scale, transposed, dtype, channels_last)


def _run(kernel, source: Tensor, larger: int, scale, transposed, dtype, channels_last) -> Tensor:
    check_floating("fold_weight", source)
    a, b, k, _ = source.shape
    a, b = (b, a) if transposed else (a, b)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    k = k + larger
    made = torch.empty([a, b, k, k], dtype=dtype, device=source.device, memory_format=layout)
    if made.numel():
        wide = torch.float64 in (source.dtype, dtype)
        launch(
            kernel,
            (triton.cdiv(made.numel(), BLOCK),),
            source,
            made,
            scale,
            made.numel(),
            b,
            *source.stride(),
            K=k,
            TRANSPOSED=transposed,
            LAST=channels_last,
            ACC=tl.float64 if wide else tl.float32,
            BLOCK=BLOCK,
        )
    return made
