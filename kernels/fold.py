"""Weights folded with a 2x rescaling, and the adjoint; pggan_fast/ops/fold.py says what for.

A program takes BLOCK filters, neighbours in memory, and reads each of their values once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.tensors import check_floating, launch

BLOCK = 256


@triton.jit
def sum_shifts_kernel(
    source,
    made,
    scale: tl.float64,
    filters,
    B,
    s_a,
    s_b,
    s_h,
    s_w,
    m_a,
    m_b,
    m_h,
    m_w,
    FROM: tl.constexpr,
    TO: tl.constexpr,
    TURN_SOURCE: tl.constexpr,
    TURN_MADE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """made[h, w] = scale * the sum of source[h + i, w + j] over i and j in {0, 1}, or {-1, 0} where made is larger.

    Filters FROM x FROM and TO x TO; one that is to be turned runs backwards. s_a, m_a ...: their strides.
    """
    FIRST: tl.constexpr = 0 if TO < FROM else -1
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a, b = index // B, index % B
    values = ()
    for t in tl.static_range(FROM * FROM):
        place = FROM * FROM - 1 - t if TURN_SOURCE else t
        at = a * s_a + b * s_b + place // FROM * s_h + place % FROM * s_w
        values = values + (tl.load(source + at, mask=index < filters, other=0).to(ACC),)
    for h in tl.static_range(TO):
        for w in tl.static_range(TO):
            total = tl.zeros([BLOCK], ACC)
            for i in tl.static_range(FIRST, FIRST + 2):
                for j in tl.static_range(FIRST, FIRST + 2):
                    if h + i >= 0 and h + i < FROM and w + j >= 0 and w + j < FROM:
                        total += values[(h + i) * FROM + w + j]
            at = a * m_a + b * m_b + (TO - 1 - h if TURN_MADE else h) * m_h + (TO - 1 - w if TURN_MADE else w) * m_w
            tl.store(made + at, (total * tl.full([], scale, ACC)).to(made.dtype.element_ty), mask=index < filters)


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
    made = torch.empty([*shape, k + larger, k + larger], dtype=dtype, device=source.device, memory_format=layout)
    if made.numel():
        m_a, m_b, *m_pixel = made.stride()
        m_a, m_b = (m_b, m_a) if transposed else (m_a, m_b)
        s_a, s_b, *s_pixel = source.stride()
        if m_a < m_b:  # filters that are neighbours in what is written
            a, b, m_a, m_b, s_a, s_b = b, a, m_b, m_a, s_b, s_a
        launch(
            sum_shifts_kernel,
            (triton.cdiv(a * b, BLOCK),),
            source,
            made,
            scale,
            a * b,
            b,
            *(s_a, s_b, *s_pixel),
            *(m_a, m_b, *m_pixel),
            FROM=k,
            TO=k + larger,
            TURN_SOURCE=transposed and larger < 0,
            TURN_MADE=transposed and larger > 0,
            ACC=tl.float64 if torch.float64 in (source.dtype, dtype) else tl.float32,
            BLOCK=BLOCK,
        )
    return made
