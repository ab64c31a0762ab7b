"""Blurs: convolutions of each channel with one constant filter, as `ops.upfirdn2d` computes them."""

import math
from typing import Any

import torch
from torch import fx

from pggan_fast.dropin.graph import dtype_of, example, is_on_cpu, overwrites, shape_of
from pggan_fast.dropin.meaning import Op, meaning

CPU_FROM = 1 << 18
"""Values of an image from which a CPU makes it by nearest upsampling and blurs it with 3 x 3 faster in one pass."""

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_REPEATS = ("expand", "expand_as", "repeat", "repeat_interleave")
_COPIES = ("contiguous", "clone", "to", "type", "type_as")

Blur = tuple[list[str], list[fx.Node], tuple, dict[str, Any]]
"""(operations, nodes, arguments, keyword arguments of `fused.blur`)"""


def find(node: fx.Node, op: Op) -> Blur | str | None:
    """Return the blur that ends in a convolution or transposed convolution, or why none is put in; None for others.

    It takes each channel by itself, with one filter for all of them that gets no gradient; zeros around the image and
    nearest upsampling before it belong to it.
    """
    weight, bias = op.other
    shape, sizes = shape_of(op.x), shape_of(weight)
    if shape is None or sizes is None or len(shape) != 4 or sizes[:2] != (shape[1], 1):
        return None
    if op.options["groups"] != shape[1] or example(weight).requires_grad:
        return None
    taps = sizes[2:]
    if bias is not None or not all(type(n) is int and n > 0 for n in (*shape, *sizes)):
        return "a blur with a bias, or of sizes that vary"
    stride, dilation = _pair(op.options["stride"]), _pair(op.options["dilation"])
    padding = _padding(op.options["padding"], taps)
    if dilation != (1, 1) or padding is None or not dtype_of(op.x) == dtype_of(weight) == dtype_of(node) in _DTYPES:
        return "a blur of another dtype, or whose filter has gaps"
    filters = _filter_of(weight)
    if filters is None:
        return "its filters may differ from channel to channel"
    options: dict[str, Any] = {"nearest": False}
    nodes, x = [*filters[:-1], node], op.x
    if op.name == "transposed conv":
        extra = _pair(op.options["output_padding"])
        sides = [(k - 1 - p[0], k - s - p[0] + e) for k, p, s, e in zip(taps, padding, stride, extra, strict=True)]
        options |= {"up": stride[::-1], "down": (1, 1), "flip_filter": False}
    else:
        sides, padded = padding, meaning(x)
        if padded is not None and padded.name == "pad" and len(x.users) == 1 and _adds_pixels(padded):
            left, right, top, bottom = (*padded.options["pad"], 0, 0, 0, 0)[:4]
            sides = [(sides[0][0] + top, sides[0][1] + bottom), (sides[1][0] + left, sides[1][1] + right)]
            nodes.insert(0, x)
            x = padded.x
        options |= {"up": (1, 1), "down": stride[::-1], "flip_filter": True}
        up = meaning(x)
        if up is not None and up.name == "up" and len(x.users) == 1 and dtype_of(up.x) == dtype_of(x):
            nodes[:0], x = up.other, up.x
            sides = [(before + 1, after) for before, after in sides]
            options |= {"up": (2, 2), "nearest": True}
    if not _same_layout(x, node):
        return "a blur whose memory would be laid out in another order"
    nearest, (top, bottom), (left, right) = options["nearest"], *sides
    if is_on_cpu(node) and not (
        nearest and taps == (3, 3) and stride == (1, 1) and example(x).is_contiguous() and math.prod(shape) >= CPU_FROM
    ):
        return "a blur: on a CPU torch's convolution of single channels is as fast"
    what = ["nearest upsampling", "blur"] if nearest else ["blur"]
    return what, nodes, (x, filters[-1]), {**options, "padding": (left, right, top, bottom)}


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


def _filter_of(weight: fx.Node) -> list[fx.Node] | None:
    """The nodes from a weight [C, 1, kh, kw] up to the one filter of kh * kw values that all its channels repeat."""
    nodes, taps = [weight], shape_of(weight)[2:]
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
