"""Nodes of a captured graph: their example values, the modes they run under, and whose memory they share.

The graphs are TorchDynamo's: modules are inlined, parameters are inputs, and every node carries an example value with
its shape, strides, dtype and device.
"""

import inspect
import itertools
import operator
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from pggan_fast.reference import is_channels_last

_IN_PLACE = {f for name, f in vars(operator).items() if name[0] == "i" and f"__{name[1:]}__" in vars(operator)}
_IN_PLACE |= {operator.setitem}
"""`operator.iadd` and its like"""
_CASTS = ("to", "type", "type_as", "float", "contiguous")
_TAKE_SIZES = ("reshape", "view", "repeat", "expand")


@dataclass
class Match:
    """A chain of nodes, in order, that one call replaces, and that call."""

    target: Callable
    what: list[str] = field(default_factory=list)
    nodes: list[fx.Node] = field(default_factory=list)
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    folded: list[fx.Node] = field(default_factory=list)
    """Nodes beside the chain whose work the call does too, and which others may read."""
    reason: str = ""
    """Why the chain ends where it ends, if there is something to say."""

    def add(self, what: str, nodes: list[fx.Node], kwargs: dict[str, Any]) -> None:
        self.what.append(what)
        self.nodes += nodes
        self.kwargs |= kwargs


# What is known of a node


def name_of(node: Any) -> str:
    """The name of the function or method that a node calls."""
    target = getattr(node, "target", "")
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def example(node: Any) -> Tensor | None:
    """The example value of a node that computes a plain tensor."""
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return value if type(value) in (FakeTensor, Tensor, torch.nn.Parameter) else None


def shape_of(node: Any) -> tuple | None:
    """The shape of a node's tensor; sizes that vary between calls are symbols, equal to nothing."""
    value = example(node)
    return None if value is None else tuple(n if type(n) is int else object() for n in value.shape)


def sizes_of(node: Any, ndim: int | None = None) -> tuple[int, ...] | None:
    """The shape of a node's tensor of `ndim` dimensions, if all sizes are constants."""
    shape = shape_of(node)
    constant = shape is not None and all(type(n) is int for n in shape)
    return shape if constant and ndim in (None, len(shape)) else None


def dtype_of(node: Any) -> torch.dtype | None:
    return getattr(example(node), "dtype", None)


def is_on_cpu(node: Any) -> bool:
    return getattr(example(node), "is_cpu", False)


def is_per_channel(node: Any, x: fx.Node) -> bool:
    """Whether adding `node` to x [N, C, ...] adds one value, of x's dtype and device, to each channel."""
    shape, target = shape_of(node), shape_of(x)
    if shape is None or target is None or len(target) < 2:
        return False
    channels = (target[1], *[1] * (len(target) - 2))
    alike = dtype_of(node) == dtype_of(x) and example(node).device == example(x).device
    return alike and shape in (channels, (1, *channels))


def follows_layout(node: Any, x: Any) -> bool:
    """Whether a result lies in memory as this package's ops lay it out: channels_last where x is, else contiguous."""
    image = example(x)
    layout = torch.channels_last if image is not None and is_channels_last(image) else torch.contiguous_format
    return example(node).is_contiguous(memory_format=layout)


def may_scale(node: fx.Node) -> bool:
    """Whether a factor may be applied later: in half precision the unscaled values might overflow."""
    return dtype_of(node) != torch.float16


# Modes


def simplify(graph: fx.Graph) -> None:
    """Replace casts to what a tensor is already by the tensor, and sizes that are tensors of constants by numbers."""
    for node in graph.nodes:
        if name_of(node) in _CASTS and node.op == "call_method" and storage_of(node) == storage_of(node.args[0]):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif name_of(node) in _TAKE_SIZES:
            node.args = (node.args[0], *fx.map_arg(node.args[1:], _number))


def _number(node: fx.Node) -> fx.Node | int:
    """The number that a node's tensor of one integer always holds, else the node."""
    constant = getattr(example(node), "constant", None)
    integer = constant is not None and constant.ndim == 0 and constant.dtype == torch.int64
    written = integer and any(overwrites(user) for alias in aliases_of(node) for user in alias.users)
    return constant.item() if integer and not written else node


def note_modes(graph: fx.Graph) -> None:
    """Note at each node under which modes it runs: whether gradients are on, and what autocasts it is inside.

    The calls that change a mode compute nothing. What is computed together must be under the same modes.
    """
    grad, entered = torch.is_grad_enabled(), ()
    for node in graph.nodes:
        if node.op == "call_function" and node.meta.get("example_value") is None and not overwrites(node):
            if node.target is torch._C._set_grad_enabled:
                grad = node.args[0]
            elif node.args and node.args[0] in entered:
                entered = tuple(e for e in entered if e is not node.args[0])
            else:
                entered += (node,)
        node.meta["modes"] = grad, entered


def same_modes(*nodes: Any) -> bool:
    """Whether all nodes run under the same modes."""
    return len({node.meta["modes"] for node in nodes}) == 1


# What is written over: autograd forbids that for what it keeps for backward

_KEEP_INPUTS = {"conv2d": 2, "conv_transpose2d": 2} | dict.fromkeys(("square", "pow", "var", "std", "norm"), 1)
"""{function: how many of its inputs autograd keeps for its backward}"""


def has_gradient(node: Any) -> bool:
    return getattr(example(node), "requires_grad", False)


def kept_by(node: fx.Node) -> list[fx.Node]:
    """The inputs that autograd keeps for the backward of a node, as far as this is sure."""
    factors = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, fx.Node)]
    if name_of(node) == "mul" and len(factors) == 2:
        return [a for a, other in zip(factors, reversed(factors), strict=True) if has_gradient(other)]
    return node.all_input_nodes[: _KEEP_INPUTS.get(name_of(node), 0)] if has_gradient(node) else []


def overwrites(node: fx.Node) -> bool:
    """Whether the node may write over what it gets."""
    target, name = node.target, name_of(node)
    if node.op not in ("call_function", "call_method"):
        return False
    if isinstance(target, torch._ops.HigherOrderOperator):  # a checkpoint, an autograd.Function
        bodies = [getattr(node.graph.owning_module, n.target, None) for n in node.all_input_nodes if n.op == "get_attr"]
        known = bodies and all(isinstance(body, fx.GraphModule) for body in bodies)
        return not known or any(overwrites(n) for body in bodies for n in body.graph.nodes)
    if _is_opaque(target):
        schemas = [getattr(target, "_schema", None)]
        schemas = target._schemas.values() if isinstance(target, torch._ops.OpOverloadPacket) else schemas
        return any(schema is None or schema.is_mutable for schema in schemas)
    if target in _IN_PLACE or name.endswith("_") and not name.endswith("__") or "out" in node.kwargs:
        return True
    try:  # a function that is told to work in place
        arguments = inspect.signature(target).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):  # methods and builtins have no signature and no such flag but by name
        arguments = node.kwargs
    return arguments.get("inplace", False) is not False


def _is_opaque(target: Any) -> bool:
    """Whether the name of a function does not tell what it writes over: torch's that take functions, others' ops."""
    if isinstance(target, types.FunctionType):
        return (target.__module__ or "").partition(".")[0] not in ("torch", "pggan_fast", "einops")
    return isinstance(target, torch._ops.OperatorBase | torch._ops.OpOverloadPacket)


def storage_of(node: fx.Node) -> Any:
    """A key of the memory in which a node's tensor lies: equal for views and in-place results."""
    value = example(node)
    return node if value is None or not torch._C._has_storage(value) else value.untyped_storage()._cdata


def aliases_of(node: fx.Node) -> list[fx.Node]:
    """All nodes whose tensor lies in the node's memory, itself included: views and in-place results."""
    return [other for other in node.graph.nodes if storage_of(other) == storage_of(node)]


def leaves(value: fx.Node) -> bool:
    """Whether code that the graph does not show gets the value's memory."""
    return any(user.op == "output" for alias in aliases_of(value) for user in alias.users)


def is_shared(value: fx.Node) -> bool:
    """Whether code that the graph does not show has the value's memory: a parameter, an input, an output."""
    return leaves(value) or any(alias.op in ("placeholder", "get_attr") for alias in aliases_of(value))


def written_by(node: fx.Node) -> set:
    """The memory that a node may write over."""
    if not overwrites(node):
        return set()
    targets = [node.args[0] if node.args else node.kwargs.get("input"), node.kwargs.get("out")]
    targets = node.all_input_nodes if _is_opaque(node.target) else tree_leaves(targets)
    return {storage_of(target) for target in targets if isinstance(target, fx.Node)}


def obstacle(nodes: list[fx.Node], keeps_result: bool) -> str:
    """Why one call at the place of the last node cannot stand for all of them, or nothing.

    It reads later what they read, and autograd may keep other things for backward: what it reads must stay, and what it
    returns if that is kept.
    """
    if not same_modes(*nodes):
        return "autocast or gradients are switched while it is computed"
    members, kept = set(nodes), {storage_of(node) for node in nodes}
    read = {storage_of(source) for node in nodes for source in node.all_input_nodes if source not in members}
    for node in itertools.dropwhile(lambda node: node not in members, nodes[-1].graph.nodes):
        if written_by(node) & (read if node in members else read | kept):
            return "what it reads or returns is written over"
        if node is nodes[-1]:
            kept = {storage_of(node)} if keeps_result else set()
    return ""
