"""bias_act and its gradients; the formulas stand in pggan_fast/ops/bias_act.py.

A program takes tiles of BLOCK_C channels by BLOCK_P pixels. With pixel norm every channel of a pixel is in one tile,
up to 512 (contiguous) or 4096 (channels_last) of them; more are gone through twice, CHUNKS tiles at a time. Without,
the channels' tiles are other programs. Each value is then read and written once, and accumulated in fp32 (fp64 for
fp64). The bias's gradient is a row of sums for each program, then their sum: the same bits every time.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.tensors import Output, accumulation_dtype, arrange, check_floating, is_channels_last, launch

# Programs whose sums a bias's gradient is made of: enough to fill the largest GPU a few times.
MOST_ROWS = 1024


@triton.jit
def _place(index, chunk, C, P, per_sample, LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Of a tile: its channels, its pixels counted through all samples and whether they exist, offsets and a mask."""
    c = (chunk * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)
    sample = (index // per_sample).to(tl.int64)
    p = (index % per_sample).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    at = c[:, None] + p[None, :] * C if LAST else sample * C * P + c[:, None] * P + p[None, :]
    return c, sample * P + p, p < P, at, (c < C)[:, None] & (p < P)[None, :]


@triton.jit
def is_positive(sign, below):
    """Whether the slope of the activation is that above zero; for relu (`below` is 0) a NaN's is."""
    return tl.where(below == 0, (sign > 0) | (sign != sign), sign > 0)


@triton.jit
def activate(v, positive, above, below):
    """v times the slope of the activation. With a slope of 0 it is 0, where a product would make NaN of infinity."""
    return tl.where(positive, v * above, tl.where(below == 0, 0.0, v * below))


@triton.jit
def forward_kernel(
    x,
    bias,
    y,
    r,
    scale: tl.float64,
    above: tl.float64,
    below: tl.float64,
    eps: tl.float64,
    C,
    P,
    per_sample,
    LAST: tl.constexpr,
    NORM: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """y and, with NORM, r. `above` and `below` are the activation's slopes times gain; bias may be None."""
    ACC: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    scale, eps = tl.full([], scale, ACC), tl.full([], eps, ACC)
    above, below = tl.full([], above, ACC), tl.full([], below, ACC)
    index, first = tl.program_id(0), tl.program_id(1) * CHUNKS
    total = tl.zeros([BLOCK_P], ACC)
    # In two passes, the second of which reads again only what the first could not keep.
    for k in tl.static_range(2 * CHUNKS):
        if k < CHUNKS or CHUNKS > 1:
            c, pixel, exists, at, mask = _place(index, first + k % CHUNKS, C, P, per_sample, LAST, BLOCK_C, BLOCK_P)
            u = scale * tl.load(x + at, mask=mask, other=0).to(ACC)
            if bias is not None:
                u += tl.load(bias + c, mask=c < C, other=0).to(ACC)[:, None]
            u = activate(u, is_positive(u, below), above, below)
        if NORM and k < CHUNKS:
            total += tl.sum(u * u, axis=0)
        if NORM and k == CHUNKS:
            factor = tl.rsqrt(total / C + eps)
            tl.store(r + pixel, factor, mask=exists)
        if k >= CHUNKS:
            if NORM:
                u *= factor[None, :]
            tl.store(y + at, u.to(y.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    dy,
    dr,
    y,
    r,
    dx,
    rows,
    scale: tl.float64,
    above: tl.float64,
    below: tl.float64,
    C,
    P,
    per_sample,
    tiles,
    LAST: tl.constexpr,
    NORM: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """dx and, unless None, rows [programs, C] of the bias's gradient; y is None where no value of it counts.

    dr may be None. With more than one chunk a program has one tile.
    """
    ACC: tl.constexpr = tl.float64 if dx.dtype.element_ty == tl.float64 else tl.float32
    scale, above, below = tl.full([], scale, ACC), tl.full([], above, ACC), tl.full([], below, ACC)
    program, first = tl.program_id(0), tl.program_id(1) * CHUNKS
    sums = tl.zeros([BLOCK_C], ACC)
    for index in range(program, tiles, tl.num_programs(0)):
        mean = tl.zeros([BLOCK_P], ACC)
        for k in tl.static_range(2 * CHUNKS):
            if k < CHUNKS or CHUNKS > 1:
                c, pixel, exists, at, mask = _place(index, first + k % CHUNKS, C, P, per_sample, LAST, BLOCK_C, BLOCK_P)
                du = tl.load(dy + at, mask=mask, other=0).to(ACC)
                if y is not None:
                    y_ = tl.load(y + at, mask=mask, other=0).to(ACC)
            if NORM and k < CHUNKS:
                mean += tl.sum(du * y_, axis=0)
            if NORM and k == CHUNKS:
                mean /= C
                factor = tl.load(r + pixel, mask=exists, other=0).to(ACC)
                if dr is not None:
                    from_r = factor * factor * tl.load(dr + pixel, mask=exists, other=0).to(ACC) / C
            if k >= CHUNKS:
                if NORM:
                    du = factor[None, :] * (du - y_ * mean[None, :])
                    if dr is not None:
                        du -= y_ * from_r[None, :]
                if y is not None:
                    du = activate(du, is_positive(y_, below), above, below)
                else:
                    du *= below
                tl.store(dx + at, (scale * du).to(dx.dtype.element_ty), mask=mask)
                if rows is not None:
                    sums += tl.sum(du, axis=1)
                    if CHUNKS > 1:
                        tl.store(rows + program.to(tl.int64) * C + c, sums, mask=c < C)
                        sums = tl.zeros([BLOCK_C], ACC)
    if rows is not None and CHUNKS == 1:
        c = first * BLOCK_C + tl.arange(0, BLOCK_C)
        tl.store(rows + program.to(tl.int64) * C + c, sums, mask=c < C)


@triton.jit
def sum_rows_kernel(rows, sums, count, C, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """sums [C] of rows [count, C]."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_R, BLOCK_C], sums.dtype.element_ty)
    for first in range(0, count, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        at = row.to(tl.int64)[:, None] * C + c[None, :]
        total += tl.load(rows + at, mask=(row < count)[:, None] & (c < C)[None, :], other=0)
    tl.store(sums + c, tl.sum(total, axis=0), mask=c < C)


@triton.jit
def double_backward_kernel(
    dy,
    g,
    g_bias,
    dr,
    y,
    r,
    d_dy,
    d_y,
    d_r,
    d_dr,
    scale: tl.float64,
    above: tl.float64,
    below: tl.float64,
    C,
    P,
    per_sample,
    LAST: tl.constexpr,
    NORM: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """d_dy and, with NORM, d_y, d_r and d_dr. g, g_bias and dr may be None, y where no value of it counts."""
    ACC: tl.constexpr = tl.float64 if d_dy.dtype.element_ty == tl.float64 else tl.float32
    scale, above, below = tl.full([], scale, ACC), tl.full([], above, ACC), tl.full([], below, ACC)
    index, first = tl.program_id(0), tl.program_id(1) * CHUNKS
    m, q, d_factor = tl.zeros([BLOCK_P], ACC), tl.zeros([BLOCK_P], ACC), tl.zeros([BLOCK_P], ACC)
    for k in tl.static_range(2 * CHUNKS):
        if k < CHUNKS or CHUNKS > 1:
            c, pixel, exists, at, mask = _place(index, first + k % CHUNKS, C, P, per_sample, LAST, BLOCK_C, BLOCK_P)
            h = tl.zeros([BLOCK_C, BLOCK_P], ACC)
            if g is not None:
                h = scale * tl.load(g + at, mask=mask, other=0).to(ACC)
            if g_bias is not None:
                h += tl.load(g_bias + c, mask=c < C, other=0).to(ACC)[:, None]
            if y is not None:
                y_ = tl.load(y + at, mask=mask, other=0).to(ACC)
                h = activate(h, is_positive(y_, below), above, below)
            else:
                h *= below
            if NORM:
                dy_ = tl.load(dy + at, mask=mask, other=0).to(ACC)
        if NORM and k < CHUNKS:
            m += tl.sum(dy_ * y_, axis=0)
            q += tl.sum(h * y_, axis=0)
        if NORM and k == CHUNKS:
            m, q = m / C, q / C
            factor = tl.load(r + pixel, mask=exists, other=0).to(ACC)
            if dr is not None:
                dr_ = tl.load(dr + pixel, mask=exists, other=0).to(ACC)
        if k >= CHUNKS:
            if NORM:
                d_factor += tl.sum(h * (dy_ - y_ * m[None, :]), axis=0)
                turned = -factor[None, :] * (h * m[None, :] + dy_ * q[None, :])
                if dr is not None:
                    turned -= h * (factor * factor * dr_ / C)[None, :]
                tl.store(d_y + at, turned.to(d_y.dtype.element_ty), mask=mask)
                h = factor[None, :] * (h - y_ * q[None, :])
            tl.store(d_dy + at, h.to(d_dy.dtype.element_ty), mask=mask)
    if NORM:
        if dr is not None:
            d_factor -= 2 * factor * dr_ * q
        tl.store(d_r + pixel, d_factor, mask=exists)
        tl.store(d_dr + pixel, -factor * factor * q, mask=exists)


class Tiling(NamedTuple):
    """How a tensor is cut. channels_last, and one pixel a sample, count as a single sample of N P pixels."""

    C: int
    P: int
    per_sample: int  # tiles of pixels in a sample
    tiles: int  # and in all
    programs_c: int  # programs that share the channels
    constants: dict
    warps: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.C, self.P, self.per_sample


def tiling(t: Tensor, last: bool, norm: bool, tensors: int) -> Tiling:
    """Of t for a kernel that holds a tile of this many tensors at once: 32 values a thread, 16 of many tensors.

    Depends on N only through the number of tiles, so that a compiled graph serves every batch size.
    """
    n, c, p = t.shape[0], int(t.shape[1]), math.prod(t.shape[2:])
    last = last or p == 1
    samples, p = (1, n * p) if last else (n, int(p))
    channels, elements = triton.next_power_of_2(c), 4096
    if last:
        block_c = min(channels, 4096 if norm else 128)
        block_p = elements // block_c
    else:
        # 16 pixels are at least 32 bytes, a sector.
        block_c = min(channels, 512) if norm else 1
        block_p = max(min(triton.next_power_of_2(p), elements // block_c, 256), 16)
        block_c = block_c if norm else min(channels, elements // block_p)
    chunks = triton.cdiv(c, block_c)
    per_sample = triton.cdiv(p, block_p)
    threads = block_c * block_p // (32 if tensors < (2 if norm else 3) else 16)
    constants = dict(LAST=last, NORM=norm, CHUNKS=chunks if norm else 1, BLOCK_C=block_c, BLOCK_P=block_p)
    warps = min(max(threads // 32, 1), 16)
    return Tiling(c, p, per_sample, samples * per_sample, 1 if norm else chunks, constants, warps)


def _slopes(act: str, slope: float, gain: float) -> tuple[float, float]:
    """(above, below): gain times the activation's slope above and below zero."""
    if act not in ("linear", "relu", "lrelu") or slope < 0 or gain < 0:
        raise ValueError(f"bias_act: act is {act!r} (linear, relu, lrelu), slope {slope} and gain {gain} (at least 0)")
    return gain, gain * {"linear": 1.0, "relu": 0.0, "lrelu": slope}[act]


def _check(x: Tensor, *, bias: Tensor | None = None, likes: tuple = (), factors: tuple = ()) -> None:
    """Refuses shapes that a kernel would read past the end of. None is what is not given; of factors, r must be."""
    check_floating("bias_act", x, bias, *likes, *factors)
    if x.ndim < 2 or (bias is not None and bias.shape != x.shape[1:2]):
        raise ValueError(f"bias_act: x is {list(x.shape)}, must be [N, C, ...] with one bias for each channel")
    if any(t is not None and t.shape != x.shape for t in likes):
        raise ValueError("bias_act: gradients must have y's shape")
    if any(t is not None and t.shape != (x.shape[0], 1, *x.shape[2:]) for t in factors):
        raise ValueError("bias_act: r and its gradient must have one value per pixel")
    if factors and factors[0] is None:
        raise ValueError("bias_act: pixel norm's gradient needs r")


def _factors(x: Tensor, pixel_norm: bool) -> Tensor:
    """An empty tensor like r."""
    return x.new_empty([x.shape[0], 1, *x.shape[2:]] if pixel_norm else [0], dtype=accumulation_dtype(x))


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _run_forward(x: Tensor, bias: Tensor | None, y: Tensor, last: bool, *epilogue) -> Tensor:
    """Writes y, in the layout of x and maybe x itself; returns r."""
    scale, act, slope, gain, pixel_norm, eps = epilogue
    above, below = _slopes(act, slope, gain)
    r = _factors(x, pixel_norm)
    if x.numel():
        t = tiling(x, last, pixel_norm, 1)
        options = (scale, above, below, eps)
        grid = (t.tiles, t.programs_c)
        launch(forward_kernel, grid, x, _contiguous(bias), y, r, *options, *t.sizes, **t.constants, num_warps=t.warps)
    return r


def forward(x: Tensor, bias: Tensor | None, *options) -> tuple[Tensor, Tensor]:
    """(x, bias, scale, act, slope, gain, pixel_norm, eps) -> (y, r); r is empty without pixel norm."""
    _check(x, bias=bias)
    y = Output(torch.empty_like(x))
    r = _run_forward(arrange(x, y.last), bias, y.buffer, y.last, *options)
    return y.finish(), r


def forward_in_place(x: Tensor, bias: Tensor | None, *options) -> Tensor:
    """As `forward`, with y written over x; returns r."""
    _check(x, bias=bias)
    last = is_channels_last(x)
    y = arrange(x, last)
    r = _run_forward(y, bias, y, last, *options)
    if y is not x:
        x.copy_(y)
    return r


def backward(dy, dr, y, r, scale, act, slope, gain, pixel_norm, bias_wanted) -> tuple[Tensor, Tensor]:
    """(dx, db); db [C] in the accumulation dtype, empty unless wanted. Two launches with it, one without."""
    _check(y, likes=(dy,), factors=(r, dr) if pixel_norm else ())
    above, below = _slopes(act, slope, gain)
    dx = Output(torch.empty_like(y))
    db = y.new_empty(y.shape[1] if bias_wanted else 0, dtype=accumulation_dtype(y))
    if not y.numel():
        return dx.finish(), db.zero_()
    t = tiling(y, dx.last, pixel_norm, 2)
    programs, rows = t.tiles, None
    if bias_wanted:
        if t.constants["CHUNKS"] == 1:
            # Rows add little to what is read and written where each is for 128 bytes of a channel.
            programs = min(t.tiles, MOST_ROWS, max(16, y.numel() // t.C * y.element_size() // 128))
        rows = db.new_empty(programs, t.C)
    launch(
        backward_kernel,
        (programs, t.programs_c),
        arrange(dy, dx.last),
        _contiguous(dr) if pixel_norm else None,
        arrange(y, dx.last) if pixel_norm or above != below else None,
        _contiguous(r) if pixel_norm else None,
        dx.buffer,
        rows,
        *(scale, above, below),
        *t.sizes,
        t.tiles,
        **t.constants,
        num_warps=t.warps,
    )
    if bias_wanted:
        launch(sum_rows_kernel, (triton.cdiv(t.C, 32),), rows, db, programs, t.C, BLOCK_R=32, BLOCK_C=32, num_warps=4)
    return dx.finish(), db


def double_backward(g, g_bias, dy, dr, y, r, scale, act, slope, gain, pixel_norm) -> tuple[Tensor, ...]:
    """(d_dy, d_y, d_r, d_dr), the last three empty without pixel norm."""
    _check(y, bias=g_bias, likes=(g, dy), factors=(r, dr) if pixel_norm else ())
    above, below = _slopes(act, slope, gain)
    d_dy, d_y = Output(torch.empty_like(y)), Output(torch.empty_like(y) if pixel_norm else _factors(y, False))
    d_r, d_dr = _factors(y, pixel_norm), _factors(y, pixel_norm)
    if y.numel():
        t = tiling(y, d_dy.last, pixel_norm, 3)
        launch(
            double_backward_kernel,
            (t.tiles, t.programs_c),
            arrange(dy, d_dy.last),
            None if g is None else arrange(g, d_dy.last),
            _contiguous(g_bias),
            _contiguous(dr) if pixel_norm else None,
            arrange(y, d_dy.last) if pixel_norm or above != below else None,
            _contiguous(r) if pixel_norm else None,
            d_dy.buffer,
            *((d_y.buffer, d_r, d_dr) if pixel_norm else (None, None, None)),
            *(scale, above, below),
            *t.sizes,
            **t.constants,
            num_warps=t.warps,
        )
    return d_dy.finish(), d_y.finish(), d_r, d_dr
