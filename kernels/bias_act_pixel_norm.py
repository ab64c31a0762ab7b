"""Pixel norm's part of a convolution's gradients: what `conv.Gate` takes for each pixel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.conv_tiles import tile_shape
from pggan_fast.kernels.tensors import launch


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
