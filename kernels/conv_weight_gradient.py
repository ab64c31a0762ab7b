"""The gradient of a convolution's weight, as an implicit GEMM over pixels."""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime import JITFunction
from triton.runtime.errors import OutOfResources

from pggan_fast.kernels.conv_table import forget_measurement
from pggan_fast.kernels.conv_tiles import dot_precision, limits, on_hip
from pggan_fast.kernels.conv_weight_tiles import (
    PROGRAMS_PER_MULTIPROCESSOR,
    WeightProblem,
    WeightTile,
    choose_weight_tile,
    splits_of,
)
from pggan_fast.kernels.tensors import (
    accumulation_dtype,
    cdiv,
    compiled,
    launch,
    next_power_of_2,
    scalar,
    scalar_args,
)


@triton.jit
def weight_gradient_kernel(
    a_ptr,
    b_ptr,
    out_ptr,
    scale,
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
    a_n,
    a_c,
    a_h,
    a_w,
    b_n,
    b_c,
    b_h,
    b_w,
    out_split,
    out_a,
    out_b,
    out_h,
    out_w,
    C_A: tl.constexpr,
    C_B: tl.constexpr,
    K: tl.constexpr,
    FOLDED: tl.constexpr,
    FLIPPED: tl.constexpr,
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

    A row is a tap and a channel of b, a column a channel of a. With M pixels, a's tile is [M, BLOCK_A], b's
    [M, BLOCK_B]. Where FOLDED a program has all taps of its channels, for the sums over neighbouring ones.
    """
    ACC: tl.constexpr = tl.float64 if a_ptr.dtype.element_ty == tl.float64 else tl.float32
    scale = scalar(scale, ACC)
    TAPS: tl.constexpr = K * K
    split = tl.program_id(0)
    block_b = tl.program_id(1)
    if FOLDED:
        CHANNELS: tl.constexpr = BLOCK_B // ROOM_FOR_TAPS
        row_of_b = tl.arange(0, BLOCK_B)
        tap = row_of_b // CHANNELS
        c_b = block_b * CHANNELS + row_of_b % CHANNELS
        exists_b = (tap < TAPS) & (c_b < C_B)
    else:
        row_of_b = block_b * BLOCK_B + tl.arange(0, BLOCK_B)
        tap = row_of_b // C_B
        c_b = row_of_b % C_B
        exists_b = tap < TAPS
    tap_h = tap // K
    tap_w = tap % K
    tap_offs = (tap_h - padding).to(tl.int64) * b_h + (tap_w - padding).to(tl.int64) * b_w + c_b.to(tl.int64) * b_c
    c_a = tl.program_id(2) * BLOCK_A + tl.arange(0, BLOCK_A)
    exists_a = c_a < C_A
    m = tl.arange(0, TILE_N * TILE_H * TILE_W)

    # The place of the program's tile, and the way to its next one, `splits` tiles on: no division in the loop.
    tile_w, tile_h, tile_n = split % tiles_w, split // tiles_w % tiles_h, split // (tiles_w * tiles_h)
    step_w, step_h, step_n = splits % tiles_w, splits // tiles_w % tiles_h, splits // (tiles_w * tiles_h)
    acc = tl.zeros([BLOCK_B, BLOCK_A], dtype=ACC)
    for _ in range(split, tiles, splits):
        column = tile_w * TILE_W + m % TILE_W
        row = tile_h * TILE_H + m // TILE_W % TILE_H
        sample = tile_n * TILE_N + m // (TILE_W * TILE_H)
        inside = (sample < N) & (row < A_H) & (column < A_W)
        sample = sample.to(tl.int64)

        pixel = sample * a_n + row.to(tl.int64) * a_h + column.to(tl.int64) * a_w
        offs = pixel[:, None] + c_a[None, :].to(tl.int64) * a_c
        a = tl.load(a_ptr + offs, mask=inside[:, None] & exists_a[None, :], other=0.0)

        b_row = row[:, None] * STRIDE - padding + tap_h[None, :]
        b_column = column[:, None] * STRIDE - padding + tap_w[None, :]
        mask = inside[:, None] & exists_b[None, :] & (b_row >= 0) & (b_row < B_H) & (b_column >= 0) & (b_column < B_W)
        pixel = sample * b_n + (row * STRIDE).to(tl.int64) * b_h + (column * STRIDE).to(tl.int64) * b_w
        b = tl.load(b_ptr + pixel[:, None] + tap_offs[None, :], mask=mask, other=0.0)
        acc = tl.dot(tl.trans(b), a, acc, input_precision=PRECISION, out_dtype=ACC)

        tile_w += step_w
        carry = (tile_w >= tiles_w).to(tl.int32)
        tile_w -= carry * tiles_w
        tile_h += step_h + carry
        carry = (tile_h >= tiles_h).to(tl.int32)
        tile_h -= carry * tiles_h
        tile_n += step_n + carry

    out_ptr += split.to(tl.int64) * out_split
    if FOLDED:
        # The adjoint of `fold.fold`: element h, w of the weight went into four taps, flipped or not.
        taps = tl.reshape(acc * scale, [ROOM_FOR_TAPS, CHANNELS, BLOCK_A])
        t = tl.arange(0, ROOM_FOR_TAPS)
        c_b = block_b * CHANNELS + tl.arange(0, CHANNELS)
        channels = c_b[:, None] * out_b + c_a[None, :] * out_a
        mask = (c_b < C_B)[:, None] & exists_a[None, :]
        for h in tl.static_range(K - 1):
            for w in tl.static_range(K - 1):
                into = (t // K >= h) & (t // K <= h + 1) & (t % K >= w) & (t % K <= w + 1)
                value = tl.sum(tl.where(into[:, None, None], taps, 0.0), axis=0)
                offs = channels + (K - 2 - h if FLIPPED else h) * out_h + (K - 2 - w if FLIPPED else w) * out_w
                tl.store(out_ptr + offs, value.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        offs = (tap_h * out_h + tap_w * out_w + c_b * out_b)[:, None] + c_a[None, :] * out_a
        mask = exists_b[:, None] & exists_a[None, :]
        tl.store(out_ptr + offs, (acc * scale).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _sum(parts_ptr, offs, mask, splits, stride, BLOCK: tl.constexpr):
    """Return the sum of `splits` blocks of numbers [BLOCK_B, BLOCK_A], one every `stride` of memory."""
    total = tl.zeros(offs.shape, parts_ptr.dtype.element_ty)
    for first in range(0, splits, BLOCK):
        split = (first + tl.arange(0, BLOCK))[:, None, None]
        part = split.to(tl.int64) * stride + offs[None, :, :]
        total += tl.sum(tl.load(parts_ptr + part, mask=(split < splits) & mask[None, :, :], other=0), axis=0)
    return total


@triton.jit
def add_parts_kernel(
    parts_ptr,
    dw_ptr,
    scale,
    splits,
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
    scale = scalar(scale, parts_ptr.dtype.element_ty)
    tap = tl.program_id(0)
    c_b = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None]
    c_a = tl.program_id(2) * BLOCK_A + tl.arange(0, BLOCK_A)[None, :]
    mask = (c_b < C_B) & (c_a < C_A)
    part = (tap * C_B + c_b).to(tl.int64) * C_A + c_a
    value = scale * _sum(parts_ptr, part, mask, splits, K * K * C_B * C_A, BLOCK_SPLITS)
    offs = tap // K * w_h + tap % K * w_w + c_b.to(tl.int64) * w_b + c_a.to(tl.int64) * w_a
    tl.store(dw_ptr + offs, value.to(dw_ptr.dtype.element_ty), mask=mask)


class Plan(NamedTuple):
    """All of the launches that follows from the problem alone."""

    grid: tuple[int, int, int]
    tiles: tuple[int, int, int]  # rows and columns of tiles in an image, and all tiles
    constants: dict
    parts_grid: tuple[int, int, int]
    parts_constants: dict


def _make_plan(problem: WeightProblem, tile: WeightTile | None, precision: str, device: int, resident: int) -> Plan:
    p = problem
    tile = tile or choose_weight_tile(p, device)
    tiles_h, tiles_w = cdiv(p.h, tile.h), cdiv(p.w, tile.w)
    tiles = cdiv(p.n, tile.n) * tiles_h * tiles_w
    blocks = cdiv(p.rows, tile.block_b), cdiv(p.c_a, tile.block_a)
    splits = splits_of(tiles, blocks[0] * blocks[1], resident)
    constants = dict(
        C_A=p.c_a,
        C_B=p.c_b,
        K=p.k + p.folded,
        FOLDED=p.folded,
        FLIPPED=p.transposed,
        ROOM_FOR_TAPS=p.room_for_taps,
        STRIDE=p.stride,
        PRECISION=precision,
        TILE_N=tile.n,
        TILE_H=tile.h,
        TILE_W=tile.w,
        BLOCK_A=tile.block_a,
        BLOCK_B=tile.block_b,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    block_a, block_b = min(32, next_power_of_2(p.c_a)), min(8, next_power_of_2(p.c_b))
    block_splits = min(next_power_of_2(splits), 4096 // (block_a * block_b))
    parts_constants = dict(C_A=p.c_a, C_B=p.c_b, K=p.k, BLOCK_SPLITS=block_splits, BLOCK_A=block_a, BLOCK_B=block_b)
    parts_grid = (p.k**2, cdiv(p.c_b, block_b), cdiv(p.c_a, block_a))
    return Plan((splits, *blocks), (tiles_h, tiles_w, tiles), constants, parts_grid, parts_constants)


_cached_plan = cache(_make_plan)

_resident: dict[tuple, int] = {}
"""{(problem, tile, precision, device): programs that a multiprocessor holds}, of kernels that were compiled."""


def _resident_programs(a: Tensor, b: Tensor, dw: Tensor, padding: int, strides: tuple, plan: Plan) -> int:
    """Compile the plan's kernel without launching it; return how many of its programs a multiprocessor holds."""
    out, args = _arguments(a, b, dw, 1.0, padding, strides, plan)
    found = compiled(weight_gradient_kernel, plan.grid, a, b, out, *args, **plan.constants)
    return limits().resident_blocks(found.n_regs, found.metadata.shared, found.metadata.num_warps)


def weight_gradient(
    dz: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    transposed: bool = False,
    fold: float | None = None,
    scale: float = 1.0,
    tile: WeightTile | None = None,
) -> Tensor:
    """Return the gradient of a convolution's weight: one launch, and another where programs share the pixels.

    dw[o, i, p, q] = scale * sum over samples, rows h and columns w of
        dz[n, o, h, w] * x[n, i, stride h + p - padding, stride w + q - padding]

    and of a transposed convolution, whose weight is [C_in, C_out, k, k], with dz and x exchanged.

    dz: [N, C_out, H, W]. x: [N, C_in, H', W'], dz's dtype. weight: gives the gradient's shape, dtype and layout; it has
    no other part. fold: the convolution took `fold.fold(weight, fold, transposed)`. Deterministic.
    """
    a, b = (x, dz) if transposed else (dz, x)
    (n, c_a, h, w), c_b, k = a.shape, b.shape[1], weight.shape[-1]
    dw = torch.empty_like(weight)
    if not a.numel() or not b.numel():
        return dw.zero_()
    folded = fold is not None
    problem = WeightProblem(a.dtype, n, c_a, c_b, h, w, k, stride, transposed, folded)
    # Sizes that torch.compile traces are no keys of a cache.
    make_plan = _cached_plan if type(x) is Tensor else _make_plan
    strides = dw.stride()[:2][:: -1 if transposed and folded else 1], dw.stride()[2:]
    scale = scale * fold if folded else scale

    key = problem, tile, dot_precision(a.dtype), a.get_device()
    # A graph that is traced, the interpreter and AMD's compiler state no registers.
    states_registers = type(x) is Tensor and a.is_cuda and isinstance(weight_gradient_kernel, JITFunction)
    states_registers = states_registers and not on_hip()

    def run() -> None:
        if states_registers and key not in _resident:
            assumed = make_plan(*key, PROGRAMS_PER_MULTIPROCESSOR)
            _resident[key] = _resident_programs(a, b, dw, padding, strides, assumed)
        plan = make_plan(*key, _resident.get(key, PROGRAMS_PER_MULTIPROCESSOR))
        _launch(a, b, dw, scale, padding, strides, plan)

    try:
        run()
    except OutOfResources:
        # A measured tile need not fit another version of Triton.
        if tile is not None or not forget_measurement(problem, a.get_device()):
            raise
        _cached_plan.cache_clear()
        _resident.clear()
        run()
    return dw


def _arguments(
    a: Tensor, b: Tensor, dw: Tensor, scale: float, padding: int, strides: tuple, plan: Plan
) -> tuple[Tensor, tuple]:
    """Return what weight_gradient_kernel writes, dw itself or its parts, and its arguments after that."""
    (n, _, h, w), splits = a.shape, plan.grid[0]
    (dw_a, dw_b), (dw_h, dw_w) = strides
    out, out_strides = dw, (0, dw_a, dw_b, dw_h, dw_w)
    if splits > 1:
        k, c_b, c_a = dw.shape[-1], plan.constants["C_B"], plan.constants["C_A"]
        out = torch.empty(splits, k, k, c_b, c_a, dtype=accumulation_dtype(a), device=a.device)
        out_strides, scale = (out.stride(0), 1, c_a, *out.stride()[1:3]), 1.0
    sizes = (n, h, w, *b.shape[2:], *plan.tiles, splits, padding)
    return out, (*scalar_args(a.dtype, scale), *sizes, *a.stride(), *b.stride(), *out_strides)


def _launch(a: Tensor, b: Tensor, dw: Tensor, scale: float, padding: int, strides: tuple, plan: Plan) -> None:
    out, args = _arguments(a, b, dw, scale, padding, strides, plan)
    launch(weight_gradient_kernel, plan.grid, a, b, out, *args, **plan.constants)
    if out is not dw:
        splits, wide = plan.grid[0], accumulation_dtype(a)
        (dw_a, dw_b), (dw_h, dw_w) = strides
        scalars = scalar_args(wide, scale)
        launch(
            add_parts_kernel,
            plan.parts_grid,
            out,
            dw,
            *scalars,
            splits,
            dw_a,
            dw_b,
            dw_h,
            dw_w,
            **plan.parts_constants,
            num_warps=4,
        )
