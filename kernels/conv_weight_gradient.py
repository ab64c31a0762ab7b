"""The gradient of a convolution's weight, and of its bias, as an implicit GEMM over pixels."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.bias_act import activate, is_positive
from pggan_fast.kernels.conv import Gate, signs_at
from pggan_fast.kernels.conv_tiles import MULTIPROCESSORS, dot_precision, on_tensor_cores, tile_shape
from pggan_fast.kernels.tensors import accumulation_dtype, launch


@triton.jit
def weight_gradient_kernel(
    a,
    gate_a,
    b,
    gate_b,
    bank,
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
    scale: tl.float64,
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
    bank_split,
    bank_a,
    bank_b,
    bank_h,
    bank_w,
    C_A: tl.constexpr,
    C_B: tl.constexpr,
    K: tl.constexpr,
    FOLDED: tl.constexpr,
    TURNED: tl.constexpr,
    ROOM_FOR_TAPS: tl.constexpr,
    STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """See `weight_gradient`. One program: BLOCK_B rows, BLOCK_A columns of the product, every splits-th tile of pixels.

    A row is a tap and a channel of b; the row after the last is all ones: its product with a is a's sum, the bias's
    gradient. Where FOLDED a program has all taps of its channels, for the sums over neighbouring ones.
    """
    ACC: tl.constexpr = tl.float64 if a.dtype.element_ty == tl.float64 else tl.float32
    scale = tl.full([], scale, ACC)
    gate_above, gate_below = tl.full([], gate_above, ACC), tl.full([], gate_below, ACC)
    TAPS: tl.constexpr = K * K
    split = tl.program_id(0)
    block_b = tl.program_id(1)
    if FOLDED:
        CHANNELS: tl.constexpr = BLOCK_B // ROOM_FOR_TAPS
        row_of_b = tl.arange(0, BLOCK_B)
        tap = row_of_b // CHANNELS
        c_b = block_b * CHANNELS + row_of_b % CHANNELS
        tapped = (tap < TAPS) & (c_b < C_B)
        is_ones = (tap == 0) & (c_b == C_B)
    else:
        row_of_b = block_b * BLOCK_B + tl.arange(0, BLOCK_B)
        tap = row_of_b // C_B
        c_b = row_of_b % C_B
        tapped = tap < TAPS
        is_ones = row_of_b == TAPS * C_B
    tap_h = tap // K
    tap_w = tap % K
    of_tap = (tap_h - padding).to(tl.int64) * b_h + (tap_w - padding).to(tl.int64) * b_w + c_b.to(tl.int64) * b_c
    first_a = tl.program_id(2) * BLOCK_A
    c_a = first_a + tl.arange(0, BLOCK_A)
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
            if gate_a.dtype.element_ty == tl.int32:
                positive = signs_at(gate_a, (sample * A_H + row) * A_W + column, inside, first_a, C_A, BLOCK_A)
            else:
                positive = is_positive(tl.load(gate_a + offsets, mask=mask, other=0.0), gate_below)
            of_a = activate(of_a.to(ACC), positive, gate_above, gate_below).to(of_a.dtype)

        b_row = row[:, None] * STRIDE - padding + tap_h[None, :]
        b_column = column[:, None] * STRIDE - padding + tap_w[None, :]
        mask = inside[:, None] & tapped[None, :] & (b_row >= 0) & (b_row < B_H) & (b_column >= 0) & (b_column < B_W)
        pixel = sample * b_n + (row * STRIDE).to(tl.int64) * b_h + (column * STRIDE).to(tl.int64) * b_w
        offsets = pixel[:, None] + of_tap[None, :]
        of_b = tl.load(b + offsets, mask=mask, other=0.0)
        if gate_b is not None:
            tl.static_assert(gate_b.dtype.element_ty != tl.int32, "signs at every tap are not read")
            positive = is_positive(tl.load(gate_b + offsets, mask=mask, other=0.0), gate_below)
            of_b = activate(of_b.to(ACC), positive, gate_above, gate_below).to(of_b.dtype)
        of_b = tl.where(is_ones[None, :], tl.full([], 1, of_b.dtype), of_b)
        acc = tl.dot(tl.trans(of_b), of_a, acc, input_precision=PRECISION, out_dtype=ACC)

    is_a = c_a < C_A
    if sums is not None and block_b == tl.num_programs(1) - 1:
        of_sums = tl.sum(tl.where(is_ones[:, None], acc, 0.0), axis=0)
        tl.store(sums + split.to(tl.int64) * C_A + c_a, of_sums, mask=is_a)
    made = bank + split.to(tl.int64) * bank_split
    if FOLDED:
        # The adjoint of `fold.fold`: element h, w of the weight went into four taps, turned or not.
        taps = tl.reshape(acc * scale, [ROOM_FOR_TAPS, CHANNELS, BLOCK_A])
        t = tl.arange(0, ROOM_FOR_TAPS)
        c_b = block_b * CHANNELS + tl.arange(0, CHANNELS)
        channels = made + (c_b[:, None] * bank_b + c_a[None, :] * bank_a)
        for h in tl.static_range(K - 1):
            for w in tl.static_range(K - 1):
                into = (t // K >= h) & (t // K <= h + 1) & (t % K >= w) & (t % K <= w + 1)
                value = tl.sum(tl.where(into[:, None, None], taps, 0.0), axis=0)
                at = channels + (K - 2 - h if TURNED else h) * bank_h + (K - 2 - w if TURNED else w) * bank_w
                tl.store(at, value.to(bank.dtype.element_ty), mask=(c_b < C_B)[:, None] & is_a[None, :])
    else:
        row = tap_h * bank_h + tap_w * bank_w + c_b * bank_b
        made += row[:, None] + c_a[None, :] * bank_a
        tl.store(made, (acc * scale).to(bank.dtype.element_ty), mask=tapped[:, None] & is_a[None, :])


@triton.jit
def _sum(parts, offsets, mask, splits, stride, BLOCK: tl.constexpr):
    """Of `splits` blocks of numbers, `stride` apart."""
    total = tl.zeros(offsets.shape, parts.dtype.element_ty)
    for first in range(0, splits, BLOCK):
        split = (first + tl.arange(0, BLOCK))[:, None, None]
        at = split.to(tl.int64) * stride + offsets[None, :, :]
        total += tl.sum(tl.load(parts + at, mask=(split < splits) & mask[None, :, :], other=0), axis=0)
    return total


@triton.jit
def add_parts_kernel(
    parts,
    parts_of_sums,
    weight,
    sums,
    splits,
    scale: tl.float64,
    w_a,
    w_b,
    w_h,
    w_w,
    C_A: tl.constexpr,
    C_B: tl.constexpr,
    K: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """See `weight_gradient`. One program: BLOCK_A x BLOCK_B channels of one tap."""
    scale = tl.full([], scale, parts.dtype.element_ty)
    tap = tl.program_id(0)
    c_b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None]
    c_a = tl.program_id(2) * BLOCK_A + tl.arange(0, BLOCK_A)[None, :]
    mask = (c_b < C_B) & (c_a < C_A)
    part = (tap * C_B + c_b).to(tl.int64) * C_A + c_a
    value = scale * _sum(parts, part, mask, splits, K * K * C_B * C_A, BLOCK_SPLITS)
    at = tap // K * w_h + tap % K * w_w + c_b.to(tl.int64) * w_b + c_a.to(tl.int64) * w_a
    tl.store(weight + at, value.to(weight.dtype.element_ty), mask=mask)
    if sums is not None and tl.program_id(0) + tl.program_id(1) == 0:
        is_a = c_a < C_A
        tl.store(sums + c_a, _sum(parts_of_sums, c_a, is_a, splits, C_A, BLOCK_SPLITS), mask=is_a)


class WeightTile(NamedTuple):
    """A program's pixels (samples x rows x columns), its block of the gradient, and how it is compiled."""

    n: int
    h: int
    w: int
    block_a: int
    block_b: int
    warps: int
    stages: int


def default_weight_tile(dtype: torch.dtype, h: int, w: int, c_a: int, rows: int, together: int = 1) -> WeightTile:
    """For a of c_a channels in images h x w, and so many rows of taps and channels of b, some of them `together`."""
    fast = on_tensor_cores(dtype)
    pixels = 32 if fast and dtype.itemsize == 2 else 16
    block_a = max(16, min(64 if fast else 32, triton.next_power_of_2(c_a)))
    block_b = max(16, min(128 if fast else 64, triton.next_power_of_2(rows)), together)
    # What few channels accumulate leaves registers that the many rows' addresses fill: twice the threads share those.
    warps = 8 if together > 1 and block_a == 16 else 4
    return WeightTile(*tile_shape(pixels, h, w), block_a, block_b, warps, stages=3)


def weight_gradient(
    dz: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    transposed: bool = False,
    fold: float | None = None,
    gate: Gate | None = None,
    scale: float = 1.0,
    sums_wanted: bool = False,
    tile: WeightTile | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of a convolution's weight, and dz's sum over all but channels: one launch, another to add its parts.

    dw[o, i, p, q] = scale * sum over samples, rows h and columns w of
        dz[n, o, h, w] * x[n, i, stride h + p - padding, stride w + q - padding]

    and of a transposed convolution, whose weight is [C_in, C_out, k, k], with dz and x exchanged.

    dz: [N, C_out, H, W]. x: [N, C_in, H', W'], dz's dtype. weight: gives the gradient's shape, dtype and layout; it has
    no other part. fold: the convolution took `fold.fold(weight, fold, transposed)`. gate, if given (one without r, and
    of a transposed one with y itself): dz is taken back through it as it is read. Returns dw and, if `sums_wanted` (not
    of a transposed one), the sums [C_out] in fp32 (fp64 for fp64). Deterministic.
    """
    a, b, gate_a, gate_b = dz, x, None if gate is None else gate.y, None
    if transposed:
        a, b, gate_a, gate_b = x, dz, None, gate_a
    (n, c_a, h, w), c_b, k = a.shape, b.shape[1], weight.shape[-1]
    wide = accumulation_dtype(a)
    dw = torch.empty_like(weight)
    sums = torch.empty(c_a, dtype=wide, device=a.device) if sums_wanted else None
    if not a.numel() or not b.numel():
        return dw.zero_(), a.sum((0, 2, 3), dtype=wide) if sums_wanted else None
    folded = fold is not None
    taps = (k + folded) ** 2
    room = triton.next_power_of_2(taps)
    rows = room * (c_b + sums_wanted) if folded else taps * c_b + sums_wanted
    tile = tile or default_weight_tile(a.dtype, h, w, c_a, rows, room if folded else 1)
    tiles_h, tiles_w = triton.cdiv(h, tile.h), triton.cdiv(w, tile.w)
    tiles = triton.cdiv(n, tile.n) * tiles_h * tiles_w
    blocks = triton.cdiv(rows, tile.block_b), triton.cdiv(c_a, tile.block_a)
    # Four programs per multiprocessor hide each other's latency; more only make more parts to add.
    splits = max(1, min(tiles, 4 * MULTIPROCESSORS // (blocks[0] * blocks[1])))
    w_a, w_b = dw.stride()[:2][:: -1 if transposed and folded else 1]
    scale = scale * fold if folded else scale
    if splits == 1:
        made, of_sums = dw, sums
        strides = 0, w_a, w_b, *dw.stride()[2:]
    else:
        made = torch.empty(splits, k, k, c_b, c_a, dtype=wide, device=a.device)
        of_sums = torch.empty(splits, c_a, dtype=wide, device=a.device) if sums_wanted else None
        strides = made.stride(0), 1, c_a, *made.stride()[1:3]
    launch(
        weight_gradient_kernel,
        (splits, *blocks),
        a,
        gate_a,
        b,
        gate_b,
        made,
        of_sums,
        n,
        h,
        w,
        *b.shape[2:],
        tiles_h,
        tiles_w,
        tiles,
        splits,
        padding,
        scale if made is dw else 1.0,
        *((1.0, 1.0) if gate is None else (gate.above, gate.below)),
        *a.stride(),
        *b.stride(),
        *strides,
        C_A=c_a,
        C_B=c_b,
        K=k + folded,
        FOLDED=folded,
        TURNED=transposed,
        ROOM_FOR_TAPS=room,
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
    if made is dw:
        return dw, sums
    block_a, block_b = min(32, triton.next_power_of_2(c_a)), min(8, triton.next_power_of_2(c_b))
    launch(
        add_parts_kernel,
        (k * k, triton.cdiv(c_b, block_b), triton.cdiv(c_a, block_a)),
        made,
        of_sums,
        dw,
        sums,
        splits,
        scale,
        w_a,
        w_b,
        *dw.stride()[2:],
        C_A=c_a,
        C_B=c_b,
        K=k,
        # int: a number that torch.compile traces becomes a constant here.
        BLOCK_SPLITS=min(triton.next_power_of_2(int(splits)), 4096 // (block_a * block_b)),
        BLOCK_A=block_a,
        BLOCK_B=block_b,
        num_warps=4,
    )
    return dw, sums
