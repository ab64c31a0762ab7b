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
from pggan_fast.dropin.graph import dtype_of, example, shape_of

Found = tuple[list[fx.Node], dict[str, Any]]
"""(nodes, options of the function that they compute)"""

_CASTS = ("to", "type", "type_as")
_NAMES = {"view", "reshape", "contiguous", "mean", "square", "sqrt", "rsqrt", "sub", "add", "pow", "var", *_CASTS}
_NAMES |= {"repeat", "expand", "squeeze", "unsqueeze", "flatten", "split", "chunk", "transpose", "permute", "mul"}
_NAMES |= {"sum", "div", "truediv", "norm", "reciprocal", "repeat_interleave", "expand_as", "view_as", "cat", "clone"}
_NAMES |= {"std", "getitem"}
"""Methods, and functions of torch and of the operator module."""
RESCALING = {F.interpolate, F.upsample, F.avg_pool2d, F.adaptive_avg_pool2d, torch._C._nn.adaptive_avg_pool2d}
"""torch's own functions that may rescale, each plane by itself."""
_WITHOUT_ZEROS = (F.interpolate, F.upsample, torch.mean, "mean", operator.mul, "mul", operator.truediv, "div")
_STATISTICS = {"square", "pow", "var", "std", "mul", "norm"}
_LARGEST = 1 << 24
"""Values of a tensor up to which a function of it is evaluated."""

_AGREES = 1e-9
"""A share of the result's size: fp64 rounds by 1e-14, another grouping or divisor differs in the first digits."""


def stddev(x: Any, maps: Any) -> Found | None:
    """(nodes from x to maps, options of `ops.minibatch_stddev`) if `maps` is x's minibatch deviation."""
    shape = _sizes(x, 4, _LARGEST)
    nodes = shape and shape[0] > 1 and _between([x], maps)
    if not nodes or (eps := _epsilon(nodes)) is None:
        return None
    n, c = shape[:2]
    f = shape_of(maps)[1]
    if shape_of(maps) != (n, f, *shape[2:]) or not isinstance(f, int) or f == 0 or c % f:
        return None
    groups = (g for g in range(2, n + 1) if n % g == 0)
    family = (
        dict(group_size=group, num_channels=f, eps=eps, grouping=grouping, correction=correction)
        for group in groups
        for grouping in ("strided", "consecutive")
        for correction in (0, 1)
    )
    # The second points are of eps's size, where it decides.
    points = [{x: _random(shape, scale)} for scale in (1.0, eps**0.5)]
    return _identified(nodes, maps, points, family, lambda v, **o: reference.minibatch_stddev(v[x], **o)[:, c:])


def pixel_norm(x: fx.Node, last: fx.Node) -> Found | None:
    """(nodes from x to last, {"eps": ...}) if `last` is x's pixel norm."""
    shape = shape_of(x)
    nodes = shape is not None and len(shape) > 1 and shape_of(last) == shape and _between([x], last)
    if not nodes or len(nodes) < 3 or type(shape[1]) is not int or (eps := _epsilon(nodes)) is None:
        return None
    sizes = (2, shape[1], *(3 for _ in shape[2:]))  # a formula in which sizes are written does not fit these
    points = [{x: _random(sizes, scale)} for scale in (1.0, eps**0.5)]
    return _identified(nodes, last, points, [{"eps": eps}], lambda v, eps: reference.pixel_norm(v[x], eps))


def modulation(
    images: Any, weights: Any, groups: int, transposed: bool, conv: fx.Node
) -> tuple[list[fx.Node], tuple, dict[str, Any]] | None:
    """(nodes, (images, weight, styles), options) of a convolution whose weights a style of each sample modulates.

    Images [N, C, H, W] are seen as [1, N * C, H, W] and convolved in N groups with weight [O, C, kh, kw] * styles
    [N, C], demodulated or not; whoever reads the result sees it as [N, O, ...].
    """
    flat, images = images, images.args[0] if _name(images) in ("view", "reshape") else None
    shape, whole, n = _sizes(images, 4), _sizes(weights, 4, _LARGEST), groups
    if shape is None or whole is None or n != shape[0] or n < 2 or shape_of(flat) != (1, n * shape[1], *shape[2:]):
        return None
    seen, c, k = next(iter(conv.users), None), shape[1], whole[2:]
    o = whole[1] if transposed else whole[0] // n
    if len(conv.users) != 1 or set(flat.users) != {conv} or shape_of(seen) != (n, o, *shape_of(conv)[2:]):
        return None
    weight, styles = _factors(weights, o * c * math.prod(k), n * c)
    nodes = weight is not None and _name(seen) in ("view", "reshape") and _between([weight, styles], weights)
    if not nodes or set(weights.users) != {conv}:
        return None

    def modulated(v: dict, demodulate: bool, scale: float) -> Tensor:
        w = scale * v[weight].reshape(o, c, *k) * v[styles].reshape(n, 1, c, 1, 1)
        w = w * torch.rsqrt(w.square().sum((2, 3, 4), keepdim=True) + 1e-8) if demodulate else w
        return (w.transpose(1, 2) if transposed else w).reshape(whole)

    # The second points are small enough for the epsilon to count.
    points = [{weight: _random(shape_of(weight), s), styles: _random(shape_of(styles))} for s in (1.0, 1e-4)]
    numbers = [float(a) for node in nodes for a in node.args if isinstance(a, float) and a > 1e-6]
    family = (dict(demodulate=d, scale=s) for d in (True, False) for s in {1.0, math.prod(numbers)})
    found = _identified(nodes, weights, points, family, modulated)
    return found and ([flat, *found[0], conv, seen], (images, weight, styles), {"channels": o, **found[1]})


def _factors(weights: fx.Node, weight_size: int, style_size: int) -> tuple[fx.Node | None, fx.Node | None]:
    """The last nodes above `weights` that are a function of a weight alone, and of its styles alone, by their sizes."""
    above, pending = set(), [weights]
    while pending:
        node = pending.pop()
        if node not in above:
            above.add(node)
            pending += node.all_input_nodes if _is_known(node) else ()
    made_of: dict[fx.Node, set[int]] = {}
    last: dict[int, fx.Node] = {}
    for node in (node for node in weights.graph.nodes if node in above):
        size = math.prod(_sizes(node) or (0,))
        sources = [made_of.get(source, set()) for source in node.all_input_nodes] if _is_known(node) else []
        made_of[node] = set().union(*sources) or ({size} & {weight_size, style_size})
        if made_of[node] == {size}:
            last[size] = node
    return (last[weight_size], last[style_size]) if len(last) == 2 else (None, None)


def rescaling(node: fx.Node) -> tuple[str, fx.Node, list[fx.Node], bool] | None:
    """(name, x, nodes, zeros) of the 2x rescaling of x that the nodes ending in `node` are, by what becomes of images.

    name: "up" (nearest upsampling) or "down" (the mean of 2x2). zeros: its second derivative is zeros, as that of
    torch's pooling, and not absent.
    """
    if not _is_known(node):
        return None
    if "rescaling" not in node.meta:  # x may be replaced, but not by another value
        node.meta["rescaling"] = _rescaling(node)
    if node.meta["rescaling"] is None:
        return None
    name, length, zeros = node.meta["rescaling"]
    nodes = [node]
    while len(nodes) < length:
        nodes.insert(0, nodes[0].all_input_nodes[0])
    return name, nodes[0].all_input_nodes[0], nodes, zeros


def _rescaling(node: fx.Node) -> tuple[str, int, bool] | None:
    """(name, how many nodes, zeros)"""
    source, after = node, example(node)
    while after is not None and after.ndim == 4 and _is_known(source) and len(source.all_input_nodes) == 1:
        (source,) = source.all_input_nodes
        before = example(source)
        if before is None or before.ndim != 4 or not before.is_floating_point():
            continue
        nodes = _between([source], node)
        alone = nodes == [node] and node.target in RESCALING
        sizes = _planes(before, after) if alone else [_sizes(source, 4, _LARGEST)]
        if not nodes or None in sizes or any(h < 2 or w < 2 for _, _, h, w in sizes):
            return None
        points = [{source: _random(size)} for size in sizes]
        for name, known in (("up", reference.upsample2x), ("down", reference.downsample2x)):
            if _identified(nodes, node, points, [{}], lambda v, f=known, x=source: f(v[x])):
                return name, len(nodes), name == "down" and node.target not in _WITHOUT_ZEROS
    return None


def _planes(before: Tensor, after: Tensor) -> list[tuple[int, ...] | None]:
    """Sizes of single planes on which one of torch's rescalings is tried; where the size is a symbol, two."""
    constant = [type(n) is int for n in (*before.shape[2:], *after.shape[2:])]
    if all(constant):
        return [(1, 1, *before.shape[2:])]
    return [None] if any(constant) else [(1, 1, 4, 6), (1, 1, 5, 7)]


def _identified(nodes: list[fx.Node], last: fx.Node, points: list[dict], family: Iterable[dict], known: Callable):
    """(nodes, the options with which `known` computes at all points what the nodes do), or None."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        try:
            written = [_evaluate(nodes, point, last) for point in points]
        except (RuntimeError, TypeError, AttributeError, KeyError):  # sizes that are written out, or symbols
            return None
        for options in family:
            if all(_same(value, known(point, **options)) for value, point in zip(written, points, strict=True)):
                return nodes, options
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= _AGREES * b.abs().max())


def _evaluate(nodes: list[fx.Node], values: dict[fx.Node, Tensor], last: fx.Node) -> Tensor:
    values = dict(values)
    for node in nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if _name(node) in _CASTS:  # to the dtype that it has
            values[node] = args[0]
            continue
        function = node.target if node.op == "call_function" else getattr(args[0], node.target)
        values[node] = function(*(args if node.op == "call_function" else args[1:]), **kwargs)
    return values[last]


def _random(shape: Iterable[int], scale: float = 1.0) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(1)
    return scale * torch.randn(tuple(shape), generator=generator, dtype=torch.float64, device="cpu")


def _sizes(node: Any, ndim: int | None = None, largest: float = math.inf) -> tuple[int, ...] | None:
    """The shape, if all its sizes are constants."""
    shape = shape_of(node)
    if shape is None or not all(type(n) is int for n in shape) or math.prod(shape) > largest:
        return None
    return shape if ndim in (None, len(shape)) else None


def _epsilon(nodes: list[fx.Node]) -> float | None:
    """The one small number in a formula that has a square in it."""
    found = {n for node in nodes for n in (*node.args, *node.kwargs.values()) if isinstance(n, float) and 0 < n < 0.1}
    return found.pop() if len(found) == 1 and any(_name(node) in _STATISTICS for node in nodes) else None


def _name(node: Any) -> str:
    target = getattr(node, "target", "")
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def _is_known(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.op not in ("call_method", "call_function"):
        return False
    name = _name(node)
    homes = (getattr(torch, name, None), getattr(operator, name, None))
    return node.target in RESCALING or name in _NAMES and (node.op == "call_method" or node.target in homes)


def _between(sources: list[fx.Node], last: Any) -> list[fx.Node] | None:
    """All nodes that `last` depends on, the sources excluded, in order; None if one is unknown or has other readers."""
    members, pending = set(), [last]
    if any(dtype_of(source) != dtype_of(last) for source in sources):
        return None
    while pending:
        node = pending.pop()
        if node in sources or node in members:
            continue
        if not _is_known(node) or dtype_of(node) not in (dtype_of(last), None):
            return None
        members.add(node)
        pending += node.all_input_nodes
    if {user for node in members - {last} for user in node.users} - members:
        return None
    return [node for node in last.graph.nodes if node in members]
