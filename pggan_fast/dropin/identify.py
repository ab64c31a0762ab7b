"""Recognize what part of a graph computes, however it was written, by testing that two functions are identical.

Between what goes in and what comes out stand only functions from the lists below: together an analytic function. Two
such functions that agree at random points in fp64 are the same function, so that a candidate of a known family that
agrees is what was written, with its grouping, its divisor and its epsilon.
"""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from pggan_fast import reference
from pggan_fast.dropin import fused
from pggan_fast.dropin.graph import Match, dtype_of, example, may_scale, name_of, shape_of, sizes_of

MODULATED_FROM = 1 << 15
"""Values of a weight from which scaling the images costs less than a weight for each sample."""

_CASTS = ("to", "type", "type_as")
_VIEWS = ("view", "reshape")
_NAMES = {"view", "reshape", "contiguous", "mean", "square", "sqrt", "rsqrt", "sub", "add", "pow", "var", *_CASTS}
_NAMES |= {"repeat", "expand", "squeeze", "unsqueeze", "flatten", "split", "chunk", "transpose", "permute", "mul"}
_NAMES |= {"sum", "div", "truediv", "norm", "reciprocal", "repeat_interleave", "expand_as", "view_as", "cat", "clone"}
_NAMES |= {"std", "getitem"}
"""Methods, and functions of torch and of the operator module."""
_RESCALING = {F.interpolate, F.upsample, F.avg_pool2d, F.adaptive_avg_pool2d, torch._C._nn.adaptive_avg_pool2d}
"""torch's own functions that may rescale, each plane by itself."""
_WITHOUT_ZEROS = (F.interpolate, F.upsample, torch.mean, "mean", operator.mul, "mul", operator.truediv, "div")
_STATISTICS = {"square", "pow", "var", "std", "mul", "norm"}
_LARGEST = 1 << 24
"""Values of a tensor up to which a function of it is evaluated."""

_AGREES = 1e-9
"""A share of the result's size: fp64 rounds by 1e-14, another grouping or divisor differs in the first digits."""


def stddev(node: fx.Node, op: Any) -> Match | None:
    """The minibatch deviation of x that is appended to x."""
    x, maps = op.x if len(op.x) == 2 else (None, None)
    shape, made = _evaluable(x), sizes_of(maps, 4)
    dim = op.dim if op.axis is None else op.axis
    if dim not in (1, -3) or shape is None or made is None or dtype_of(x) != dtype_of(node):
        return None
    nodes, (n, c), f = _between([x], maps), shape[:2], made[1]
    eps = _epsilon(nodes)
    if eps is None or n < 2 or made != (n, f, *shape[2:]) or f == 0 or c % f:
        return None
    family = (
        dict(group_size=group, num_channels=f, eps=eps, grouping=grouping, correction=correction)
        for group in range(2, n + 1)
        if n % group == 0
        for grouping in ("strided", "consecutive")
        for correction in (0, 1)
    )
    # The second points are of eps's size, where it decides.
    points = [{x: _random(shape, scale)} for scale in (1.0, eps**0.5)]
    known = _identified(nodes, points, family, lambda v, **o: reference.minibatch_stddev(v[x], **o)[:, c:])
    return known and Match(fused.minibatch_stddev, ["minibatch stddev"], [*nodes, node], (x,), known)


def pixel_norm(x: fx.Node, last: fx.Node) -> tuple[list[fx.Node], float] | None:
    """(nodes from x to last, epsilon) if `last` is x's pixel norm."""
    shape = shape_of(x)
    if shape is None or len(shape) < 2 or type(shape[1]) is not int or shape_of(last) != shape:
        return None
    if (eps := _epsilon(nodes := _between([x], last))) is None:
        return None
    sizes = (2, shape[1], *(3 for _ in shape[2:]))  # a formula in which sizes are written does not fit these
    points = [{x: _random(sizes, scale)} for scale in (1.0, eps**0.5)]
    known = _identified(nodes, points, [{"eps": eps}], lambda v, eps: reference.pixel_norm(v[x], eps))
    return known and (nodes, eps)


def modulation(conv: fx.Node, op: Any) -> Match | str | None:
    """A convolution whose weights a style of each sample modulates, or why it stays.

    Images [N, C, H, W] are seen as [1, N * C, H, W] and convolved in N groups with weight [O, C, kh, kw] * styles
    [N, C], demodulated or not; whoever reads the result sees it as [N, O, ...].
    """
    flat, weights, seen, transposed = op.x, op.weight, next(iter(conv.users)), op.name == "transposed conv"
    if op.bias is not None or not may_scale(conv) or name_of(flat) not in _VIEWS or name_of(seen) not in _VIEWS:
        return None
    images = flat.args[0]
    shape, whole = sizes_of(images, 4), _evaluable(weights)
    if shape is None or whole is None or not op.groups == shape[0] > 1:
        return None
    (n, c), k = shape[:2], whole[2:]
    o = whole[1] if transposed else whole[0] // n
    if shape_of(flat) != (1, n * c, *shape[2:]) or shape_of(seen) != (n, o, *shape_of(conv)[2:]):
        return None
    weight, styles = _factors(weights, o * c * math.prod(k), n * c)
    if weight is None or any(len(node.users) != 1 for node in (flat, weights, conv)):
        return None

    def modulated(v: dict, demodulate: bool, scale: float) -> Tensor:
        w = scale * v[weight].reshape(o, c, *k) * v[styles].reshape(n, 1, c, 1, 1)
        w = w * torch.rsqrt(w.square().sum((2, 3, 4), keepdim=True) + 1e-8) if demodulate else w
        return (w.transpose(1, 2) if transposed else w).reshape(whole)

    # The second points are small enough for the epsilon to count.
    points = [{weight: _random(shape_of(weight), s), styles: _random(shape_of(styles))} for s in (1.0, 1e-4)]
    nodes = _between([weight, styles], weights) or []
    numbers = [float(a) for node in nodes for a in node.args if isinstance(a, float) and a > 1e-6]
    family = (dict(demodulate=d, scale=s) for d in (True, False) for s in {1.0, math.prod(numbers)})
    known = _identified(nodes, points, family, modulated)
    values = o * c * math.prod(k)
    if known and not transposed and (values < MODULATED_FROM or values * n < math.prod(shape)):
        return "its weights are few: weights of each sample's own are as fast"
    options = {**op.geometry, "channels": o, "transposed": transposed}
    del options["groups"]
    what, nodes = ["modulated conv"], [flat, *nodes, conv, seen]
    return known and Match(fused.modulated_convolution, what, nodes, (images, weight, styles), options | known)


def _factors(weights: fx.Node, *sizes: int) -> tuple[fx.Node | None, ...]:
    """The last nodes above `weights` that are a function of one tensor alone, for tensors of each of these sizes."""
    made_of: dict[fx.Node, set[int]] = {}
    last: dict[int, fx.Node] = {}
    for node in _above(weights, lambda node: not _is_known(node)):
        size = math.prod(sizes_of(node) or (0,))
        sources = [made_of[source] for source in node.all_input_nodes] if _is_known(node) else []
        made_of[node] = set().union(*sources) or {size} & {*sizes}
        if made_of[node] == {size}:
            last[size] = node
    return tuple(last.get(size) if len(last) == len(sizes) else None for size in sizes)


def rescaling(node: fx.Node) -> dict[str, Any] | None:
    """The 2x rescaling of x that the nodes ending in `node` are, by its effect on images, as what `meaning` returns.

    name: "up" (nearest upsampling) or "down" (the mean of 2x2). zeros: its second derivative is zeros, as that of
    torch's pooling, and not absent.
    """
    if "rescaling" not in node.meta:  # x may be replaced, but not by another value
        node.meta["rescaling"] = _rescaling(node)
    found = node.meta["rescaling"]
    return found and {"x": found["nodes"][0].all_input_nodes[0], **found}


def _rescaling(node: fx.Node) -> dict[str, Any] | None:
    zeros = {"zeros": node.target not in _WITHOUT_ZEROS}
    source, after = node, example(node)
    while after is not None and after.ndim == 4 and _is_known(source) and len(source.all_input_nodes) == 1:
        (source,) = source.all_input_nodes
        before = example(source)
        if before is None or before.ndim != 4 or not before.is_floating_point():
            continue
        nodes, sizes = _between([source], node), [_evaluable(source)]
        if nodes == [node] and node.target in _RESCALING:  # single planes; two, where the size is a symbol
            constant = {type(n) is int for n in (*before.shape[2:], *after.shape[2:])}
            tried = {True: [(1, 1, *before.shape[2:])], False: [(1, 1, 4, 6), (1, 1, 5, 7)]}
            sizes = tried[constant.pop()] if len(constant) == 1 else [None]
        if not nodes or None in sizes or any(h < 2 or w < 2 for _, _, h, w in sizes):
            return None
        points = [{source: _random(size)} for size in sizes]
        for name, known, options in (("up", reference.upsample2x, {}), ("down", reference.downsample2x, zeros)):
            if _identified(nodes, points, [{}], lambda v, f=known, x=source: f(v[x])) is not None:
                return {"name": name, "nodes": nodes, "options": options}
    return None


# Evaluation


def _identified(nodes: Any, points: list[dict], family: Iterable[dict], known: Callable) -> dict[str, Any] | None:
    """The options with which `known` computes at all points what the last of the nodes does, or None."""
    if not nodes:
        return None
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        try:
            written = [_evaluate(nodes, dict(point)) for point in points]
        except (RuntimeError, TypeError, AttributeError, KeyError):  # sizes that are written out, or symbols
            return None
        for options in family:
            if all(_same(value, known(point, **options)) for value, point in zip(written, points, strict=True)):
                return options
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= _AGREES * b.abs().max())


def _evaluate(nodes: list[fx.Node], values: dict[fx.Node, Tensor]) -> Tensor:
    """The value of the last node."""
    for node in nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if name_of(node) in _CASTS:  # to the dtype that it has
            values[node] = args[0]
        else:
            function = node.target if node.op == "call_function" else getattr(torch.Tensor, node.target)
            values[node] = function(*args, **kwargs)
    return values[nodes[-1]]


def _random(shape: Iterable[int], scale: float = 1.0) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(1)
    return scale * torch.randn(tuple(shape), generator=generator, dtype=torch.float64, device="cpu")


def _evaluable(node: Any) -> tuple[int, ...] | None:
    """The shape of four constant sizes, if a function of such a tensor can be evaluated."""
    shape = sizes_of(node, 4)
    return shape if shape is not None and math.prod(shape) <= _LARGEST else None


def _epsilon(nodes: list[fx.Node] | None) -> float | None:
    """The one small number in a formula that has a square in it."""
    numbers = [n for node in nodes or () for n in (*node.args, *node.kwargs.values()) if isinstance(n, float)]
    found = {n for n in numbers if 0 < n < 0.1}
    squares = any(name_of(node) in _STATISTICS for node in nodes or ())
    return found.pop() if len(found) == 1 and squares else None


# Parts of a graph


def _is_known(node: fx.Node) -> bool:
    name = name_of(node)
    homes = (getattr(torch, name, None), getattr(operator, name, None))
    known = node.op == "call_method" or node.op == "call_function" and node.target in homes
    return known and name in _NAMES or node.target in _RESCALING


def _above(last: fx.Node, ends: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """`last` and what it depends on, up to the nodes where this ends, in order."""
    members, pending = set(), [last]
    while pending:
        node = pending.pop()
        if node not in members:
            members.add(node)
            pending += () if ends(node) else node.all_input_nodes
    return [node for node in last.graph.nodes if node in members]


def _between(sources: list[fx.Node], last: Any) -> list[fx.Node] | None:
    """All nodes that `last` depends on, the sources excluded, in order; None if one is unknown or has other readers."""
    dtype = dtype_of(last)
    if dtype is None or any(dtype_of(source) != dtype for source in sources):
        return None
    nodes = [n for n in _above(last, lambda n: n in sources or not _is_known(n)) if n not in sources]
    if any(not _is_known(node) or dtype_of(node) not in (dtype, None) for node in nodes):
        return None
    readers = {user for node in nodes[:-1] for user in node.users}
    return nodes if readers <= {*nodes} else None
