"""Patterns in a captured graph, and the fused calls that take their place."""

import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from pggan_fast.dropin import fused, identify
from pggan_fast.dropin.graph import (
    aliases_of,
    dtype_of,
    example,
    is_per_channel,
    is_written_over,
    leaves,
    modes_of,
    note_modes,
    out_of_place,
    overwrites,
    overwritten,
    shape_of,
)
from pggan_fast.dropin.meaning import Op, is_number, meaning


@dataclass(frozen=True)
class Options:
    """Which patterns are replaced."""

    bias_act: bool = True
    conv: bool = True
    resample: bool = True
    minibatch_stddev: bool = True
    alone: bool = True
    """Also rescaling without a convolution, which Inductor would fuse with its neighbours."""


@dataclass
class Match:
    """A chain of nodes that one call replaces, and that call."""

    target: Callable
    what: list[str]
    nodes: list[fx.Node]
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    clamp: fx.Node | None = None
    """The clamp that comes last, which stays as it is, but that it may not overwrite the call's result."""
    reason: str = ""
    """Why the chain ends where it ends, if there is something to say."""

    def add(self, what: str, *nodes: fx.Node, **kwargs: Any) -> bool:
        self.what.append(what)
        self.nodes += nodes
        self.kwargs |= kwargs
        return True


class Rewriter:
    """The replacement of patterns in one graph.

    A chain is taken only where the example values prove that the fused call computes the same: one dtype all along, a
    bias of one value for each channel, nothing between that others read or write over.
    """

    def __init__(self, graph: fx.Graph, options: Options):
        self.graph, self.options = graph, options
        note_modes(graph)
        self.replaced: list[tuple[dict, str]] = []
        """(meta of the node where the chain begins, what) for each call that was put in."""
        self.reasons: dict[fx.Node, str] = {}
        """Why a node was left, where there is more to say than that nothing about it is fused."""
        self._erased: set[fx.Node] = set()
        self._patterns = (  # in this order: (switch, names of the nodes where it begins, what finds it)
            ("conv", ("conv", "transposed conv"), self._modulated),
            ("conv", ("conv",), self._convolution),
            ("bias_act", ("add",), self._biased),
            ("bias_act", ("instance_norm",), self._instance_normalized),
            ("bias_act", None, self._normalized),
            ("minibatch_stddev", ("cat",), self._stddev),
            ("resample", ("up", "down"), self._rescaled),
            ("bias_act", ("relu", "lrelu"), self._activated),
        )

    def run(self) -> list[tuple[dict, str]]:
        """Rewrite the graph and return `replaced`."""
        named = [(node.meta, getattr(node.target, "pggan_fast_name", "")) for node in self.graph.nodes]
        self.replaced += [(meta, name) for meta, name in named if name]  # `known` has put them in already
        for switch, names, find in self._patterns:
            for node in list(self.graph.nodes) if getattr(self.options, switch) else ():
                if node in self._erased or not node.users or example(node) is None:
                    continue
                op = meaning(node)
                if names is not None and (op is None or op.name not in names):
                    continue
                match = find(node, op)
                if match is not None and self._is_free(match):
                    self.replaced.append((node.meta, " + ".join(match.what)))
                    self._replace(match)
        return self.replaced

    def _is_free(self, match: Match) -> bool:
        """Whether nobody writes over what the call reads or returns, in between or afterwards."""
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        first, last = min(order[n] for n in match.nodes), max(order[n] for n in match.nodes)
        members = set(match.nodes)
        if len({modes_of(n) for n in members}) > 1:
            self.reasons[match.nodes[0]] = "autocast or gradients are switched while it is computed"
            return False
        read = {source for n in match.nodes for source in n.all_input_nodes}
        if any(first < order[n] < last and n not in members and overwritten(n) & read for n in order):
            self.reasons[match.nodes[0]] = "something is written over while it is computed"
            return False
        ends = [match.args[0], match.nodes[-1]] if match.clamp is None else [match.args[0]]
        shared = any(overwrites(n) and self._is_shared(n, members) for n in match.nodes)
        if shared or any(is_written_over(end, match.nodes) for end in ends):
            self.reasons[match.nodes[0]] = "what it reads or returns is written over"
            return False
        return True

    def _is_shared(self, node: fx.Node, members: set[fx.Node]) -> bool:
        """Whether somebody else sees that the node writes over its first argument."""
        before = itertools.takewhile(lambda n: n is not node, self.graph.nodes)  # later views are of its result
        outside = aliases_of(node.args[0]) & set(before) - members
        return any(a.op in ("placeholder", "get_attr") or set(a.users) - members for a in outside)

    def _replace(self, match: Match) -> None:
        last = match.nodes[-1]
        if self._keeps_more(match) and leaves(last):
            match.kwargs["overwritable"] = True
        with self.graph.inserting_after(last):
            call = self.graph.call_function(match.target, match.args, match.kwargs)
        call.meta.update(last.meta)
        last.replace_all_uses_with(call)
        for node in reversed(match.nodes):
            self._erase(node)
        if match.clamp is not None:
            out_of_place(match.clamp)

    def _keeps_more(self, match: Match) -> bool:
        """Whether autograd keeps the call's result, and did not keep that of the last function."""
        last = match.nodes[-1]
        op = meaning(last)
        kept = op is not None and (op.name == "relu" or (op.name == "lrelu" and overwrites(last)))
        return not kept and ("act" in match.kwargs or "pixel_norm" in match.kwargs)

    def _erase(self, node: fx.Node) -> None:
        """Erase a node that nothing reads, and what only it read."""
        if node in self._erased or node.users or node.op == "placeholder":
            return
        self._erased.add(node)
        inputs = node.all_input_nodes
        self.graph.erase_node(node)
        for source in inputs:
            if source.op == "get_attr" or (op := meaning(source)) is not None and op.name in ("mul", "div"):
                self._erase(source)

    # A convolution and what surrounds it

    def _convolution(self, node: fx.Node, op: Op) -> Match | None:
        if len(shape_of(node)) != 4:
            return None
        match = Match(fused.convolution, ["conv"], [node], kwargs=dict(op.options))
        x, scale, up, before = self._inputs(op.x, node)
        weight, weight_scale = self._scaled(op.other[0], node)
        if up:
            match.what.insert(0, "nearest upsampling")
            match.kwargs["up"] = True
        if scale * weight_scale != 1:
            match.what[-1] = "equalized conv"
            match.kwargs["weight_scale"] = scale * weight_scale
        known = len(match.what)
        self._follow(match, op.other[1], shrinks=not up)
        if not up and set(match.what[known:]) <= {"gain", "clamp"}:
            # Equalized or not: scaling weights takes no longer than a pass over the image.
            self.reasons.setdefault(node, match.reason or "nothing follows that it could be fused with")
            return None
        if match.kwargs.keys() <= _PLAIN and example(node).device.type == "cpu":
            match.target = fused.plain_convolution
        match.nodes[:0] = before
        match.args = (x, weight, match.kwargs.pop("bias", op.other[1]))
        return match

    def _inputs(self, x: Any, reader: fx.Node) -> tuple[Any, float, bool, list[fx.Node]]:
        """(what goes in, its constant factor, whether it is upsampled, the nodes of both) of a convolution's x."""
        factor, up, nodes = 1.0, False, []
        written = identify.upsampling(x) if self.options.resample and meaning(x) is None else None
        if written is not None and set(x.users) == {reader}:
            return written[0], factor, True, written[1]
        while (op := meaning(x)) is not None and not overwrites(x) and dtype_of(op.x) == dtype_of(x):
            alone = set(x.users) == {reader}
            if op.name == "mul" and is_number(op.other) and alone and _may_scale(x):
                factor *= float(op.other)
            elif op.name == "up" and not up and self.options.resample and (alone or _only_convolutions(x)):
                up = True
            else:
                break
            nodes.insert(0, x)
            x, reader = op.x, x
        return x, factor, up, nodes

    def _scaled(self, weight: Any, conv: fx.Node) -> tuple[Any, float]:
        op = meaning(weight)
        if op is None or not is_number(op.other) or not _may_scale(conv) or shape_of(op.x) != shape_of(weight):
            return weight, 1.0
        if dtype_of(op.x) == dtype_of(weight) and not overwrites(weight) and modes_of(weight) == modes_of(conv):
            if op.name == "mul":
                return op.x, float(op.other)
            if op.name == "div" and op.other != 0:
                return op.x, 1 / float(op.other)
        return weight, 1.0

    def _modulated(self, node: fx.Node, op: Op) -> Match | None:
        options, transposed = dict(op.options), op.name == "transposed conv"
        found = identify.modulation(op.x, op.other[0], options.pop("groups"), transposed, node)
        if found is None or op.other[1] is not None or not _may_scale(node):
            return None
        nodes, (images, weight, styles), known = found
        if weight.meta["example_value"].numel() < MODULATED_FROM:
            self.reasons[node] = "its weights are few: weights of each sample's own are as fast"
            return None
        options |= known | {"transposed": transposed}
        return Match(fused.modulated_convolution, ["modulated conv"], nodes, (images, weight, styles), options)

    def _follow(self, match: Match, bias: Any, *, shrinks: bool = False, convolution: bool = True) -> None:
        """Add to a chain the nodes after its last, each the only reader of the one before.

        shrinks: whether a 2x2 mean belongs to it: not after an upsampling, which does not commute with the convolution.
        """
        node, dtype = match.nodes[-1], dtype_of(match.nodes[-1])
        while True:
            if self.options.bias_act and (norm := self._norm_of(node)) is not None:
                nodes, options = norm
                match.add("pixel norm", *nodes, pixel_norm=True, **options)
                node = nodes[-1]
            if len(node.users) != 1:
                match.reason = "its output has other readers"
                return
            (user,) = node.users
            op = meaning(user)
            if op is None or op.x is not node:
                return
            if dtype_of(user) != dtype:
                match.reason = f"{op.name} changes the dtype"
                return
            if op.name == "clamp" and self.options.bias_act:
                match.clamp = user
                match.add("clamp")
                return
            if "pixel_norm" in match.kwargs or not self._take(match, op, user, bias, shrinks, convolution):
                return
            node = user

    def _take(self, match: Match, op: Op, user: fx.Node, bias: Any, shrinks: bool, convolution: bool) -> bool:
        known = match.kwargs
        linear = not known.keys() & {"act", "gain", "batch_norm"}
        biased = bias is not None or "bias" in known
        if op.name == "down" and shrinks and self.options.resample and linear and "down" not in known:
            return match.add("2x2 mean", user, down=True, **op.options)
        if op.name == "batch_norm" and convolution and linear:
            return match.add("batch norm", user, batch_norm=op.other)
        if not self.options.bias_act:
            return False
        if op.name == "add" and linear and not biased:
            if not is_per_channel(op.other, op.x):
                match.reason = f"what is added has shape {_printed(op.other)}, not one value per channel"
                return False
            return match.add("bias", user, bias=op.other)
        if op.name in ("relu", "lrelu") and "act" not in known:
            if op.options["slope"] < 0:
                match.reason = "its slope is negative"
                return False
            return match.add(op.name, user, act=op.name, **op.options)
        if op.name in ("mul", "div") and is_number(op.other):
            if op.other <= 0:
                match.reason = "its gain is not positive"
                return False
            # relu and lrelu let a positive factor through; before a bias it scales the weight.
            name = "weight_scale" if linear and convolution and not biased else "gain"
            factor = float(op.other) if op.name == "mul" else 1 / float(op.other)
            return match.add("gain", user, **{name: known.get(name, 1.0) * factor})
        return False

    def _norm_of(self, x: fx.Node) -> identify.Found | None:
        """The pixel norm of x's value, if that is all that reads it."""
        for last in x.users if len(x.users) > 1 else ():
            op = meaning(last)
            if op is None or op.name not in ("mul", "div") or overwrites(last):
                continue
            found = identify.pixel_norm(x, last)
            if found is not None and set(x.users) <= set(found[0]):
                return found
        return None

    # What stands without a convolution

    def _biased(self, node: fx.Node, op: Op) -> Match | None:
        """Bias and activation by themselves."""
        x, bias = op.x, op.other
        if example(x) is None or not is_per_channel(bias, x):
            return None
        if shape_of(x) != shape_of(node) or dtype_of(node) != dtype_of(x):
            return None
        match = Match(fused.bias_act, ["bias"], [node], (x, bias))
        self._follow(match, bias, convolution=False)
        return None if set(match.what) <= {"bias", "clamp"} else match

    def _normalized(self, node: fx.Node, op: Op | None) -> Match | None:
        """Pixel norm by itself, with the activation before it if there is one."""
        norm = self._norm_of(node)
        if norm is None:
            return None
        match = Match(fused.bias_act, ["pixel norm"], norm[0], (node,), {"pixel_norm": True, **norm[1]})
        if op is not None and op.name in ("relu", "lrelu") and op.options["slope"] >= 0 and not overwrites(node):
            match.what.insert(0, op.name)
            match.nodes.insert(0, node)
            match.args = (op.x,)
            match.kwargs |= {"act": op.name, **op.options}
        return match

    def _instance_normalized(self, node: fx.Node, op: Op) -> Match | None:
        """Instance norm with the activation after it."""
        x = example(op.x)
        if x is None or x.device.type != "cpu" or x.ndim < 3 or not x.is_contiguous() or dtype_of(node) != x.dtype:
            return None
        if any(part is not None and dtype_of(part) != x.dtype for part in op.other):
            return None
        match = Match(fused.instance_norm, ["instance norm"], [node], (op.x, *op.other), dict(op.options))
        self._follow(match, op.x, convolution=False)
        return match

    def _rescaled(self, node: fx.Node, op: Op) -> Match | None:
        """Rescaling by itself."""
        if not self.options.alone or example(node).device.type != "cpu":
            return None
        up = op.name == "up"
        what = "nearest upsampling" if up else "2x2 mean"
        return Match(fused.upsample if up else fused.downsample, [what], [node], (op.x,), {} if up else op.options)

    def _activated(self, node: fx.Node, op: Op) -> Match | None:
        """An activation by itself, in place where nobody needs what it reads."""
        if op.options["slope"] < 0 or overwrites(node):
            return None
        fresh = op.x.op == "call_function" and op.x.target in _KEEP_INPUTS_ALONE and aliases_of(op.x) == {op.x}
        if modes_of(op.x) != modes_of(node):  # made without gradients it would get them
            return None
        if not fresh or set(op.x.users) != {node} or dtype_of(op.x) != dtype_of(node) or leaves(node):
            return None
        return Match(fused.activate, [f"{op.name} in place"], [node], (op.x,), {"act": op.name, **op.options})

    def _stddev(self, node: fx.Node, op: Op) -> Match | None:
        if op.options["dim"] not in (1, -3) or len(op.x) != 2 or dtype_of(op.x[0]) != dtype_of(node):
            return None
        found = identify.stddev(*op.x)
        return found and Match(fused.minibatch_stddev, ["minibatch stddev"], [*found[0], node], op.x[:1], found[1])


MODULATED_FROM = 1 << 15
"""Values of a weight from which scaling the images costs less than a weight for each sample."""

_PLAIN = {"stride", "padding", "dilation", "groups", "act", "slope", "bias"}
"""Options of a convolution that `fused.plain_convolution` takes, besides the bias."""

_KEEP_INPUTS_ALONE = {F.batch_norm, F.conv2d, F.conv_transpose2d, F.linear, torch.add, operator.add}
"""Functions whose result is theirs alone and that do not need it for backward."""


def _only_convolutions(up: fx.Node) -> bool:
    """Whether an upsampled image is read by nothing but convolutions, so that it need not be made."""
    return len(up.users) <= 2 and all(
        user.target in (fused.convolution, fused.plain_convolution)
        or ((op := meaning(user)) is not None and op.name == "conv" and op.x is up)
        for user in up.users
    )


def _may_scale(node: fx.Node) -> bool:
    """Whether a factor may be applied later: in half precision the unscaled values might overflow."""
    return dtype_of(node) != torch.float16


def _printed(node: Any) -> str:
    value = example(node)
    return "unknown" if value is None else str(list(value.shape))
