"""minibatch_stddev and its gradients; the formulas stand in pggan_fast/ops/stddev.py.

A program takes BLOCK neighbouring positions of one map of all samples of a group, so that mean and deviation stay in
its registers. Statistics that all programs of a map share are one number from each, which the next kernel adds up.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.tensors import (
    Output,
    accumulation_dtype,
    arrange,
    cdiv,
    check_floating,
    is_channels_last,
    launch,
    next_power_of_2,
    scalar,
    scalar_args,
)


@triton.jit
def _samples(index, groups, group, STRIDED: tl.constexpr, GROUP: tl.constexpr):
    """Return the numbers of a group's samples, and which of them exist."""
    i = tl.arange(0, GROUP)
    sample = i * groups + index if STRIDED else index * group + i
    return sample.to(tl.int64), i < group


@triton.jit
def _positions(
    groups, group, maps, rows, row_len, map_len, blocks, STRIDED: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr
):
    """Offsets [GROUP, BLOCK] of a program's values in a tensor like x and in one with maps, a mask, and which positions
    [BLOCK] exist.

    A sample is `rows` rows of `row_len` values; one with maps has maps * map_len more behind each.
    """
    share = tl.program_id(0) // blocks
    sample, exists = _samples(share // maps, groups, group, STRIDED, GROUP)
    part = row_len // maps
    i = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, column = i // part, share % maps * part + i % part
    wide = row_len + maps * map_len
    narrow_offs = (sample * rows * row_len)[:, None] + (row * row_len + column)[None, :]
    wide_offs = (sample * rows * wide)[:, None] + (row * wide + column)[None, :]
    inside = i < rows * part
    return narrow_offs, wide_offs, exists[:, None] & inside[None, :], inside


@triton.jit
def _centred(x, mask, group):
    """x [GROUP, BLOCK] minus its mean over the group; values are 0 outside the mask, and stay so.

    The mean is rounded, so the distances from it do not sum to zero: their own mean is taken off as well. Gradients
    keep the digits that the values share.
    """
    for _ in tl.static_range(2):
        x = tl.where(mask, x - (tl.sum(x, axis=0) / group)[None, :], 0.0)
    return x


@triton.jit
def _moments(x, mask, group, divisor, eps):
    """x minus its mean over the group, and the deviation [BLOCK], of values that are 0 outside the mask."""
    centred = _centred(x, mask, group)
    return centred, tl.sqrt(tl.sum(centred * centred, axis=0) / divisor + eps)


@triton.jit
def forward_kernel(
    x_ptr,
    y_ptr,
    sums_ptr,
    divisor,
    eps,
    groups,
    group,
    maps,
    rows,
    row_len,
    map_len,
    blocks,
    STRIDED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy x into y; each program leaves the sum of its deviations."""
    ACC: tl.constexpr = sums_ptr.dtype.element_ty
    offs, wide_offs, mask, inside = _positions(
        groups, group, maps, rows, row_len, map_len, blocks, STRIDED, GROUP, BLOCK
    )
    v = tl.load(x_ptr + offs, mask=mask, other=0)
    tl.store(y_ptr + wide_offs, v, mask=mask)
    _, s = _moments(v.to(ACC), mask, group, scalar(divisor, ACC), scalar(eps, ACC))
    tl.store(sums_ptr + tl.program_id(0), tl.sum(tl.where(inside, s, 0.0), axis=0))


@triton.jit
def write_maps_kernel(
    sums_ptr,
    y_ptr,
    factor,
    groups,
    group,
    maps,
    rows,
    row_len,
    map_len,
    blocks,
    map_blocks,
    STRIDED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Fill a map of a group's samples with factor times the sum of its `blocks` sums."""
    ACC: tl.constexpr = sums_ptr.dtype.element_ty
    share = tl.program_id(0) // map_blocks
    total = tl.zeros([BLOCK], ACC)
    for first in range(0, blocks, BLOCK):
        i = first + tl.arange(0, BLOCK)
        total += tl.load(sums_ptr + share.to(tl.int64) * blocks + i, mask=i < blocks, other=0)
    value = tl.sum(total, axis=0) * scalar(factor, ACC)
    sample, exists = _samples(share // maps, groups, group, STRIDED, GROUP)
    wide = row_len + maps * map_len
    i = (tl.program_id(0) % map_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    offs = i // map_len * wide + row_len + share % maps * map_len + i % map_len
    mask = exists[:, None] & (i < rows * map_len)[None, :]
    filled = tl.full([GROUP, BLOCK], 0, ACC) + value
    tl.store(y_ptr + (sample * rows * wide)[:, None] + offs[None, :], filled.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def sum_maps_kernel(
    dy_ptr,
    gradients_ptr,
    factor,
    groups,
    group,
    maps,
    rows,
    row_len,
    map_len,
    STRIDED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write T of the formulas times factor, the sum of a map's gradient over a group and all pixels."""
    ACC: tl.constexpr = gradients_ptr.dtype.element_ty
    share = tl.program_id(0)
    sample, exists = _samples(share // maps, groups, group, STRIDED, GROUP)
    wide = row_len + maps * map_len
    total = tl.zeros([GROUP, BLOCK], ACC)
    for first in range(0, rows * map_len, BLOCK):
        i = (first + tl.arange(0, BLOCK)).to(tl.int64)
        offs = i // map_len * wide + row_len + share % maps * map_len + i % map_len
        mask = exists[:, None] & (i < rows * map_len)[None, :]
        total += tl.load(dy_ptr + (sample * rows * wide)[:, None] + offs[None, :], mask=mask, other=0).to(ACC)
    tl.store(gradients_ptr + share, tl.sum(tl.sum(total, axis=1), axis=0) * scalar(factor, ACC))


@triton.jit
def backward_kernel(
    dy_ptr,
    x_ptr,
    gradients_ptr,
    dx_ptr,
    divisor,
    eps,
    groups,
    group,
    maps,
    rows,
    row_len,
    map_len,
    blocks,
    STRIDED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write dx, from dy and each map's gradient."""
    ACC: tl.constexpr = gradients_ptr.dtype.element_ty
    offs, wide_offs, mask, inside = _positions(
        groups, group, maps, rows, row_len, map_len, blocks, STRIDED, GROUP, BLOCK
    )
    gradient = tl.load(gradients_ptr + tl.program_id(0) // blocks)
    v = tl.load(x_ptr + offs, mask=mask, other=0).to(ACC)
    centred, s = _moments(v, mask, group, scalar(divisor, ACC), scalar(eps, ACC))
    out = tl.load(dy_ptr + wide_offs, mask=mask, other=0).to(ACC)
    out += centred * (gradient / s)[None, :]
    tl.store(dx_ptr + offs, out.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def double_backward_kernel(
    g_ptr,
    x_ptr,
    gradients_ptr,
    d_dy_ptr,
    dx_ptr,
    sums_ptr,
    divisor,
    eps,
    groups,
    group,
    maps,
    rows,
    row_len,
    map_len,
    blocks,
    STRIDED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Copy g into d_dy and write dx; each program leaves its sum of a / s."""
    ACC: tl.constexpr = gradients_ptr.dtype.element_ty
    offs, wide_offs, mask, inside = _positions(
        groups, group, maps, rows, row_len, map_len, blocks, STRIDED, GROUP, BLOCK
    )
    gradient = tl.load(gradients_ptr + tl.program_id(0) // blocks)
    divisor, eps = scalar(divisor, ACC), scalar(eps, ACC)
    v = tl.load(x_ptr + offs, mask=mask, other=0).to(ACC)
    centred, s = _moments(v, mask, group, divisor, eps)
    g = tl.load(g_ptr + offs, mask=mask, other=0)
    tl.store(d_dy_ptr + wide_offs, g, mask=mask)
    h = _centred(g.to(ACC), mask, group)
    a_over_s = tl.sum(h * centred, axis=0) / s
    if GROUP == 2:
        # Of two samples, h is a multiple of x - mean and what eps leaves of it is less than rounding would.
        out = h * (gradient / s * (eps / s / s))[None, :]
    else:
        out = (h - centred * (a_over_s / s / divisor)[None, :]) * (gradient / s)[None, :]
    tl.store(dx_ptr + offs, out.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(tl.where(inside, a_over_s, 0.0), axis=0))


class Samples(NamedTuple):
    """How a batch is cut. contiguous: a sample is one row of C P values; channels_last: P rows of C."""

    groups: int
    group: int
    maps: int
    rows: int
    row_len: int
    map_len: int
    blocks: int  # programs for each map of each group
    constants: dict

    @property
    def sizes(self) -> tuple:
        return self[:6]

    @property
    def shares(self) -> int:
        """Maps of all groups."""
        return self.groups * self.maps

    @property
    def elements(self) -> int:
        """E of the formulas: values of a sample that a map's mean is over."""
        return self.rows * self.row_len // self.maps


def samples_of(x: Tensor, channels_last: bool, group: int, maps: int, strided: bool) -> Samples:
    n, c, h, w = x.shape
    if group < 1 or maps < 1 or n % group or c % maps:
        raise ValueError(f"minibatch_stddev: groups of {group} and {maps} maps do not divide [{n}, {c}]")
    rows, row_len, map_len = (h * w, c, 1) if channels_last else (1, c * h * w, h * w)
    size = next_power_of_2(group)
    block = max(4096 // size, 16)
    blocks = cdiv(rows * (row_len // maps), block)
    return Samples(
        n // group, group, maps, rows, row_len, map_len, blocks, dict(STRIDED=strided, GROUP=size, BLOCK=block)
    )


def _check(x: Tensor, *narrow: Tensor, wide: Tensor | None = None, maps: int = 0) -> None:
    """Refuse shapes that a kernel would read past the end of."""
    check_floating("minibatch_stddev", x, *narrow, wide)
    if x.ndim != 4 or any(t.shape != x.shape for t in narrow):
        raise ValueError(f"minibatch_stddev: x is {list(x.shape)}, must be [N, C, H, W], and a gradient like it")
    if wide is not None and wide.shape != (x.shape[0], x.shape[1] + maps, *x.shape[2:]):
        raise ValueError(f"minibatch_stddev: dy is {list(wide.shape)}, must have {maps} channels more than x")


def _write_maps(sums: Tensor, y: Tensor, factor: float, s: Samples) -> None:
    constants = s.constants | {"BLOCK": 64}
    # One dimension, as the others of a grid end at 65,535.
    map_blocks = cdiv(s.rows * s.map_len, 64)
    scalars = scalar_args(sums.dtype, factor)
    launch(write_maps_kernel, (s.shares * map_blocks,), sums, y, *scalars, *s.sizes, s.blocks, map_blocks, **constants)


def _sum_maps(dy: Tensor, s: Samples, divisor: int) -> Tensor:
    gradients = dy.new_empty(s.shares, dtype=accumulation_dtype(dy))
    constants = s.constants | {"BLOCK": 64}
    scalars = scalar_args(gradients.dtype, 1 / (divisor * s.elements))
    launch(sum_maps_kernel, (s.shares,), dy, gradients, *scalars, *s.sizes, **constants)
    return gradients


def forward(x: Tensor, group: int, num_channels: int, eps: float, strided: bool, correction: int) -> Tensor:
    """y [N, C + num_channels, H, W]. Two launches."""
    _check(x)
    n, c, h, w = x.shape
    channels_last = is_channels_last(x)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.empty([n, c + num_channels, h, w], dtype=x.dtype, device=x.device, memory_format=memory_format)
    if x.numel():
        s = samples_of(x, channels_last, group, num_channels, strided)
        sums = x.new_empty(s.shares * s.blocks, dtype=accumulation_dtype(x))
        scalars = scalar_args(sums.dtype, float(max(group - correction, 1)), eps)
        launch(
            forward_kernel,
            (sums.numel(),),
            arrange(x, channels_last),
            y,
            sums,
            *scalars,
            *s.sizes,
            s.blocks,
            **s.constants,
        )
        _write_maps(sums, y, 1 / s.elements, s)
    return y


def backward(
    dy: Tensor, x: Tensor, group: int, num_channels: int, eps: float, strided: bool, correction: int
) -> Tensor:
    """dx. Two launches."""
    _check(x, wide=dy, maps=num_channels)
    dx = Output(torch.empty_like(x))
    if x.numel():
        s = samples_of(x, dx.channels_last, group, num_channels, strided)
        divisor = max(group - correction, 1)
        dy = arrange(dy, dx.channels_last)
        gradients = _sum_maps(dy, s, divisor)
        tensors = (dy, arrange(x, dx.channels_last), gradients, dx.buffer)
        grid = (s.shares * s.blocks,)
        # Rows of C + maps values are unaligned: with 32 values to a thread, 8.0 spills.
        options = dict(num_warps=8 if dx.channels_last else 4)
        launch(
            backward_kernel,
            grid,
            *tensors,
            *scalar_args(gradients.dtype, float(divisor), eps),
            *s.sizes,
            s.blocks,
            **s.constants,
            **options,
        )
    return dx.finish()


def double_backward(
    g: Tensor, dy: Tensor, x: Tensor, group: int, num_channels: int, eps: float, strided: bool, correction: int
) -> tuple[Tensor, Tensor]:
    """(d_dy, dx). Three launches."""
    _check(x, g, wide=dy, maps=num_channels)
    d_dy, dx = torch.empty_like(dy), Output(torch.empty_like(x))
    channels_last = dx.channels_last
    if x.numel():
        s = samples_of(x, channels_last, group, num_channels, strided)
        divisor = max(group - correction, 1)
        gradients = _sum_maps(arrange(dy, channels_last), s, divisor)
        sums = gradients.new_empty(s.shares * s.blocks)
        # d_dy is laid out as dy, which may not be as x is.
        buffer = arrange(d_dy, channels_last)
        tensors = (arrange(g, channels_last), arrange(x, channels_last), gradients, buffer, dx.buffer, sums)
        launch(
            double_backward_kernel,
            (sums.numel(),),
            *tensors,
            *scalar_args(gradients.dtype, float(divisor), eps),
            *s.sizes,
            s.blocks,
            **s.constants,
        )
        _write_maps(sums, buffer, 1 / (divisor * s.elements), s)
        if buffer is not d_dy:
            d_dy.copy_(buffer)
    return d_dy, dx.finish()
