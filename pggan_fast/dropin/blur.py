"""Blurs: convolutions of each channel with one constant filter, as `ops.upfirdn2d` computes them."""

import math
from typing import Any

import torch
from torch import fx

from pggan_fast.dropin import fused
from pggan_fast.dropin.graph import Match, dtype_of, example, is_on_cpu, overwrites, shape_of
from pggan_fast.dropin.meaning import Op, meaning, pair

CPU_FROM = 1 << 16
"""Values of an image from which a CPU's blur saves more than TorchDynamo's guards of a call take."""

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_REPEATS = ("expand", "expand_as", "repeat", "repeat_interleave")
_WITH_KERNEL = ([(1, 1), (1, 1)], [(1, 1), (2, 2)])  # up and down, in any order, of a CPU's kernels for few taps
_COPIES = ("contiguous", "clone", "to", "type", "type_as")


def find(node: fx.Node, op: Op) -> Match | str | None:
    """Return the blur that ends in a convolution or transposed convolution, or why none is put in; None for others.

    It takes each channel by itself, with one filter for all of them that gets no gradient; zeros around the image and
    nearest upsampling before it belong to it.
    """
    x, weight, shape, (channels, one, *taps) = op.x, op.weight, shape_of(op.x), shape_of(op.weight) or (0, 0)
    if shape is None or len(shape) != 4 or (channels, one) != (shape[1], 1) or op.groups != shape[1]:
        return None
    if example(weight).requires_grad:
        return None
    stride, sides = pair(op.stride), op.sides(taps)
    if op.bias is not None or not all(type(n) is int and n > 0 for n in (*shape, *taps, *stride)):
        return "a blur with a bias, or of sizes that vary"
    same = dtype_of(x) == dtype_of(weight) == dtype_of(node) in _DTYPES
    if pair(op.dilation) != (1, 1) or sides is None or not same:
        return "a blur of another dtype, or whose filter has gaps"
    if (filters := _filter_of(weight, taps)) is None:
        return "its filters may differ from channel to channel"
    what, nodes, up, down, nearest = ["blur"], [*filters[:-1], node], (1, 1), stride[::-1], False
    if op.name == "transposed conv":
        extra, up, down = pair(op.output_padding), down, up
        sides = [(k - 1 - p[0], k - s - p[0] + e) for k, p, s, e in zip(taps, sides, stride, extra, strict=True)]
    else:
        before = _before(x)
        if before is not None and before.name == "pad":
            left, right, top, bottom = (*before.pad, 0, 0, 0, 0)[:4]
            sides = [(sides[0][0] + top, sides[0][1] + bottom), (sides[1][0] + left, sides[1][1] + right)]
            nodes, x = [x, *nodes], before.x
            before = _before(x)
        if before is not None and before.name == "up":
            what, nodes, x = ["nearest upsampling", "blur"], [*before.nodes, *nodes], before.x
            sides, up, nearest = [(first + 1, last) for first, last in sides], (2, 2), True
    has_kernel = taps[0] == taps[1] and taps[0] + nearest in (3, 4) and sorted((up, down)) in _WITH_KERNEL
    if is_on_cpu(node) and not (has_kernel and math.prod(shape) >= CPU_FROM):
        return "a blur of few values or of many taps: on a CPU torch's convolution of single channels is as fast"
    (top, bottom), (left, right) = sides
    options = dict(nearest=nearest, up=up, down=down, padding=(left, right, top, bottom))
    options["flip_filter"] = op.name == "conv"
    return Match(fused.blur, what, nodes, (x, filters[-1]), options)


def _before(x: Any) -> Op | None:
    """The meaning of an image that nothing else reads, and which has the dtype of what it was made of."""
    op = meaning(x) if isinstance(x, fx.Node) and len(x.users) == 1 else None
    return op if op is not None and dtype_of(op.x) == dtype_of(x) else None


def _filter_of(weight: fx.Node, taps: list[int]) -> list[fx.Node] | None:
    """The nodes from a weight [C, 1, kh, kw] up to the one filter of kh * kw values that all its channels repeat."""
    nodes = [weight]
    while math.prod(shape_of(nodes[-1])) != math.prod(taps):
        node = nodes[-1]
        if node.op != "call_method" or node.target not in (*_REPEATS, *_COPIES) or overwrites(node):
            return None
        source = node.args[0]
        if dtype_of(source) != dtype_of(weight) or (shape_of(source) or ())[-2:] != (*taps,):
            return None
        nodes.append(source)
    return nodes
