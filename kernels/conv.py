"""Convolutions with all that follows them in the same launch: an implicit GEMM over taps and input channels.

A tile of pixels meets blocks of output channels; where pixel norm follows, one block holds every channel. A
transposed convolution of stride 2 (upsampling, and the gradient of downsampling) runs as four phases, one for each
parity of the output's row and column, each with the taps that reach it: no zero is multiplied, no copy is upsampled.

Tensors are [N, C, H, W] with any strides; channels_last is what the kernels are made for. Accumulation in fp32
(fp64 for fp64).
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources

from pggan_fast.kernels.activation import activate, is_positive, load_sign_bits, sign_bits_shape, store_sign_bits
from pggan_fast.kernels.conv_table import forget_measurement
from pggan_fast.kernels.conv_tiles import Problem, Tile, choose_tile, dot_precision, programs
from pggan_fast.kernels.tensors import accumulation_dtype, cdiv, is_channels_last, launch, scalar, scalar_args


@triton.jit
def convolution_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    activation_mask_ptr,
    y_ptr,
    r_ptr,
    sign_bits_ptr,
    scale,
    positive_slope,
    negative_slope,
    eps,
    N,
    H,
    W,
    OUT_H,
    OUT_W,
    tiles_h,
    tiles_w,
    padding,
    x_n,
    x_c,
    x_h,
    x_w,
    w_in,
    w_out,
    w_h,
    w_w,
    y_n,
    y_c,
    y_h,
    y_w,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    K: tl.constexpr,
    STRIDE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PIXEL_NORM: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """See `convolve`. One program: TILE_N x TILE_H x TILE_W pixels of one phase, BLOCK_OUT output channels.

    With M pixels, x's tile is [M, BLOCK_IN], w's [BLOCK_IN, BLOCK_OUT], the accumulator [M, BLOCK_OUT].
    """
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    scale, eps = scalar(scale, ACC), scalar(eps, ACC)
    positive_slope, negative_slope = scalar(positive_slope, ACC), scalar(negative_slope, ACC)
    PHASES: tl.constexpr = STRIDE if TRANSPOSED else 1
    STEP: tl.constexpr = 1 if TRANSPOSED else STRIDE
    TAPS: tl.constexpr = (K + PHASES - 1) // PHASES
    OUT_BLOCKS: tl.constexpr = (C_OUT + BLOCK_OUT - 1) // BLOCK_OUT
    IN_BLOCKS: tl.constexpr = (C_IN + BLOCK_IN - 1) // BLOCK_IN

    # Programs that read the same pixels are neighbours in launch order, for the L2 cache: channel blocks, then phases.
    pid = tl.program_id(0)
    first_out = pid % OUT_BLOCKS * BLOCK_OUT
    c_out = first_out + tl.arange(0, BLOCK_OUT)
    pid //= OUT_BLOCKS
    phase_w = pid % PHASES
    phase_h = pid // PHASES % PHASES
    pid //= PHASES * PHASES
    m = tl.arange(0, TILE_N * TILE_H * TILE_W)
    column = pid % tiles_w * TILE_W + m % TILE_W
    row = pid // tiles_w % tiles_h * TILE_H + m // TILE_W % TILE_H
    sample = pid // (tiles_w * tiles_h) * TILE_N + m // (TILE_W * TILE_H)
    out_row = row * PHASES + phase_h
    out_column = column * PHASES + phase_w
    inside = (sample < N) & (out_row < OUT_H) & (out_column < OUT_W)
    sample = sample.to(tl.int64)

    # Tap t of a phase is element first + PHASES t of the kernel; it reads row origin + t, or origin - t transposed.
    if TRANSPOSED:
        first_h = (phase_h + padding) % PHASES
        first_w = (phase_w + padding) % PHASES
        origin_h = row + (phase_h + padding) // PHASES
        origin_w = column + (phase_w + padding) // PHASES
    else:
        first_h = 0
        first_w = 0
        origin_h = row * STEP - padding
        origin_w = column * STEP - padding
    origin = sample * x_n + origin_h.to(tl.int64) * x_h + origin_w.to(tl.int64) * x_w

    acc = tl.zeros([TILE_N * TILE_H * TILE_W, BLOCK_OUT], dtype=ACC)
    for step in range(TAPS * TAPS * IN_BLOCKS):
        c_in = step % IN_BLOCKS * BLOCK_IN + tl.arange(0, BLOCK_IN)
        tap_h = step // IN_BLOCKS // TAPS
        tap_w = step // IN_BLOCKS % TAPS
        k_h = first_h + PHASES * tap_h
        k_w = first_w + PHASES * tap_w
        down = -tap_h if TRANSPOSED else tap_h
        right = -tap_w if TRANSPOSED else tap_w
        in_row = origin_h + down
        in_column = origin_w + right

        mask = inside & (in_row >= 0) & (in_row < H) & (in_column >= 0) & (in_column < W)
        offs = origin + (down.to(tl.int64) * x_h + right.to(tl.int64) * x_w)
        offs = offs[:, None] + c_in[None, :].to(tl.int64) * x_c
        x = tl.load(x_ptr + offs, mask=mask[:, None] & (c_in < C_IN)[None, :], other=0.0)

        mask = (c_in < C_IN)[:, None] & (c_out < C_OUT)[None, :]
        if TRANSPOSED and K % PHASES != 0:
            mask = mask & (k_h < K) & (k_w < K)
        offs = k_h * w_h + k_w * w_w + c_in[:, None] * w_in + c_out[None, :] * w_out
        w = tl.load(w_ptr + offs, mask=mask, other=0.0)
        acc = tl.dot(x, w, acc, input_precision=PRECISION, out_dtype=ACC)

    z = acc * scale
    if bias_ptr is not None:
        z += tl.load(bias_ptr + c_out, mask=c_out < C_OUT, other=0.0).to(ACC)[None, :]
    offs = sample * y_n + out_row.to(tl.int64) * y_h + out_column.to(tl.int64) * y_w
    offs = offs[:, None] + c_out[None, :].to(tl.int64) * y_c
    mask = inside[:, None] & (c_out < C_OUT)[None, :]
    pixel = (sample * OUT_H + out_row) * OUT_W + out_column
    if activation_mask_ptr is None:
        positive = is_positive(z, negative_slope)
    elif activation_mask_ptr.dtype.element_ty == tl.int32:
        positive = load_sign_bits(
            activation_mask_ptr, pixel[:, None], inside[:, None], c_out[None, :], first_out, C_OUT, BLOCK_OUT
        )
    else:
        positive = is_positive(tl.load(activation_mask_ptr + offs, mask=mask, other=0.0), negative_slope)
    if sign_bits_ptr is not None:
        store_sign_bits(sign_bits_ptr, pixel, inside, positive, first_out, C_OUT)
    u = activate(z, positive, positive_slope, negative_slope)
    if PIXEL_NORM:
        factor = tl.rsqrt(tl.sum(u * u, axis=1) / C_OUT + eps)
        tl.store(r_ptr + pixel, factor, mask=inside)
        u = u * factor[:, None]
    tl.store(y_ptr + offs, u.to(y_ptr.dtype.element_ty), mask=mask)


class Plan(NamedTuple):
    """All of a launch that follows from the problem alone."""

    grid: tuple[int]
    tiles: tuple[int, int]  # rows and columns of tiles in an image
    constants: dict


def _make_plan(problem: Problem, tile: Tile | None, precision: str, device: int) -> Plan:
    tile = tile or choose_tile(problem, device)
    return Plan(
        (programs(problem, tile),),
        (cdiv(problem.phase_h, tile.h), cdiv(problem.phase_w, tile.w)),
        dict(
            C_IN=problem.c_in,
            C_OUT=problem.c_out,
            K=problem.k,
            STRIDE=problem.stride,
            TRANSPOSED=problem.transposed,
            PIXEL_NORM=problem.pixel_norm,
            PRECISION=precision,
            TILE_N=tile.n,
            TILE_H=tile.h,
            TILE_W=tile.w,
            BLOCK_IN=tile.block_in,
            BLOCK_OUT=tile.block_out,
            num_warps=tile.warps,
            num_stages=tile.stages,
        ),
    )


_cached_plan = cache(_make_plan)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    size: tuple[int, int],
    transposed: bool = False,
    stride: int = 1,
    padding: int = 0,
    scale: float = 1.0,
    positive_slope: float = 1.0,
    negative_slope: float = 1.0,
    pixel_norm: bool = False,
    eps: float = 1e-8,
    activation_mask: Tensor | None = None,
    keep_sign_bits: bool = False,
    channels_last: bool | None = None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute a convolution, or a transposed one, and what comes after it, in one launch:

    1. z = scale * (convolution) + bias;
    2. u = positive_slope * z or negative_slope * z: by z's own sign, or by that of `activation_mask`, if given;
    3. y = r * u with r = 1 / sqrt(mean over channels of u^2 + eps) if `pixel_norm`, else u.

    x: [N, C_in, H, W]; fp64, fp32, bf16 or fp16. weight: x's dtype, [C_out, C_in, K, K], or [C_in, C_out, K, K] where
    transposed, as torch's convolutions take it. bias: [C_out] of any floating dtype. stride: 1 or 2. size: (H', W'),
    of the output; rows that no input reaches hold what zeros give. activation_mask: with the shape and strides of y,
    or its sign bits. channels_last: whether y is (else contiguous); None: as x is.
    Returns y [N, C_out, *size] in x's dtype; r [N, 1, *size] in fp32 (fp64 for fp64), empty without pixel norm; and the
    sign bits of u (see kernels/activation.py) if `keep_sign_bits`, else None.
    """
    (n, c_in, h, w), k = x.shape, weight.shape[-1]
    c_out = weight.shape[1 if transposed else 0]
    channels_last = is_channels_last(x) if channels_last is None else channels_last
    layout = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.empty((n, c_out, *size), dtype=x.dtype, device=x.device, memory_format=layout)
    r = torch.empty((n, 1, *size) if pixel_norm else 0, dtype=accumulation_dtype(x), device=x.device)
    sign_bits = torch.empty(sign_bits_shape(y), dtype=torch.int32, device=x.device) if keep_sign_bits else None
    if not y.numel():
        return y, r, sign_bits
    variant = "signs" if keep_sign_bits else "mask" if activation_mask is not None else ""
    problem = Problem(x.dtype, n, c_in, c_out, *size, k, stride, transposed, pixel_norm, variant)
    # Sizes that torch.compile traces are no keys of a cache.
    make_plan = _cached_plan if type(x) is Tensor else _make_plan
    w_in, w_out = weight.stride()[:2] if transposed else weight.stride()[1::-1]
    tensors = (x, weight, None if bias is None else bias.contiguous(), activation_mask, y, r, sign_bits)
    scalars = scalar_args(x.dtype, scale, positive_slope, negative_slope, eps)
    strides = (*x.stride(), w_in, w_out, *weight.stride()[2:], *y.stride())

    precision, device = dot_precision(x.dtype), x.get_device()
    while True:
        plan = make_plan(problem, tile, precision, device)
        sizes = (n, h, w, *size, *plan.tiles, padding)
        try:
            launch(convolution_kernel, plan.grid, *tensors, *scalars, *sizes, *strides, **plan.constants)
            break
        except OutOfResources:
            # A measured tile need not fit another version of Triton: the heuristic's does.
            if tile is not None or not forget_measurement(problem, device):
                raise
            _cached_plan.cache_clear()
    return y, r, sign_bits
