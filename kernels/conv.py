"""Convolutions with all that follows them in the same launch: an implicit GEMM over taps and input channels.

A tile of pixels meets blocks of output channels; where pixel norm follows, one block holds every channel. A
transposed convolution of stride 2 (upsampling, and the gradient of downsampling) runs as four phases, one for each
parity of the output's row and column, each with the taps that reach it: no zero is multiplied, no copy is upsampled.

What an activation's backward needs of the output is its sign, so forward can pack the signs, a bit for each value:
int32 [N, H, W, ceil(C / 32)], channel c being bit c % 32 of word c // 32.

Tensors are [N, C, H, W] with any strides; channels_last is what the kernels are made for. Accumulation in fp32
(fp64 for fp64).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.bias_act import activate, is_positive
from pggan_fast.kernels.conv_tiles import Problem, Tile, choose_tile, dot_precision, programs
from pggan_fast.kernels.tensors import accumulation_dtype, is_channels_last, launch


@triton.jit
def signs_at(signs, pixel, inside, first, C: tl.constexpr, BLOCK: tl.constexpr):
    """[M, BLOCK]: whether channels first, first + 1, ... are positive at M pixels, False outside."""
    WORDS: tl.constexpr = (C + 31) // 32
    c = first + tl.arange(0, BLOCK)
    at = signs + pixel * WORDS + first // 32
    # A word for each pixel and 32 channels, not one for each value.
    words = tl.load(at, mask=inside, other=0)[:, None]
    for i in tl.static_range(1, BLOCK // 32):
        more = tl.load(at + i, mask=inside & (first // 32 + i < WORDS), other=0)[:, None]
        words = tl.where((c // 32 == first // 32 + i)[None, :], more, words)
    return ((words >> (c % 32)[None, :]) & 1) != 0


@triton.jit
def store_signs(signs, pixel, inside, positive, first, C: tl.constexpr):
    """Packs `positive` [M, BLOCK], of channels first, first + 1, ...: what `signs_at` reads."""
    M: tl.constexpr = positive.shape[0]
    BLOCK: tl.constexpr = positive.shape[1]
    BITS: tl.constexpr = min(BLOCK, 32)
    tl.static_assert(BLOCK >= 32 or C <= BLOCK, "programs would share a word")
    bits = tl.reshape(positive.to(tl.int32), [M, BLOCK // BITS, BITS]) << tl.arange(0, BITS)[None, None, :]
    words = tl.sum(bits, axis=2)  # no two of them share a bit
    word = first // 32 + tl.arange(0, BLOCK // BITS)
    WORDS: tl.constexpr = (C + 31) // 32
    tl.store(signs + pixel[:, None] * WORDS + word[None, :], words, mask=inside[:, None] & (word < WORDS)[None, :])


@triton.jit
def convolution_kernel(
    x,
    gate,
    gate_r,
    gate_s,
    w,
    bias,
    out_gate,
    y,
    r,
    signs,
    N,
    H,
    W,
    OUT_H,
    OUT_W,
    tiles_h,
    tiles_w,
    padding,
    scale: tl.float64,
    above: tl.float64,
    below: tl.float64,
    eps: tl.float64,
    gate_above: tl.float64,
    gate_below: tl.float64,
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
    """See `convolve`. One program: TILE_N x TILE_H x TILE_W pixels of one phase, BLOCK_OUT output channels."""
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    scale, eps = tl.full([], scale, ACC), tl.full([], eps, ACC)
    above, below = tl.full([], above, ACC), tl.full([], below, ACC)
    gate_above, gate_below = tl.full([], gate_above, ACC), tl.full([], gate_below, ACC)
    PHASES: tl.constexpr = STRIDE if TRANSPOSED else 1
    STEP: tl.constexpr = 1 if TRANSPOSED else STRIDE
    TAPS: tl.constexpr = (K + PHASES - 1) // PHASES
    OUT_BLOCKS: tl.constexpr = (C_OUT + BLOCK_OUT - 1) // BLOCK_OUT
    IN_BLOCKS: tl.constexpr = (C_IN + BLOCK_IN - 1) // BLOCK_IN

    # What reads the same pixels is neighbours in launch order, for the L2 cache: channel blocks, then phases.
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
    origin_pixel = (sample * H + origin_h) * W + origin_w

    acc = tl.zeros([TILE_N * TILE_H * TILE_W, BLOCK_OUT], dtype=ACC)
    for step in range(TAPS * TAPS * IN_BLOCKS):
        first_in = step % IN_BLOCKS * BLOCK_IN
        c_in = first_in + tl.arange(0, BLOCK_IN)
        tap_h = step // IN_BLOCKS // TAPS
        tap_w = step // IN_BLOCKS % TAPS
        k_h = first_h + PHASES * tap_h
        k_w = first_w + PHASES * tap_w
        down = -tap_h if TRANSPOSED else tap_h
        right = -tap_w if TRANSPOSED else tap_w
        in_row = origin_h + down
        in_column = origin_w + right

        read = inside & (in_row >= 0) & (in_row < H) & (in_column >= 0) & (in_column < W)
        pixel = origin + (down.to(tl.int64) * x_h + right.to(tl.int64) * x_w)
        offsets = pixel[:, None] + c_in[None, :].to(tl.int64) * x_c
        mask = read[:, None] & (c_in < C_IN)[None, :]
        values = tl.load(x + offsets, mask=mask, other=0.0)
        if gate is not None:
            in_pixel = origin_pixel + (down * W + right)
            d = values.to(ACC)
            if gate.dtype.element_ty == tl.int32:
                positive = signs_at(gate, in_pixel, read, first_in, C_IN, BLOCK_IN)
            else:
                at_gate = tl.load(gate + offsets, mask=mask, other=0.0)
                positive = is_positive(at_gate, gate_below)
            if gate_r is not None:
                factor = tl.load(gate_r + in_pixel, mask=read, other=0.0)
                along = tl.load(gate_s + in_pixel, mask=read, other=0.0)
                d = factor[:, None] * d - along[:, None] * at_gate.to(ACC)
            values = activate(d, positive, gate_above, gate_below).to(values.dtype)

        w_mask = (c_in < C_IN)[:, None] & (c_out < C_OUT)[None, :]
        if TRANSPOSED and K % PHASES != 0:
            w_mask = w_mask & (k_h < K) & (k_w < K)
        w_offsets = k_h * w_h + k_w * w_w + c_in[:, None] * w_in + c_out[None, :] * w_out
        weights = tl.load(w + w_offsets, mask=w_mask, other=0.0)
        acc = tl.dot(values, weights, acc, input_precision=PRECISION, out_dtype=ACC)

    z = acc * scale
    if bias is not None:
        z += tl.load(bias + c_out, mask=c_out < C_OUT, other=0.0).to(ACC)[None, :]
    pixel = sample * y_n + out_row.to(tl.int64) * y_h + out_column.to(tl.int64) * y_w
    offsets = pixel[:, None] + c_out[None, :].to(tl.int64) * y_c
    mask = inside[:, None] & (c_out < C_OUT)[None, :]
    out_pixel = (sample * OUT_H + out_row) * OUT_W + out_column
    if out_gate is None:
        positive = is_positive(z, below)
    elif out_gate.dtype.element_ty == tl.int32:
        positive = signs_at(out_gate, out_pixel, inside, first_out, C_OUT, BLOCK_OUT)
    else:
        positive = is_positive(tl.load(out_gate + offsets, mask=mask, other=0.0), below)
    if signs is not None:
        store_signs(signs, out_pixel, inside, positive, first_out, C_OUT)
    u = activate(z, positive, above, below)
    if PIXEL_NORM:
        factor = tl.rsqrt(tl.sum(u * u, axis=1) / C_OUT + eps)
        tl.store(r + out_pixel, factor, mask=inside)
        u = u * factor[:, None]
    tl.store(y + offsets, u.to(y.dtype.element_ty), mask=mask)


class Gate(NamedTuple):
    """What takes a gradient dy back through bias_act: dz = above or below by the sign of y, times dy.

    After pixel norm with the factor r, times (r dy - s y) instead; see `pixel_norm_gradient`.

    y: with the shape and strides of dy; without pixel norm, its signs as `convolve` packs them will do.
    r, s: [N, 1, H, W], contiguous, or None.
    """

    y: Tensor
    above: float
    below: float
    r: Tensor | None = None
    s: Tensor | None = None


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
    above: float = 1.0,
    below: float = 1.0,
    pixel_norm: bool = False,
    eps: float = 1e-8,
    gate: Gate | None = None,
    out_gate: Tensor | None = None,
    signs_wanted: bool = False,
    channels_last: bool | None = None,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """A convolution, or a transposed one, and what comes before and after it, in one launch:

    1. x taken back through `gate`, if given, as it is read;
    2. z = scale * (convolution) + bias;
    3. u = above * z or below * z: by z's own sign, or by that of `out_gate`, if given;
    4. y = r * u with r = 1 / sqrt(mean over channels of u^2 + eps) if `pixel_norm`, else u.

    x: [N, C_in, H, W]; fp64, fp32, bf16 or fp16. weight: x's dtype, [C_out, C_in, K, K], or [C_in, C_out, K, K] where
    transposed, as torch's convolutions take it. bias: [C_out] of any floating dtype. stride: 1 or 2. size: (H', W'),
    of the output; rows that no input reaches hold what zeros give. out_gate: with the shape and strides of y, or
    signs. channels_last: whether y is (else contiguous); None: as x is.
    Returns y [N, C_out, *size] in x's dtype, and what a gate takes: r [N, 1, *size] in fp32 (fp64 for fp64) with pixel
    norm; without, the signs of u if `signs_wanted` (int32, see `signs_shape`), else an empty tensor.
    """
    (n, c_in, h, w), k = x.shape, weight.shape[-1]
    c_out = weight.shape[1 if transposed else 0]
    channels_last = is_channels_last(x) if channels_last is None else channels_last
    layout = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.empty((n, c_out, *size), dtype=x.dtype, device=x.device, memory_format=layout)
    r = torch.empty((n, 1, *size) if pixel_norm else 0, dtype=accumulation_dtype(x), device=x.device)
    signs = torch.empty(signs_shape(y), dtype=torch.int32, device=x.device) if signs_wanted else None
    kept = r if signs is None else signs
    if not y.numel():
        return y, kept
    problem = Problem(x.dtype, n, c_in, c_out, *size, k, stride, transposed, pixel_norm)
    tile = tile or choose_tile(problem)
    w_in, w_out = weight.stride()[:2] if transposed else weight.stride()[1::-1]
    launch(
        convolution_kernel,
        (programs(problem, tile),),
        x,
        *((None, None, None) if gate is None else (gate.y, gate.r, gate.s)),
        weight,
        None if bias is None else bias.contiguous(),
        out_gate,
        y,
        r,
        signs,
        n,
        h,
        w,
        *size,
        triton.cdiv(problem.phase_h, tile.h),
        triton.cdiv(problem.phase_w, tile.w),
        padding,
        *(scale, above, below, eps),
        *((1.0, 1.0) if gate is None else (gate.above, gate.below)),
        *x.stride(),
        w_in,
        w_out,
        *weight.stride()[2:],
        *y.stride(),
        C_IN=c_in,
        C_OUT=c_out,
        K=k,
        STRIDE=stride,
        TRANSPOSED=transposed,
        PIXEL_NORM=pixel_norm,
        PRECISION=dot_precision(),
        TILE_N=tile.n,
        TILE_H=tile.h,
        TILE_W=tile.w,
        BLOCK_IN=tile.block_in,
        BLOCK_OUT=tile.block_out,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return y, kept


def signs_shape(y: Tensor) -> tuple[int, ...]:
    """Of the packed signs of y [N, C, H, W]: contiguous [N, H, W, ceil(C / 32)]."""
    n, c, h, w = y.shape
    return n, h, w, triton.cdiv(c, 32)
