"""What a convolution's gradients need beside `conv.convolve`: the weight's gradient, and pixel norm's per pixel."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.conv import Gate
from pggan_fast.kernels.conv_tiles import MULTIPROCESSORS, dot_precision, tile_shape
from pggan_fast.kernels.tensors import accumulation_dtype, launch


@triton.jit
def weight_gradient_kernel(
    a,
    gate_a,
    b,
    gate_b,
    sums,
    N,
    A_H,
    A_W,
    B_H,
    B_W,
    tiles_h,
    tiles_w,
    tiles,
    splits,
    padding,
    gate_above: tl.float64,
    gate_below: tl.float64,
    a_n,
    a_c,
    a_h,
    a_w,
    b_n,
    b_c,
    b_h,
    b_w,
    C_A: tl.constexpr,
    C_B: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """See `weight_gradient`. One program: BLOCK_B of K * K * C_B + 1 rows, BLOCK_A columns, every splits-th tile."""
    ACC: tl.constexpr = tl.float64 if a.dtype.element_ty == tl.float64 else tl.float32
    gate_above, gate_below = tl.full([], gate_above, ACC), tl.full([], gate_below, ACC)
    TAPPED: tl.constexpr = K * K * C_B
    split = tl.program_id(0)
    taps_and_channels = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    c_b = taps_and_channels % C_B
    tap_h = taps_and_channels // C_B // K
    tap_w = taps_and_channels // C_B % K
    tapped = taps_and_channels < TAPPED
    of_tap = (tap_h - padding).to(tl.int64) * b_h + (tap_w - padding).to(tl.int64) * b_w + c_b.to(tl.int64) * b_c
    c_a = tl.program_id(2) * BLOCK_A + tl.arange(0, BLOCK_A)
    m = tl.arange(0, TILE_N * TILE_H * TILE_W)

    acc = tl.zeros([BLOCK_B, BLOCK_A], dtype=ACC)
    for tile in range(split, tiles, splits):
        column = tile % tiles_w * TILE_W + m % TILE_W
        row = tile // tiles_w % tiles_h * TILE_H + m // TILE_W % TILE_H
        sample = tile // (tiles_w * tiles_h) * TILE_N + m // (TILE_W * TILE_H)
        inside = (sample < N) & (row < A_H) & (column < A_W)
        sample = sample.to(tl.int64)

        pixel = sample * a_n + row.to(tl.int64) * a_h + column.to(tl.int64) * a_w
        offsets = pixel[:, None] + c_a[None, :].to(tl.int64) * a_c
        mask = inside[:, None] & (c_a < C_A)[None, :]
        of_a = tl.load(a + offsets, mask=mask, other=0.0)
        if gate_a is not None:
            positive = tl.load(gate_a + offsets, mask=mask, other=0.0) > 0
            of_a = (of_a.to(ACC) * tl.where(positive, gate_above, gate_below)).to(of_a.dtype)

        b_row = row[:, None] * STRIDE - padding + tap_h[None, :]
        b_column = column[:, None] * STRIDE - padding + tap_w[None, :]
        mask = inside[:, None] & tapped[None, :] & (b_row >= 0) & (b_row < B_H) & (b_column >= 0) & (b_column < B_W)
        pixel = sample * b_n + (row * STRIDE).to(tl.int64) * b_h + (column * STRIDE).to(tl.int64) * b_w
        offsets = pixel[:, None] + of_tap[None, :]
        of_b = tl.load(b + offsets, mask=mask, other=0.0)
        if gate_b is not None:
            positive = tl.load(gate_b + offsets, mask=mask, other=0.0) > 0
            of_b = (of_b.to(ACC) * tl.where(positive, gate_above, gate_below)).to(of_b.dtype)
        # The row after the last tap is all ones: its product with a is a's sum, the bias's gradient.
        of_b = tl.where(taps_and_channels[None, :] == TAPPED, tl.full([], 1, of_b.dtype), of_b)
        acc = tl.dot(tl.trans(of_b), of_a, acc, input_precision=PRECISION, out_dtype=ACC)

    rows = split.to(tl.int64) * (TAPPED + 1) + taps_and_channels
    mask = (taps_and_channels <= TAPPED)[:, None] & (c_a < C_A)[None, :]
    tl.store(sums + rows[:, None] * C_A + c_a[None, :], acc, mask=mask)


class WeightTile(NamedTuple):
    """A program's pixels (samples x rows x columns), its block of the gradient, and how it is compiled."""

    n: int
    h: int
    w: int
    block_a: int
    block_b: int
    warps: int
    stages: int


def default_weight_tile(dtype: torch.dtype, h: int, w: int, c_a: int, rows: int) -> WeightTile:
    """For a of c_a channels in images h x w, and so many rows of taps and channels of b."""
    pixels = 32 if dtype.itemsize == 2 else 16
    block_a = max(16, min(64, triton.next_power_of_2(c_a)))
    block_b = max(16, min(64 if dtype == torch.float64 else 128, triton.next_power_of_2(rows)))
    return WeightTile(*tile_shape(pixels, h, w), block_a, block_b, warps=4, stages=3)


def weight_gradient(
    a: Tensor,
    b: Tensor,
    k: int,
    *,
    stride: int = 1,
    padding: int = 0,
    gate: Gate | None = None,
    is_b_gated: bool = False,
    tile: WeightTile | None = None,
) -> tuple[Tensor, Tensor]:
    """The gradient of a convolution's weight, and a's sum over all but channels, in one launch and a sum of its parts.

    bank[o, i, p, q] = sum over samples, rows h and columns w of a[n, o, h, w] * b[n, i, stride h + p - padding, ...]

    a is the output's gradient and b the input; of a transposed convolution, the input and the output's gradient.
    a: [N, C_A, H, W]. b: [N, C_B, H', W'], a's dtype. gate, if given (one without r): a, or b if `is_b_gated`, is
    taken back through it as it is read. Returns the bank [C_A, C_B, k, k] and a's sums [C_A], in fp32 (fp64 for fp64).
    Deterministic.
    """
    (n, c_a, h, w), c_b = a.shape, b.shape[1]
    wide = accumulation_dtype(a)
    rows = k * k * c_b + 1
    if not a.numel() or not b.numel():
        return a.new_zeros(c_a, c_b, k, k, dtype=wide), a.sum((0, 2, 3), dtype=wide)
    tile = tile or default_weight_tile(a.dtype, h, w, c_a, rows)
    tiles_h, tiles_w = triton.cdiv(h, tile.h), triton.cdiv(w, tile.w)
    tiles = triton.cdiv(n, tile.n) * tiles_h * tiles_w
    blocks = triton.cdiv(rows, tile.block_b), triton.cdiv(c_a, tile.block_a)
    # Four programs per multiprocessor hide each other's latency; more only make more parts to sum.
    splits = max(1, min(tiles, 4 * MULTIPROCESSORS // (blocks[0] * blocks[1])))
    sums = torch.empty(splits, rows, c_a, dtype=wide, device=a.device)
    launch(
        weight_gradient_kernel,
        (splits, *blocks),
        a,
        None if gate is None or is_b_gated else gate.y,
        b,
        gate.y if gate is not None and is_b_gated else None,
        sums,
        n,
        h,
        w,
        *b.shape[2:],
        tiles_h,
        tiles_w,
        tiles,
        splits,
        padding,
        *((1.0, 1.0) if gate is None else (gate.above, gate.below)),
        *a.stride(),
        *b.stride(),
        C_A=c_a,
        C_B=c_b,
        K=k,
        STRIDE=stride,
        PRECISION=dot_precision(),
        TILE_N=tile.n,
        TILE_H=tile.h,
        TILE_W=tile.w,
        BLOCK_A=tile.block_a,
        BLOCK_B=tile.block_b,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    total = sums.sum(0)
    return total[:-1].view(k, k, c_b, c_a).permute(3, 2, 0, 1), total[-1]


@triton.jit
def pixel_norm_gradient_kernel(
    dy,
    y,
    r,
    dr,
    s,
    N,
    H,
    W,
    tiles_h,
    tiles_w,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    C: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """See `pixel_norm_gradient`. One program: TILE_N x TILE_H x TILE_W pixels."""
    ACC: tl.constexpr = s.dtype.element_ty
    pid = tl.program_id(0)
    m = tl.arange(0, TILE_N * TILE_H * TILE_W)
    column = pid % tiles_w * TILE_W + m % TILE_W
    row = pid // tiles_w % tiles_h * TILE_H + m // TILE_W % TILE_H
    sample = pid // (tiles_w * tiles_h) * TILE_N + m // (TILE_W * TILE_H)
    inside = (sample < N) & (row < H) & (column < W)
    sample = sample.to(tl.int64)
    pixel = sample * stride_n + row.to(tl.int64) * stride_h + column.to(tl.int64) * stride_w
    products = tl.zeros([TILE_N * TILE_H * TILE_W], dtype=ACC)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        offsets = pixel[:, None] + c[None, :].to(tl.int64) * stride_c
        mask = inside[:, None] & (c < C)[None, :]
        of_dy = tl.load(dy + offsets, mask=mask, other=0.0).to(ACC)
        products += tl.sum(of_dy * tl.load(y + offsets, mask=mask, other=0.0).to(ACC), axis=1)
    pixel = (sample * H + row) * W + column
    factor = tl.load(r + pixel, mask=inside, other=0.0)
    along = factor * products / C
    if dr is not None:
        along += factor * factor * tl.load(dr + pixel, mask=inside, other=0.0) / C
    tl.store(s + pixel, along, mask=inside)


def pixel_norm_gradient(dy: Tensor, dr: Tensor | None, y: Tensor, r: Tensor) -> Tensor:
    """s = r mean(dy y) + r^2 dr / C, the means over channels: the factor of y in pixel norm's gradient r dy - s y.

    dy, y: [N, C, H, W], of the same strides. dr, r: [N, 1, H, W], contiguous, fp32 (fp64 for fp64). Returns s, like r.
    """
    n, c, h, w = y.shape
    s = torch.empty_like(r)
    if not y.numel():
        return s
    block_c = min(128, triton.next_power_of_2(c))
    tile_n, tile_h, tile_w = tile_shape(max(1, 4096 // block_c), h, w)
    tiles_h, tiles_w = triton.cdiv(h, tile_h), triton.cdiv(w, tile_w)
    launch(
        pixel_norm_gradient_kernel,
        (triton.cdiv(n, tile_n) * tiles_h * tiles_w,),
        dy,
        y,
        r,
        dr,
        s,
        n,
        h,
        w,
        tiles_h,
        tiles_w,
        *y.stride(),
        C=c,
        TILE_N=tile_n,
        TILE_H=tile_h,
        TILE_W=tile_w,
        BLOCK_C=block_c,
        num_warps=4,
    )
    return s
