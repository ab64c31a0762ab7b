"""filtered_lrelu: bias, upsample with a filter, activate, clamp, downsample with a filter, in one launch.

A program makes a tile of outputs of one plane; what is between input and output exists in registers and, while taps
read it, in shared memory:

    x           [BLOCK_IN, BLOCK_IN]                        inputs under the tile, bias added
    along rows  [PHASES, BLOCK_IN, BLOCK_GRID / PHASES]     filtered up along rows
    grid        [4, PHASES * BLOCK_GRID / 4, BLOCK_GRID / PHASES]
                                                            filtered up along columns, activated or masked
    halved      [BLOCK_GRID, BLOCK_OUT]                     filtered down along rows
    y           [BLOCK_OUT, BLOCK_OUT]                      filtered down along columns

A grid column is PHASES * i + phase and a grid row 4 * i + phase, phases first: all values of a phase have the same
taps, a byte of the mask, which has four rows, is a sum within a thread, and neighbouring threads read neighbouring
values. Blocks are powers of two, of which a tile uses what its taps leave. Arithmetic is in fp32 (fp64 for fp64).

mask: uint8 [N, C, ceil(grid_h / 4), STEP, ceil(grid_w / STEP)], STEP = lcm(up, down), as in
pggan_fast/ops/filtered_lrelu.py.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pggan_fast.kernels.tensors import (
    cdiv,
    check_floating,
    is_channels_last,
    launch,
    next_power_of_2,
    scalar,
    scalar_args,
)

MOST_TAPS, MOST_FACTOR = 24, 4
"""Filters and factors up to these leave a tile enough outputs."""

CLAMPED = tl.constexpr(0xAA)
"""A byte of the mask whose four values are all clamped, so that they are 0."""


@triton.jit
def _floor_div(a, b: tl.constexpr):
    """Return a / b rounded down; Triton's // rounds towards zero."""
    quotient = a // b
    return quotient - (quotient * b > a).to(tl.int32)


@triton.jit
def _first_input(index, phase, skip, UNIT: tl.constexpr, UP: tl.constexpr):
    """Return, for grid positions UNIT * index + phase, the first input under each, and the tap that multiplies it.

    skip: position 0, counted from the last input before it. Inputs are counted from the first one at it or behind it.
    """
    if UNIT % UP == 0:
        reach = (skip + phase + UP - 1) // UP
        return index * (UNIT // UP) + reach - (skip + UP - 1) // UP, reach * UP - skip - phase
    else:
        position = UNIT * index + phase
        reach = (skip + position + UP - 1) // UP
        return reach - (skip + UP - 1) // UP, reach * UP - skip - position


@triton.jit
def _filter(
    values,
    offs,
    position,
    first_tap,
    f_ptr,
    TAPS: tl.constexpr,
    STRIDE: tl.constexpr,
    CHUNK: tl.constexpr,
    PHASES: tl.constexpr,
    PHASE_STRIDE: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    FLIP: tl.constexpr,
):
    """Return the sums over j of f[first_tap + STRIDE * j] * values.flat[offs + offset of position + j].

    offs: [A, B, C], to which position and first_tap broadcast; first_tap < STRIDE. Position p lies at
    p % PHASES * PHASE_STRIDE + p / PHASES * VALUE_STRIDE. CHUNK taps at a time share one copy to shared memory.
    """
    flat = values.reshape(values.numel)
    total = tl.zeros(offs.shape, values.dtype)
    for chunk in range((TAPS + STRIDE * CHUNK - 1) // (STRIDE * CHUNK)):
        j = tl.arange(0, CHUNK)[:, None, None, None]
        # Coefficients one by one: as a tensor of their own they would have a layout of their own.
        weight = tl.zeros([CHUNK, 1, 1, 1], values.dtype)
        for i in tl.static_range(CHUNK * STRIDE):
            k = chunk * CHUNK * STRIDE + i
            coefficient = tl.load(f_ptr + (k if FLIP else TAPS - 1 - k), mask=k < TAPS, other=0).to(values.dtype)
            weight = tl.where((j == i // STRIDE) & (first_tap[None] == i % STRIDE), coefficient, weight)
        tap = chunk * CHUNK + j
        place = position[None] + tap % PHASES
        shift = place % PHASES * PHASE_STRIDE + (place // PHASES + tap // PHASES) * VALUE_STRIDE
        index = (offs[None] + shift).reshape(CHUNK * offs.numel)
        read = tl.gather(flat, index, 0).reshape(CHUNK, offs.shape[0], offs.shape[1], offs.shape[2])
        if TAPS % (STRIDE * CHUNK) != 0:  # a value that no tap multiplies may be infinite
            read = tl.where(first_tap[None] + tap * STRIDE < TAPS, read, 0)
        total += tl.sum(read * weight, 0)
    return total


@triton.jit
def filtered_lrelu_kernel(
    x_ptr,
    bias_ptr,
    fu_ptr,
    fd_ptr,
    mask_in_ptr,
    mask_out_ptr,
    y_ptr,
    gain,
    slope,
    clamp,
    C,
    h,
    w,
    gh,
    gw,
    oh,
    ow,
    x0,
    y0,
    left,
    top,
    tiles_x,
    tiles_y,
    mask_h,
    mask_w,
    UP: tl.constexpr,
    DOWN: tl.constexpr,
    UP_TAPS: tl.constexpr,
    DOWN_TAPS: tl.constexpr,
    UP_CHUNK: tl.constexpr,
    DOWN_CHUNK: tl.constexpr,
    FLIP: tl.constexpr,
    STEP: tl.constexpr,
    PHASES: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    INPUTS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_GRID: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """Write a tile [TILE_H, TILE_W] of y and, with mask_out_ptr, the mask; with mask_in_ptr multiply by a mask instead.

    Grid: tiles of a plane, x first, times planes. The grid under a tile of a plane has its origin at (gy, gx), gy a
    multiple of 4, and ends at (gh, gw), behind which it is 0, as it is before (0, 0).
    """
    ACC: tl.constexpr = tl.float64 if y_ptr.dtype.element_ty == tl.float64 else tl.float32
    ROWS: tl.constexpr = BLOCK_GRID // 4
    COLUMNS: tl.constexpr = BLOCK_GRID // PHASES
    MOST_IN: tl.constexpr = BLOCK_IN - (UP_TAPS + UP * UP_CHUNK - 1) // (UP * UP_CHUNK) * UP_CHUNK
    pid = tl.program_id(0)
    tile_x, tile_y = pid % tiles_x, pid // tiles_x % tiles_y
    plane = (pid // tiles_x // tiles_y).to(tl.int64)
    oy, ox = tile_y * TILE_H, tile_x * TILE_W
    gy, gx = _floor_div(oy * DOWN - top, 4) * 4, ox * DOWN - left
    iy, ix = -_floor_div(y0 - gy, UP), -_floor_div(x0 - gx, UP)
    skip_y, skip_x = gy - y0 - _floor_div(gy - y0, UP) * UP, gx - x0 - _floor_div(gx - x0, UP) * UP

    row, column = tl.arange(0, BLOCK_IN)[None, :, None], tl.arange(0, BLOCK_IN)[None, None, :]
    inside = (row < INPUTS) & (iy + row >= 0) & (iy + row < h)
    inside = inside & (column < INPUTS) & (ix + column >= 0) & (ix + column < w)
    x = tl.load(x_ptr + (plane * h + iy + row) * w + ix + column, mask=inside, other=0).to(ACC)
    if bias_ptr is not None:
        x = tl.where(inside, x + tl.load(bias_ptr + plane % C).to(ACC), 0)

    # [PHASES, BLOCK_IN, COLUMNS]. Positions behind those that the tile needs may read any input.
    i, phase = tl.arange(0, COLUMNS)[None, None, :], tl.arange(0, PHASES)[:, None, None]
    first, first_tap = _first_input(i, phase, skip_x, PHASES, UP)
    offs = row * BLOCK_IN + tl.where(first <= MOST_IN, first, 0)
    rows = _filter(x, offs, 0 * i, first_tap, fu_ptr, UP_TAPS, UP, UP_CHUNK, 1, 0, 1, FLIP) * scalar(gain, ACC)

    # [4, PHASES * ROWS, COLUMNS]
    j, q = tl.arange(0, 4)[:, None, None], tl.arange(0, PHASES * ROWS)[None, :, None]
    phase, q = q // ROWS, q % ROWS
    first, first_tap = _first_input(q, j, skip_y, 4, UP)
    offs = (phase * BLOCK_IN + tl.where(first <= MOST_IN, first, 0)) * COLUMNS + i
    v = _filter(rows, offs, 0 * i, first_tap, fu_ptr, UP_TAPS, UP, UP_CHUNK, 1, 0, COLUMNS, FLIP)

    grid_row, grid_column, mask_row = gy + 4 * q + j, gx + PHASES * i + phase, gy // 4 + q
    mask_offs = ((plane * mask_h + mask_row) * STEP + grid_column % STEP) * mask_w + grid_column // STEP
    if mask_in_ptr is not None:
        inside = (mask_row >= 0) & (mask_row < mask_h) & (grid_column >= 0) & (grid_column < gw)
        bits = tl.load(mask_in_ptr + mask_offs, mask=inside, other=CLAMPED).to(tl.int32) >> 2 * j
        v = tl.where(bits & 1 != 0, v * scalar(slope, ACC), v)
        v = tl.where((bits & 2 != 0) | (grid_row >= gh), 0, v)
    else:
        # No output of the forward pass reads a value before the grid's beginning, and none that is kept one behind it.
        limit = scalar(clamp, ACC)
        negative = v <= 0
        # A product with a slope of 0 would make NaN of infinity.
        v = tl.where(negative, tl.where(scalar(slope, ACC) == 0, 0, v * scalar(slope, ACC)), v)
        clamped = tl.abs(v) >= limit
        if mask_out_ptr is not None:
            bits = tl.where(negative, 1 << 2 * j, 0) | tl.where(clamped, 2 << 2 * j, 0)
            bits = tl.sum(tl.where(grid_row < gh, bits, 0), 0, keep_dims=True)
            bits = tl.where(grid_column < gw, bits, 0)
            # Tiles overlap: each writes the bytes from its origin to the next one's, the last all that are left.
            own_y = (4 * q < TILE_H * DOWN) | (tile_y == tiles_y - 1)
            own_x = (PHASES * i + phase < TILE_W * DOWN) | (tile_x == tiles_x - 1)
            own = own_y & own_x & (mask_row < mask_h) & (grid_column < STEP * mask_w)
            tl.store(mask_out_ptr + mask_offs, bits.to(tl.uint8), mask=own)
        v = tl.where(clamped, tl.where(v > 0, limit, -limit), v)

    # [1, 4 * ROWS, BLOCK_OUT]
    q, column = tl.arange(0, BLOCK_GRID)[None, :, None], tl.arange(0, BLOCK_OUT)[None, None, :]
    offs = (q // ROWS * PHASES * ROWS + q % ROWS) * COLUMNS + 0 * column
    position = tl.where(column < TILE_W, column, 0) * DOWN
    halved = _filter(v, offs, position, 0 * column, fd_ptr, DOWN_TAPS, 1, DOWN_CHUNK, PHASES, ROWS * COLUMNS, 1, FLIP)
    halved = halved.reshape(4, ROWS, BLOCK_OUT).permute(1, 0, 2)

    # [1, BLOCK_OUT, BLOCK_OUT]
    row = tl.arange(0, BLOCK_OUT)[None, :, None]
    offs = (tl.where(row < TILE_H, row, 0) * DOWN + oy * DOWN - top - gy) * BLOCK_OUT + column
    y = _filter(halved, offs, 0 * column, 0 * column, fd_ptr, DOWN_TAPS, 1, DOWN_CHUNK, 1, 0, BLOCK_OUT, FLIP)
    inside = (row < TILE_H) & (oy + row < oh) & (column < TILE_W) & (ox + column < ow)
    tl.store(y_ptr + (plane * oh + oy + row) * ow + ox + column, y.to(y_ptr.dtype.element_ty), mask=inside)


class Tile(NamedTuple):
    """Outputs that a program makes, inputs that it reads for them along an axis, the powers of two that hold them, and
    how many taps share a copy to shared memory."""

    h: int
    w: int
    inputs: int
    block_in: int
    block_grid: int
    block_out: int
    up_chunk: int
    down_chunk: int

    def operations(self, up: int, up_taps: int, down_taps: int) -> int:
        """Return the products of a value and a tap of a program, those that no output needs among them."""
        n, grid, out, up_taps = self.block_in, self.block_grid, self.block_out, cdiv(up_taps, up)
        return (n * grid + grid * grid) * up_taps + (grid * out + out * out) * down_taps


@lru_cache(maxsize=256)
def choose_tile(up: int, down: int, up_taps: int, down_taps: int, oh: int, ow: int, align: int, itemsize: int) -> Tile:
    """Return the tile with the fewest operations for a plane of oh x ow outputs.

    align: grid rows of a tile before the first that an output needs.
    """
    step = math.lcm(up, down)
    up_chunk, down_chunk = min(next_power_of_2(cdiv(up_taps, up)), 2), min(next_power_of_2(down_taps), 4)
    reach_up, reach = cdiv(up_taps, up * up_chunk) * up_chunk, cdiv(down_taps, down_chunk) * down_chunk
    rows = 4 // math.gcd(4, down)  # outputs whose grid rows are whole bytes of the mask
    fits = []
    # A grid of 128 in fp64 is larger than shared memory; with a factor of 3 its taps are more than registers hold.
    for grid in (64, 32) if itemsize == 8 or 3 in (up, down) else (128, 64, 32):
        for block_in in (grid // 4, grid // 2, grid):
            usable = min(grid, (block_in - reach_up) * up + 1)
            # The last tile also writes the mask's columns behind the grid, at most step - 1.
            w = (usable - max(reach, down_taps + step - 1)) // down + 1
            h = ((usable - align - reach) // down + 1) // rows * rows
            if min(h, w) > 0:
                out = next_power_of_2(max(h, w))
                inputs = min(block_in, cdiv((max(h, w) - 1) * down + align + reach - 1, up) + reach_up)
                fits.append(Tile(h, w, inputs, block_in, grid, out, up_chunk, down_chunk))
    return min(fits, key=lambda t: cdiv(oh, t.h) * cdiv(ow, t.w) * t.operations(up, up_taps, down_taps))


def forward(
    x: Tensor,
    bias: Tensor | None,
    fu: Tensor,
    fd: Tensor,
    up: int,
    down: int,
    x0: int,
    x1: int,
    y0: int,
    y1: int,
    flip_filter: bool,
    gain: float,
    slope: float,
    clamp: float | None,
    keep_mask: bool,
) -> tuple[Tensor, Tensor]:
    """Return (y in x's dtype and layout, the mask or nothing)."""
    check_floating("filtered_lrelu", x, bias, fu, fd)
    n, c, h, w = x.shape
    taps = fu.numel() + fd.numel() - 2
    oh, ow = (h * up + y0 + y1 - taps - 1) // down + 1, (w * up + x0 + x1 - taps - 1) // down + 1
    gh, gw = (oh - 1) * down + fd.numel(), (ow - 1) * down + fd.numel()
    step = math.lcm(up, down)
    shape = (n, c, cdiv(gh, 4), step, cdiv(gw, step)) if keep_mask else (0,)
    mask = torch.empty(shape, dtype=torch.uint8, device=x.device)
    scalars = (up**2 * gain, slope, math.inf if clamp is None else clamp)
    sizes, origins = (gh, gw, oh, ow), (x0, y0, 0, 0)
    masks = (None, mask if keep_mask else None)
    return _run(x, bias, fu, fd, masks, scalars, sizes, origins, up, down, flip_filter), mask


def masked(
    x: Tensor,
    mask: Tensor,
    fu: Tensor,
    fd: Tensor,
    up: int,
    down: int,
    x0: int,
    y0: int,
    left: int,
    top: int,
    grid_h: int,
    grid_w: int,
    out_h: int,
    out_w: int,
    flip_filter: bool,
    gain: float,
    slope: float,
) -> Tensor:
    """Return y [N, C, out_h, out_w] of the linear map that the mask stands for, in x's dtype and layout."""
    check_floating("filtered_lrelu", x, fu, fd)
    step = math.lcm(up, down)
    if mask.dtype != torch.uint8 or mask.shape != (*x.shape[:2], cdiv(grid_h, 4), step, cdiv(grid_w, step)):
        raise ValueError(f"filtered_lrelu: the mask is not one of this size: {mask.dtype}, {list(mask.shape)}")
    sizes, origins = (grid_h, grid_w, out_h, out_w), (x0, y0, left, top)
    scalars = (gain, slope, math.inf)
    return _run(x, None, fu, fd, (mask.contiguous(), None), scalars, sizes, origins, up, down, flip_filter)


def _run(x, bias, fu, fd, masks, scalars, sizes, origins, up: int, down: int, flip_filter: bool) -> Tensor:
    """Write y; masks: (read, written); sizes of the grid and the output; origins: (x0, y0, left, top)."""
    up_taps, down_taps = fu.numel(), fd.numel()
    if max(up, down) > MOST_FACTOR or max(up_taps, down_taps) > MOST_TAPS:
        raise ValueError(f"filtered_lrelu: filters of at most {MOST_TAPS} taps and factors up to {MOST_FACTOR}")
    (n, c, h, w), (gh, gw, oh, ow) = x.shape, sizes
    y = torch.empty((n, c, oh, ow), dtype=x.dtype, device=x.device)
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    if y.numel() == 0:
        return y.contiguous(memory_format=memory_format)
    step = math.lcm(up, down)
    tile = choose_tile(up, down, up_taps, down_taps, int(oh), int(ow), int(-origins[3] % 4), x.element_size())
    tiles_x, tiles_y = cdiv(ow, tile.w), cdiv(oh, tile.h)
    launch(
        filtered_lrelu_kernel,
        (n * c * tiles_x * tiles_y,),
        x.contiguous(),
        None if bias is None else bias.contiguous(),
        fu.contiguous(),
        fd.contiguous(),
        *masks,
        y,
        *scalar_args(y.dtype, *scalars),
        c,
        h,
        w,
        *sizes,
        *origins,
        tiles_x,
        tiles_y,
        cdiv(gh, 4),
        cdiv(gw, step),
        UP=up,
        DOWN=down,
        UP_TAPS=up_taps,
        DOWN_TAPS=down_taps,
        UP_CHUNK=tile.up_chunk,
        DOWN_CHUNK=tile.down_chunk,
        FLIP=flip_filter,
        STEP=step,
        PHASES=step if step in (1, 2, 4) else 1,
        TILE_H=tile.h,
        TILE_W=tile.w,
        INPUTS=tile.inputs,
        BLOCK_IN=tile.block_in,
        BLOCK_GRID=tile.block_grid,
        BLOCK_OUT=tile.block_out,
        num_warps=max(2, tile.block_grid**2 // 1024),  # a single warp would gather by shuffles, a register at a time
    )
    return y.contiguous(memory_format=memory_format)
