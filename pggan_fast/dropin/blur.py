"""Blurs: convolutions of each channel with one constant filter, as `ops.upfirdn2d` computes them."""

import math
from typing import Any

import torch
from torch import fx

from pggan_fast.dropin import fused
from pggan_fast.dropin.graph import Match, dtype_of, example, is_on_cpu, overwrites, shape_of
from pggan_fast.dropin.meaning import Op, meaning

CPU_FROM = 1 << 18
"""Values of an image from which a CPU makes it by nearest upsampling and blurs it with 3 x 3 faster in one pass."""

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_REPEATS = ("expand", "expand_as", "repeat", "repeat_interleave")
_COPIES = ("contiguous", "clone", "to", "type", "type_as")


def find(node: fx.Node, op: Op) -> Match | str | None:
    """Return the blur that ends in a convolution or transposed convolution, or why none is put in; None for others.

    It takes each channel by itself, with one filter for all of them that gets no gradient; zeros around the image and
    nearest upsampling before it belong to it.
    """
    x, (weight, bias), given = op.x, op.other, op.options
    shape, taps = shape_of(x), (shape_of(weight) or ())[2:]
    if shape is None or len(shape) != 4 or not taps or shape_of(weight)[:2] != (shape[1], 1):
        return None
    if given["groups"] != shape[1] or example(weight).requires_grad:
        return None
    if bias is not None or not all(type(n) is int and n > 0 for n in (*shape, *taps)):
        return "a blur with a bias, or of sizes that vary"
    stride, padding = _pair(given["stride"]), _padding(given["padding"], taps)
    same = dtype_of(x) == dtype_of(weight) == dtype_of(node) in _DTYPES
    if _pair(given["dilation"]) != (1, 1) or padding is None or not same:
        return "a blur of another dtype, or whose filter has gaps"
    if (filters := _filter_of(weight, taps)) is None:
        return "its filters may differ from channel to channel"
    what, nodes, options = ["blur"], [*filters[:-1], node], {"nearest": False, "up": (1, 1)}
    if op.name == "transposed conv":
        extra = _pair(given["output_padding"])
        sides = [(k - 1 - p[0], k - s - p[0] + e) for k, p, s, e in zip(taps, padding, stride, extra, strict=True)]
        options |= {"up": stride[::-1], "down": (1, 1), "flip_filter": False}
    else:
        sides, before = padding, _before(x)
        if before is not None and before.name == "pad" and _adds_pixels(before):
            left, right, top, bottom = (*before.options["pad"], 0, 0, 0, 0)[:4]
            sides = [(sides[0][0] + top, sides[0][1] + bottom), (sides[1][0] + left, sides[1][1] + right)]
            nodes, x = [x, *nodes], before.x
            before = _before(x)
        options |= {"down": stride[::-1], "flip_filter": True}
        if before is not None and before.name == "up" and dtype_of(before.x) == dtype_of(x):
            what, nodes, x = ["nearest upsampling", "blur"], [*before.other, *nodes], before.x
            sides = [(first + 1, last) for first, last in sides]
            options |= {"up": (2, 2), "nearest": True}
    if not _same_layout(x, node):
        return "a blur whose memory would be laid out in another order"
    faster = options["nearest"] and taps == (3, 3) and stride == (1, 1) and example(x).is_contiguous()
    if is_on_cpu(node) and not (faster and math.prod(shape) >= CPU_FROM):
        return "a blur: on a CPU torch's convolution of single channels is as fast"
    (top, bottom), (left, right) = sides
    return Match(fused.blur, what, nodes, (x, filters[-1]), {**options, "padding": (left, right, top, bottom)})


def _before(x: Any) -> Op | None:
    """The meaning of an image that nothing else reads."""
    return meaning(x) if isinstance(x, fx.Node) and len(x.users) == 1 else None


def _pair(value: Any) -> tuple:
    return (value, value) if isinstance(value, int) else tuple(value) * (2 // len(value))


def _padding(padding: Any, taps: tuple[int, int]) -> list[tuple[int, int]] | None:
    """[(pixels above, below), (left, right)]"""
    if padding == "same":
        return [((k - 1) // 2, k // 2) for k in taps]
    sides = (0, 0) if padding == "valid" else _pair(padding)
    return [(p, p) for p in sides] if all(type(p) is int for p in sides) else None


def _adds_pixels(pad: Op) -> bool:
    sides = pad.options["pad"]
    return len(sides) in (2, 4) and all(type(p) is int and p >= 0 for p in sides) and shape_of(pad.x) is not None


def _filter_of(weight: fx.Node, taps: tuple[int, int]) -> list[fx.Node] | None:
    """The nodes from a weight [C, 1, kh, kw] up to the one filter of kh * kw values that all its channels repeat."""
    nodes = [weight]
    while math.prod(shape_of(nodes[-1])) != math.prod(taps):
        node = nodes[-1]
        if node.op != "call_method" or node.target not in (*_REPEATS, *_COPIES) or overwrites(node):
            return None
        source = node.args[0]
        if dtype_of(source) != dtype_of(weight) or (shape_of(source) or ())[-2:] != taps:
            return None
        nodes.append(source)
    return nodes


def _same_layout(x: fx.Node, y: fx.Node) -> bool:
    """Whether both images are contiguous, or both channels_last."""
    images = example(x), example(y)
    formats = torch.contiguous_format, torch.channels_last
    return any(all(image.is_contiguous(memory_format=layout) for image in images) for layout in formats)
