"""Weights folded with a 2x rescaling, and the adjoint; pggan_fast/ops/fold.py says what for.

A program takes BLOCK filters, neighbours in memory, and reads each of their values once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.tensors import cdiv, check_floating, launch, scalar, scalar_args

BLOCK = 256


@triton.jit
def sum_shifts_kernel(
    source_ptr,
    out_ptr,
    scale,
    filters,
    B,
    source_a,
    source_b,
    source_h,
    source_w,
    out_a,
    out_b,
    out_h,
    out_w,
    FROM: tl.constexpr,
    TO: tl.constexpr,
    FLIP_SOURCE: tl.constexpr,
    FLIP_OUT: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write out[h, w] = scale * sum of source[h + i, w + j] over i and j in {0, 1}, or in {-1, 0} where out is larger.

    Filters are [a, b, FROM, FROM] and [a, b, TO, TO], with strides source_a ... and out_a ...; a flipped one runs
    backwards.
    """
    FIRST: tl.constexpr = 0 if TO < FROM else -1
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a, b = index // B, index % B
    values = ()
    for t in tl.static_range(FROM * FROM):
        place = FROM * FROM - 1 - t if FLIP_SOURCE else t
        offs = a * source_a + b * source_b + place // FROM * source_h + place % FROM * source_w
        values = values + (tl.load(source_ptr + offs, mask=index < filters, other=0).to(ACC),)
    for h in tl.static_range(TO):
        for w in tl.static_range(TO):
            total = tl.zeros([BLOCK], ACC)
            for i in tl.static_range(FIRST, FIRST + 2):
                for j in tl.static_range(FIRST, FIRST + 2):
                    if h + i >= 0 and h + i < FROM and w + j >= 0 and w + j < FROM:
                        total += values[(h + i) * FROM + w + j]
            offs = (
                a * out_a
                + b * out_b
                + (TO - 1 - h if FLIP_OUT else h) * out_h
                + (TO - 1 - w if FLIP_OUT else w) * out_w
            )
            tl.store(out_ptr + offs, (total * scalar(scale, ACC)).to(out_ptr.dtype.element_ty), mask=index < filters)


def fold(weight: Tensor, scale: float, transposed: bool, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """[A, B, k, k] -> [A, B, k + 1, k + 1], or [B, A, ...] where transposed; dense, in dtype."""
    return _run(weight, 1, scale, transposed, dtype, channels_last)


def unfold(folded: Tensor, scale: float, transposed: bool, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """The adjoint: [A, B, k, k] -> [A, B, k - 1, k - 1], or [B, A, ...] where transposed; dense, in dtype."""
    return _run(folded, -1, scale, transposed, dtype, channels_last)


def _run(source: Tensor, larger: int, scale, transposed, dtype, channels_last) -> Tensor:
    check_floating("fold_weight", source)
    a, b, k, _ = source.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = [b, a] if transposed else [a, b]
    out = torch.empty([*shape, k + larger, k + larger], dtype=dtype, device=source.device, memory_format=layout)
    wide = torch.float64 in (source.dtype, dtype)
    if out.numel():
        out_a, out_b, *out_pixel = out.stride()
        out_a, out_b = (out_b, out_a) if transposed else (out_a, out_b)
        source_a, source_b, *source_pixel = source.stride()
        if out_a < out_b:  # filters that are neighbours in what is written
            a, b, out_a, out_b, source_a, source_b = b, a, out_b, out_a, source_b, source_a
        launch(
            sum_shifts_kernel,
            (cdiv(a * b, BLOCK),),
            source,
            out,
            *scalar_args(torch.float64 if wide else torch.float32, scale),
            a * b,
            b,
            *(source_a, source_b, *source_pixel),
            *(out_a, out_b, *out_pixel),
            FROM=k,
            TO=k + larger,
            FLIP_SOURCE=transposed and larger < 0,
            FLIP_OUT=transposed and larger > 0,
            ACC=tl.float64 if wide else tl.float32,
            BLOCK=BLOCK,
        )
    return out
