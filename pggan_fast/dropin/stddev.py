"""Recognizes minibatch standard deviation however it was written, by testing that two functions are identical.

Between x and what is appended to it stand only functions from the list below, on one shape: together an analytic
function of x. Two such functions that agree at random points in fp64 are the same function, so a candidate of the
known family that agrees is what was written, with its grouping, its divisor and its epsilon.
"""

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from pggan_fast import reference

_METHODS = {"view", "reshape", "contiguous", "mean", "square", "sqrt", "rsqrt", "sub", "add", "pow", "var", "std"}
_METHODS |= {"repeat", "expand", "squeeze", "unsqueeze", "flatten", "split", "chunk", "transpose", "permute"}
_METHODS |= {"mul", "sum", "div", "clone"}
_FUNCTIONS = frozenset(
    {
        *(operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.getitem),
        *(torch.reshape, torch.mean, torch.square, torch.sqrt, torch.sub, torch.add, torch.pow, torch.var, torch.std),
        *(torch.cat, torch.squeeze, torch.unsqueeze, torch.flatten, torch.split, torch.chunk, torch.sum, torch.div),
        *(torch.mul, torch.transpose, torch.permute, torch.rsqrt),
    }
)
_STATISTICS = frozenset(("square", "pow", "var", "std"))
_LARGEST = 1 << 24
"""Values of an image whose deviation is evaluated; before the last layers there are fewer."""

_AGREES = 1e-9
"""A share of the statistic's size: fp64 rounds by 1e-14, another grouping or divisor differs in the first digits."""


def find_stddev(graph: fx.Graph, x: Any, maps: Any, shape: tuple | None) -> tuple[list[fx.Node], dict[str, Any]] | None:
    """(nodes from x to maps, options of `ops.minibatch_stddev`) if `maps` is x's minibatch deviation, else None."""
    known = shape is not None and len(shape) == 4 and all(type(n) is int for n in shape)
    if not known or not isinstance(x, fx.Node) or not isinstance(maps, fx.Node):
        return None
    nodes = _between(graph, x, maps)
    if nodes is None or not any(_name(node) in _STATISTICS for node in nodes) or shape[0] < 2:
        return None
    eps = [n for node in nodes for n in (*node.args, *node.kwargs.values()) if isinstance(n, float) and 0 < n < 0.1]
    if len(set(eps)) != 1:
        return None
    if math.prod(shape) > _LARGEST:
        return None
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return _identify(nodes, x, maps, shape, eps[0])


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else node.target.__name__


def _between(graph: fx.Graph, x: fx.Node, maps: fx.Node) -> list[fx.Node] | None:
    """All nodes that maps depends on, x excluded, in order; None if one is unknown or has other readers."""
    members, pending = set(), [maps]
    while pending:
        node = pending.pop()
        if node is x or node in members:
            continue
        known = _METHODS if node.op == "call_method" else _FUNCTIONS if node.op == "call_function" else ()
        if node.target not in known:
            return None
        members.add(node)
        pending += node.all_input_nodes
    if any(user not in members for node in members - {maps} for user in node.users):
        return None
    return [node for node in graph.nodes if node in members]


def _identify(
    nodes: list[fx.Node], x: fx.Node, maps: fx.Node, shape: tuple[int, ...], eps: float
) -> tuple[list[fx.Node], dict[str, Any]] | None:
    random = torch.Generator("cpu").manual_seed(shape[0])
    # The second points are of eps's size, where it decides.
    points = [torch.randn(shape, generator=random, dtype=torch.float64, device="cpu") * s for s in (1.0, eps**0.5)]
    written = [_evaluate(nodes, x, maps, point) for point in points]
    n, c = shape[:2]
    f = written[0].shape[1]
    if written[0].shape != (n, f, *shape[2:]) or f == 0 or c % f:
        return None
    for group in (g for g in range(2, n + 1) if n % g == 0):
        for grouping in ("strided", "consecutive"):
            for correction in (0, 1):
                options = dict(group_size=group, num_channels=f, eps=eps, grouping=grouping, correction=correction)
                family = (reference.minibatch_stddev(point, **options)[:, c:] for point in points)
                if all(_same(a, b) for a, b in zip(written, family, strict=True)):
                    return nodes, options
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= _AGREES * b.abs().max())


def _evaluate(nodes: list[fx.Node], x: fx.Node, maps: fx.Node, point: Tensor) -> Tensor:
    values = {x: point}
    for node in nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        if node.op == "call_method":
            values[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
        else:
            values[node] = node.target(*args, **kwargs)
    return values[maps]
