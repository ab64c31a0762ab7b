"""bias_act and its gradients; the formulas stand in pggan_fast/ops/bias_act.py.

A program takes tiles of BLOCK_C channels by BLOCK_P pixels. With pixel norm every channel of a pixel is in one tile,
up to 512 (contiguous) or 4096 (channels_last) of them; more are gone through twice, CHUNKS tiles at a time. Without,
the channels' tiles are other programs. Each value is then read and written once, and accumulated in fp32 (fp64 for
fp64). The bias's gradient is a row of sums for each program, then their sum: the same bits every time.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.activation import activated, load_sign_bits, sign_bits_shape
from pggan_fast.kernels.bias_act_flat import (
    flat_backward_kernel,
    flat_double_backward_kernel,
    flat_forward_kernel,
    flat_grid,
    sum_rows_kernel,
    takes_flat,
)
from pggan_fast.kernels.bias_act_tiling import (
    check,
    contiguous,
    empty_factors,
    locate,
    most_rows,
    relative_slope,
    rows_of_sums,
    tiling,
)
from pggan_fast.kernels.tensors import (
    Output,
    accumulation_dtype,
    arrange,
    cdiv,
    check_floating,
    is_channels_last,
    launch,
    scalar,
    scalar_args,
)


@triton.jit
def _activated(x_ptr, bias_ptr, c, C, offs, mask, scale, gain, slope, RELU: tl.constexpr, ACC: tl.constexpr):
    """Return act(scale * x + gain * bias) of a tile [BLOCK_C, BLOCK_P]; bias may be None."""
    u = scale * tl.load(x_ptr + offs, mask=mask, other=0).to(ACC)
    if bias_ptr is not None:
        u += (gain * tl.load(bias_ptr + c, mask=c < C, other=0).to(ACC))[:, None]
    return activated(u, u, slope, RELU)


@triton.jit
def forward_kernel(
    x_ptr,
    bias_ptr,
    y_ptr,
    r_ptr,
    scale,
    gain,
    slope,
    eps,
    C,
    P,
    per_sample,
    RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    NORM: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write y and, with NORM, r. The activation's slope below zero is `slope` times that above; bias may be None."""
    ACC: tl.constexpr = tl.float64 if x_ptr.dtype.element_ty == tl.float64 else tl.float32
    gain, slope, eps = scalar(gain, ACC), scalar(slope, ACC), scalar(eps, ACC)
    scale = gain * scalar(scale, ACC)  # the gain goes before the activation
    pid, first = tl.program_id(0), tl.program_id(1) * CHUNKS
    if NORM:
        # Pass 1: sum of squares over the channels.
        total = tl.zeros([BLOCK_P], ACC)
        for i in tl.static_range(CHUNKS):
            c, pixel, exists, offs, mask = locate(pid, first + i, C, P, per_sample, CHANNELS_LAST, BLOCK_C, BLOCK_P)
            u = _activated(x_ptr, bias_ptr, c, C, offs, mask, scale, gain, slope, RELU, ACC)
            total += tl.sum(u * u, axis=0)
        factor = tl.rsqrt(total * (tl.full([], 1.0, ACC) / C) + eps)
        tl.store(r_ptr + pixel, factor, mask=exists)
    # Pass 2: scale and store. A single tile is still in registers.
    for i in tl.static_range(CHUNKS):
        if CHUNKS > 1 or not NORM:
            c, pixel, exists, offs, mask = locate(pid, first + i, C, P, per_sample, CHANNELS_LAST, BLOCK_C, BLOCK_P)
            u = _activated(x_ptr, bias_ptr, c, C, offs, mask, scale, gain, slope, RELU, ACC)
        if NORM:
            u *= factor[None, :]
        if y_ptr.dtype.element_ty == tl.float16:
            # Backward reads the activation's sign off y: what is above zero stays there.
            u = tl.where((u > 0) & (u < 2.0**-24), 2.0**-24, u)
        tl.store(y_ptr + offs, u.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    dy_ptr,
    dr_ptr,
    y_ptr,
    r_ptr,
    dx_ptr,
    rows_ptr,
    scale,
    gain,
    slope,
    C,
    P,
    per_sample,
    tiles,
    SIGN_BITS: tl.constexpr,
    RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    NORM: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write dx and, unless None, rows [programs, C] of the bias's gradient.

    y is None where no value of it counts; without norm it may be its sign bits. dr may be None. With more than one
    chunk a program has one tile.
    """
    ACC: tl.constexpr = tl.float64 if dx_ptr.dtype.element_ty == tl.float64 else tl.float32
    scale, gain, slope = scalar(scale, ACC), scalar(gain, ACC), scalar(slope, ACC)
    program, first = tl.program_id(0), tl.program_id(1) * CHUNKS
    row_ptr = None if rows_ptr is None else rows_ptr + program.to(tl.int64) * C
    # Added up over this program's tiles value by value, and over pixels in the end.
    sums = tl.zeros([BLOCK_C, BLOCK_P], ACC)
    for pid in range(program, tiles, tl.num_programs(0)):
        if NORM:
            # Pass 1: mean of dy * y over the channels.
            mean = tl.zeros([BLOCK_P], ACC)
            for i in tl.static_range(CHUNKS):
                c, pixel, exists, offs, mask = locate(pid, first + i, C, P, per_sample, CHANNELS_LAST, BLOCK_C, BLOCK_P)
                du = tl.load(dy_ptr + offs, mask=mask, other=0).to(ACC)
                y = tl.load(y_ptr + offs, mask=mask, other=0).to(ACC)
                mean += tl.sum(du * y, axis=0)
            mean *= tl.full([], 1.0, ACC) / C
            factor = gain * tl.load(r_ptr + pixel, mask=exists, other=0).to(ACC)
            y_factor = factor * mean
            if dr_ptr is not None:
                r = tl.load(r_ptr + pixel, mask=exists, other=0).to(ACC)
                y_factor += factor * r * tl.load(dr_ptr + pixel, mask=exists, other=0).to(ACC) / C
        # Pass 2: the gradient through norm and activation. A single tile is still in registers.
        for i in tl.static_range(CHUNKS):
            if CHUNKS > 1 or not NORM:
                c, pixel, exists, offs, mask = locate(pid, first + i, C, P, per_sample, CHANNELS_LAST, BLOCK_C, BLOCK_P)
                du = tl.load(dy_ptr + offs, mask=mask, other=0).to(ACC)
                if y_ptr is not None and not SIGN_BITS:
                    y = tl.load(y_ptr + offs, mask=mask, other=0).to(ACC)
            if NORM:
                du = factor[None, :] * du - y_factor[None, :] * y
            else:
                du *= gain
            if SIGN_BITS:
                c_first = (first + i) * BLOCK_C
                positive = load_sign_bits(y_ptr, pixel[None, :], exists[None, :], c[:, None], c_first, C, BLOCK_C)
                du = tl.where(positive, du, 0.0 if RELU else du * slope)
            elif y_ptr is not None:
                du = activated(du, y, slope, RELU)
            else:
                du *= slope
            tl.store(dx_ptr + offs, (scale * du).to(dx_ptr.dtype.element_ty), mask=mask)
            if rows_ptr is not None:
                if CHUNKS == 1:
                    sums += du
                else:
                    tl.store(row_ptr + c, tl.sum(du, axis=1), mask=c < C)
    if rows_ptr is not None and CHUNKS == 1:
        c = first * BLOCK_C + tl.arange(0, BLOCK_C)
        tl.store(row_ptr + c, tl.sum(sums, axis=1), mask=c < C)


@triton.jit
def _second_gradient(g_ptr, g_bias_ptr, y, c, C, offs, mask, scale, gain, slope, RELU: tl.constexpr, ACC: tl.constexpr):
    """Return h = (scale * g + g_bias) times the slope of the activation at y; each of the three may be None."""
    h = tl.zeros(offs.shape, ACC)
    if g_ptr is not None:
        h = scale * tl.load(g_ptr + offs, mask=mask, other=0).to(ACC)
    if g_bias_ptr is not None:
        h += tl.load(g_bias_ptr + c, mask=c < C, other=0).to(ACC)[:, None]
    if y is None:
        return h * (gain * slope)
    else:
        return activated(gain * h, y, slope, RELU)


@triton.jit
def double_backward_kernel(
    dy_ptr,
    g_ptr,
    g_bias_ptr,
    dr_ptr,
    y_ptr,
    r_ptr,
    d_dy_ptr,
    d_y_ptr,
    d_r_ptr,
    d_dr_ptr,
    scale,
    gain,
    slope,
    C,
    P,
    per_sample,
    RELU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    NORM: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Write d_dy and, with NORM, d_y, d_r and d_dr. g, g_bias and dr may be None, y where no value of it counts."""
    ACC: tl.constexpr = tl.float64 if d_dy_ptr.dtype.element_ty == tl.float64 else tl.float32
    scale, gain, slope = scalar(scale, ACC), scalar(gain, ACC), scalar(slope, ACC)
    pid, first = tl.program_id(0), tl.program_id(1) * CHUNKS
    y = None
    if NORM:
        # Pass 1: means of dy * y and h * y over the channels.
        m, q, d_factor = tl.zeros([BLOCK_P], ACC), tl.zeros([BLOCK_P], ACC), tl.zeros([BLOCK_P], ACC)
        for i in tl.static_range(CHUNKS):
            c, pixel, exists, offs, mask = locate(pid, first + i, C, P, per_sample, CHANNELS_LAST, BLOCK_C, BLOCK_P)
            y = tl.load(y_ptr + offs, mask=mask, other=0).to(ACC)
            dy = tl.load(dy_ptr + offs, mask=mask, other=0).to(ACC)
            h = _second_gradient(g_ptr, g_bias_ptr, y, c, C, offs, mask, scale, gain, slope, RELU, ACC)
            m += tl.sum(dy * y, axis=0)
            q += tl.sum(h * y, axis=0)
        m, q = m / C, q / C
        factor = tl.load(r_ptr + pixel, mask=exists, other=0).to(ACC)
        if dr_ptr is not None:
            dr = tl.load(dr_ptr + pixel, mask=exists, other=0).to(ACC)
    # Pass 2: the derivatives. A single tile is still in registers.
    for i in tl.static_range(CHUNKS):
        if CHUNKS > 1 or not NORM:
            c, pixel, exists, offs, mask = locate(pid, first + i, C, P, per_sample, CHANNELS_LAST, BLOCK_C, BLOCK_P)
            if y_ptr is not None:
                y = tl.load(y_ptr + offs, mask=mask, other=0).to(ACC)
            if NORM:
                dy = tl.load(dy_ptr + offs, mask=mask, other=0).to(ACC)
            h = _second_gradient(g_ptr, g_bias_ptr, y, c, C, offs, mask, scale, gain, slope, RELU, ACC)
        if NORM:
            d_factor += tl.sum(h * (dy - y * m[None, :]), axis=0)
            d_y = -factor[None, :] * (h * m[None, :] + dy * q[None, :])
            if dr_ptr is not None:
                d_y -= h * (factor * factor * dr / C)[None, :]
            tl.store(d_y_ptr + offs, d_y.to(d_y_ptr.dtype.element_ty), mask=mask)
            h = factor[None, :] * (h - y * q[None, :])
        tl.store(d_dy_ptr + offs, h.to(d_dy_ptr.dtype.element_ty), mask=mask)
    if NORM:
        if dr_ptr is not None:
            d_factor -= 2 * factor * dr * q
        tl.store(d_r_ptr + pixel, d_factor, mask=exists)
        tl.store(d_dr_ptr + pixel, -factor * factor * q, mask=exists)


def _run_forward(x: Tensor, bias: Tensor | None, y: Tensor, r: Tensor, channels_last: bool, *options) -> None:
    """Write y, in the layout of x and maybe x itself, and r."""
    scale, act, slope, gain, pixel_norm, eps = options
    slope, bias = relative_slope(act, slope, gain), contiguous(bias)
    if not x.numel():
        return
    if takes_flat(x, channels_last, pixel_norm):
        grid = flat_grid(x)
        args = (x, bias, y, *scalar_args(x.dtype, scale, gain, slope), *grid.sizes)
        launch(flat_forward_kernel, (grid.programs,), *args, RELU=slope == 0, **grid.constants)
        return
    t = tiling(x, channels_last, pixel_norm, 1)
    args = (x, bias, y, r, *scalar_args(x.dtype, scale, gain, slope, eps), *t.sizes)
    launch(forward_kernel, (t.tiles, t.programs_c), *args, RELU=slope == 0, **t.constants, num_warps=t.warps)


def forward(x: Tensor, bias: Tensor | None, *options) -> tuple[Tensor, Tensor]:
    """(x, bias, scale, act, slope, gain, pixel_norm, eps) -> (y, r); r is empty without pixel norm."""
    check(x, bias=bias)
    y, r = Output(torch.empty_like(x)), empty_factors(x, options[4])
    _run_forward(arrange(x, y.channels_last), bias, y.buffer, r, y.channels_last, *options)
    return y.finish(), r


def forward_in_place(x: Tensor, bias: Tensor | None, *options) -> Tensor:
    """Do as `forward` does, with y written over x; return r."""
    check(x, bias=bias)
    channels_last, r = is_channels_last(x), empty_factors(x, options[4])
    y = arrange(x, channels_last)
    _run_forward(y, bias, y, r, channels_last, *options)
    if y is not x:
        x.copy_(y)
    return r


def backward(dy, dr, y, r, scale, act, slope, gain, pixel_norm, needs_bias_grad) -> tuple[Tensor, Tensor]:
    """Return (dx, db); db [C] in the accumulation dtype, empty unless needed. Two launches with it, one without."""
    check(y, likes=(dy,), factors=(r, dr) if pixel_norm else ())
    slope = relative_slope(act, slope, gain)
    dx = Output(torch.empty_like(y))
    factors = (contiguous(dr), contiguous(r)) if pixel_norm else (None, None)
    y = arrange(y, dx.channels_last) if pixel_norm or slope != 1 else None
    return _run_backward(
        arrange(dy, dx.channels_last), y, factors, dx, (scale, gain, slope), pixel_norm, needs_bias_grad
    )


def backward_by_signs(dy, sign_bits, scale, act, slope, gain, needs_bias_grad) -> tuple[Tensor, Tensor]:
    """Do as `backward` does without pixel norm, given y's sign bits [N, H, W, ceil(C / 32)]; dy is [N, C, H, W]."""
    check_floating("bias_act", dy)
    if dy.ndim != 4 or sign_bits.shape != sign_bits_shape(dy):
        raise ValueError(f"bias_act: dy is {list(dy.shape)}, its sign bits {list(sign_bits.shape)}")
    dx = Output(torch.empty_like(dy))
    scalars = (scale, gain, relative_slope(act, slope, gain))
    return _run_backward(arrange(dy, dx.channels_last), sign_bits, (None, None), dx, scalars, False, needs_bias_grad)


def _run_backward(dy, y, factors, dx: Output, scalars, pixel_norm, needs_bias_grad) -> tuple[Tensor, Tensor]:
    """Write dx, in whose layout dy and y are; y may be its sign bits. Return (dx, db)."""
    (dr, r), out = factors, dx.buffer
    db = out.new_empty(out.shape[1] if needs_bias_grad else 0, dtype=accumulation_dtype(out))
    if not out.numel():
        return dx.finish(), db.zero_()
    by_signs = y is not None and y.dtype == torch.int32
    if takes_flat(out, dx.channels_last, pixel_norm) and not by_signs:
        grid = flat_grid(out, most_rows(out) if needs_bias_grad else None)
        rows = db.new_empty(grid.programs, out.shape[1]) if needs_bias_grad else None
        args = (dy, y, out, rows, *scalar_args(out.dtype, *scalars), *grid.sizes)
        launch(flat_backward_kernel, (grid.programs,), *args, RELU=scalars[2] == 0, **grid.constants)
        _sum_rows(rows, db)
        return dx.finish(), db
    # With sums of the bias's gradient a thread has registers for half of the values.
    t = tiling(out, dx.channels_last, pixel_norm, 3 if needs_bias_grad else 2)
    programs, rows = t.tiles, None
    if needs_bias_grad:
        programs = rows_of_sums(t, out)
        rows = db.new_empty(programs, t.C)
    launch(
        backward_kernel,
        (programs, t.programs_c),
        *(dy, dr, y, r, out, rows),
        *scalar_args(out.dtype, *scalars),
        *t.sizes,
        t.tiles,
        SIGN_BITS=by_signs,
        RELU=scalars[2] == 0,
        **t.constants,
        num_warps=min(16, 2 * t.warps) if needs_bias_grad and pixel_norm and not dx.channels_last else t.warps,
    )
    _sum_rows(rows, db)
    return dx.finish(), db


def _sum_rows(rows: Tensor | None, sums: Tensor) -> None:
    if rows is not None:
        count, c = rows.shape
        launch(sum_rows_kernel, (cdiv(c, 32),), rows, sums, count, c, BLOCK_R=32, BLOCK_C=32, num_warps=4)


def double_backward(g, g_bias, dy, dr, y, r, scale, act, slope, gain, pixel_norm) -> tuple[Tensor, ...]:
    """(d_dy, d_y, d_r, d_dr), the last three empty without pixel norm."""
    check(y, bias=g_bias, likes=(g, dy), factors=(r, dr) if pixel_norm else ())
    slope = relative_slope(act, slope, gain)
    d_dy, d_y = Output(torch.empty_like(y)), Output(torch.empty_like(y) if pixel_norm else empty_factors(y, False))
    d_r, d_dr = empty_factors(y, pixel_norm), empty_factors(y, pixel_norm)
    if not y.numel():
        return d_dy.finish(), d_y.finish(), d_r, d_dr
    g, g_bias = None if g is None else arrange(g, d_dy.channels_last), contiguous(g_bias)
    y = arrange(y, d_dy.channels_last) if pixel_norm or slope != 1 else None
    scalars = scalar_args(d_dy.buffer.dtype, scale, gain, slope)
    if takes_flat(d_dy.buffer, d_dy.channels_last, pixel_norm):
        grid = flat_grid(d_dy.buffer)
        args = (d_dy.buffer, g, g_bias, y, *scalars, *grid.sizes)
        launch(flat_double_backward_kernel, (grid.programs,), *args, RELU=slope == 0, **grid.constants)
    else:
        t = tiling(d_dy.buffer, d_dy.channels_last, pixel_norm, 3)
        launch(
            double_backward_kernel,
            (t.tiles, t.programs_c),
            arrange(dy, d_dy.channels_last),
            *(g, g_bias),
            contiguous(dr) if pixel_norm else None,
            y,
            contiguous(r) if pixel_norm else None,
            d_dy.buffer,
            *((d_y.buffer, d_r, d_dr) if pixel_norm else (None, None, None)),
            *scalars,
            *t.sizes,
            RELU=slope == 0,
            **t.constants,
            num_warps=t.warps,
        )
    return d_dy.finish(), d_y.finish(), d_r, d_dr
