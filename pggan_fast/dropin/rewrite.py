"""Patterns in a captured graph, and the fused calls that take their place."""

import itertools
import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from pggan_fast.dropin import fused
from pggan_fast.dropin.aliasing import aliases_of, is_written_over, leaves
from pggan_fast.dropin.chain import Chain, Epilogue, Match, Norm
from pggan_fast.dropin.graph import (
    Op,
    dtype_of,
    example,
    is_number,
    is_per_channel,
    meaning,
    out_of_place,
    overwrites,
    shape_of,
)
from pggan_fast.dropin.stddev import find_stddev


@dataclass(frozen=True)
class Options:
    """Which patterns are replaced."""

    bias_act: bool = True
    conv: bool = True
    resample: bool = True
    minibatch_stddev: bool = True
    alone: bool = True
    """Also rescaling without a convolution, which Inductor would fuse with its neighbours."""


class Rewriter:
    """Finds and replaces patterns in one graph.

    A chain is taken only where the example values prove that the fused call computes the same: one dtype all along, a
    bias of one value for each channel, nothing between that others read or write over.
    """

    def __init__(self, graph: fx.Graph, options: Options):
        self.graph, self.options = graph, options
        self.replaced: list[tuple[dict, str]] = []
        """(meta of the node where the chain begins, what) for each call that was put in."""
        self.reasons: dict[fx.Node, str] = {}
        """Why a node was left, where there is more to say than that nothing about it is fused."""
        self._erased: set[fx.Node] = set()

    def run(self) -> list[tuple[dict, str]]:
        """Rewrites the graph and returns `replaced`."""
        for find in (self._convolution, self._biased, self._normalized, self._stddev, self._rescaled, self._activated):
            for node in list(self.graph.nodes):
                if not node.users or node in self._erased or example(node) is None:
                    continue
                match = find(node)
                if match is not None and self._is_free(match):
                    self.replaced.append((node.meta, " + ".join(match.what)))
                    self._replace(match)
        return self.replaced

    def _is_free(self, match: Match) -> bool:
        """Whether nobody writes over what the call reads or returns, in between or afterwards."""
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        first, last = min(order[n] for n in match.nodes), max(order[n] for n in match.nodes)
        members = set(match.nodes)
        if any(first < order[n] < last and n not in members and overwrites(n) for n in order):
            self.reasons[match.nodes[0]] = "something is written over while it is computed"
            return False
        ends = (match.args[0], match.last) if match.clamp is None else match.args[:1]
        shared = any(overwrites(n) and self._is_shared(n, members) for n in match.nodes)
        if shared or any(is_written_over(end, match.nodes) for end in ends):
            self.reasons[match.nodes[0]] = "what it reads or returns is written over"
            return False
        return True

    def _is_shared(self, node: fx.Node, members: set[fx.Node]) -> bool:
        """Whether somebody else sees that the node writes over its first argument."""
        before = set(
            itertools.takewhile(lambda n: n is not node, self.graph.nodes)
        )  # views made later are of its result
        outside = aliases_of(node.args[0]) & before - members
        return any(a.op in ("placeholder", "get_attr") or set(a.users) - members for a in outside)

    def _replace(self, match: Match) -> None:
        with self.graph.inserting_after(match.last):
            call = self.graph.call_function(match.target, match.args, match.kwargs)
        call.meta.update(match.last.meta)
        result = call
        if self._keeps_more(match) and leaves(match.last):
            if match.target is fused.plain_convolution:
                call.update_kwarg("overwritable", True)
            else:
                with self.graph.inserting_after(call):
                    result = self.graph.call_function(fused.overwritable, (call,))
                result.meta.update(match.last.meta)
        match.last.replace_all_uses_with(result)
        for node in reversed(match.nodes):
            self._erase(node)
        if match.clamp is not None:
            out_of_place(match.clamp)

    def _keeps_more(self, match: Match) -> bool:
        """Whether autograd keeps the call's result, and did not keep that of the last function."""
        op = meaning(match.last)
        kept = op is not None and (op.name == "relu" or (op.name == "lrelu" and overwrites(match.last)))
        activated = match.kwargs.get("act", "linear") != "linear" or match.kwargs.get("pixel_norm", False)
        return not kept and activated

    def _erase(self, node: fx.Node) -> None:
        """Erases a node that nothing reads, and what only it read."""
        if node in self._erased or node.users or node.op == "placeholder":
            return
        self._erased.add(node)
        inputs = node.all_input_nodes
        self.graph.erase_node(node)
        for source in inputs:
            if source.op == "get_attr" or (op := meaning(source)) is not None and op.name in ("mul", "div"):
                self._erase(source)

    # A convolution and what surrounds it

    def _convolution(self, node: fx.Node) -> Match | None:
        op = meaning(node)
        if op is None or op.name != "conv" or not self.options.conv or len(shape_of(node)) != 4:
            return None
        what, nodes = ["conv"], [node]
        x, x_scale, up, before = self._inputs(op.x, node)
        weight, bias = op.other
        weight, weight_scale = self._scaled(weight, node)
        if up:
            what.insert(0, "nearest upsampling")
        if x_scale * weight_scale != 1:
            what[-1] = "equalized conv"
        chain = self._follow(node, bias is not None, convolution=True, may_shrink=not up)
        if not up and set(chain.what) <= {"gain", "clamp"}:
            # Equalized or not: scaling weights takes no longer than a pass over the image.
            self.reasons[node] = chain.reason or "nothing follows that it could be fused with"
            return None
        kwargs = op.options | chain.epilogue.options()
        scale = x_scale * weight_scale * chain.weight_scale
        kwargs |= {"weight_scale": scale} if scale != 1 else {}
        kwargs |= {name: True for name, on in (("up", up), ("down", chain.down)) if on}
        args = (x, weight, chain.epilogue.bias if bias is None else bias)
        args += () if chain.batch_norm is None else (chain.batch_norm,)
        plain = set(kwargs) <= _PLAIN and example(node).device.type == "cpu"
        target = fused.plain_convolution if plain else fused.convolution
        return Match(what + chain.what, [*before, *nodes, *chain.nodes], target, args, kwargs, chain.clamp)

    def _inputs(self, x: Any, reader: fx.Node) -> tuple[Any, float, bool, list[fx.Node]]:
        """(what goes in, its constant factor, whether it is upsampled, the nodes of both) of a convolution's x."""
        factor, up, nodes = 1.0, False, []
        while (op := meaning(x)) is not None and not overwrites(x) and dtype_of(op.x) == dtype_of(x):
            alone = set(x.users) == {reader}
            if op.name == "mul" and is_number(op.other) and alone and _may_scale(x):
                factor *= float(op.other)
            elif op.name == "up" and not up and self.options.resample and (alone or self._only_convolutions(x)):
                up = True
            else:
                break
            nodes.insert(0, x)
            x, reader = op.x, x
        return x, factor, up, nodes

    def _only_convolutions(self, up: fx.Node) -> bool:
        """Whether an upsampled image is read by nothing but convolutions, so that it need not be made."""
        return len(up.users) <= 2 and all(
            user.target in (fused.convolution, fused.plain_convolution)
            or ((op := meaning(user)) is not None and op.name == "conv" and op.x is up)
            for user in up.users
        )

    def _scaled(self, weight: Any, conv: fx.Node) -> tuple[Any, float]:
        op = meaning(weight)
        if op is None or not is_number(op.other) or not _may_scale(conv) or shape_of(op.x) != shape_of(weight):
            return weight, 1.0
        if dtype_of(op.x) == dtype_of(weight) and not overwrites(weight):
            if op.name == "mul":
                return op.x, float(op.other)
            if op.name == "div" and op.other != 0:
                return op.x, 1 / float(op.other)
        return weight, 1.0

    def _follow(self, node: fx.Node, has_bias: bool, *, convolution: bool, may_shrink: bool = False) -> Chain:
        """The chain of nodes after `node`, each the only reader of the one before."""
        chain = Chain(may_shrink=may_shrink)
        dtype = dtype_of(node)
        while True:
            if (norm := self._pixel_norm_of(node)) is not None and self.options.bias_act:
                chain.epilogue = replace(chain.epilogue, pixel_norm=True, eps=norm.eps)
                chain.add("pixel norm", *norm.nodes)
                node = norm.nodes[-1]
            if len(node.users) != 1:
                chain.reason = "its output has other readers"
                return chain
            (user,) = node.users
            op = meaning(user)
            if op is None or op.x is not node or chain.epilogue.pixel_norm and op.name != "clamp":
                return chain
            if dtype_of(user) != dtype:
                chain.reason = f"{op.name} changes the dtype"
                return chain
            if op.name == "clamp" and self.options.bias_act:
                chain.clamp = user
                chain.add("clamp")
                return chain
            if chain.epilogue.pixel_norm or not self._take(chain, op, user, node, has_bias, convolution):
                return chain
            node = user

    def _take(self, chain: Chain, op: Op, user: fx.Node, node: fx.Node, has_bias: bool, convolution: bool) -> bool:
        epilogue = chain.epilogue
        linear = epilogue.act == "linear" and epilogue.gain == 1 and chain.batch_norm is None
        has_bias = has_bias or epilogue.bias is not None
        if op.name == "down" and chain.may_shrink and self.options.resample and linear and not chain.down:
            chain.down = True
            return chain.add("2x2 mean", user)
        if op.name == "batch_norm" and convolution and linear:
            chain.batch_norm = op.other
            return chain.add("batch norm", user)
        if not self.options.bias_act:
            return False
        if op.name == "add" and linear and not has_bias:
            if not self._is_bias(op.other, node):
                chain.reason = f"what is added has shape {_printed(op.other)}, not one value per channel"
                return False
            chain.epilogue = replace(epilogue, bias=op.other)
            return chain.add("bias", user)
        if op.name in ("relu", "lrelu") and epilogue.act == "linear":
            slope = op.options["slope"]
            if slope < 0:
                chain.reason = "its slope is negative"
                return False
            chain.epilogue = replace(epilogue, act=op.name, slope=slope)
            return chain.add(op.name, user)
        if op.name in ("mul", "div") and is_number(op.other):
            if op.other <= 0:
                chain.reason = "its gain is not positive"
                return False
            factor = float(op.other) if op.name == "mul" else 1 / float(op.other)
            # relu and lrelu let a positive factor through; before a bias it scales the weight.
            if linear and convolution and not has_bias:
                chain.weight_scale *= factor
            else:
                chain.epilogue = replace(epilogue, gain=epilogue.gain * factor)
            return chain.add("gain", user)
        return False

    def _is_bias(self, node: Any, x: fx.Node) -> bool:
        """Whether `node` is one value for each of x's channels, in x's dtype and on its device."""
        same = dtype_of(node) == dtype_of(x) and example(node) is not None and example(node).device == example(x).device
        return same and is_per_channel(node, x)

    # What stands without a convolution

    def _biased(self, node: fx.Node) -> Match | None:
        """Bias and activation by themselves."""
        op = meaning(node)
        if op is None or op.name != "add" or not self.options.bias_act or example(op.x) is None:
            return None
        x, bias = op.x, op.other
        if not self._is_bias(bias, x) or shape_of(x) != shape_of(node) or dtype_of(node) != dtype_of(x):
            return None
        chain = self._follow(node, True, convolution=False)
        if set(chain.what) <= {"clamp"}:
            return None
        what, nodes, options = ["bias", *chain.what], [node, *chain.nodes], chain.epilogue.options()
        return Match(what, nodes, fused.bias_act, (x, bias), {"act": chain.epilogue.act} | options, chain.clamp)

    def _normalized(self, node: fx.Node) -> Match | None:
        """Pixel norm by itself, with the activation before it if there is one."""
        norm = self._pixel_norm_of(node) if self.options.bias_act else None
        if norm is None:
            return None
        op = meaning(node)
        epilogue, nodes, x, what = Epilogue(pixel_norm=True, eps=norm.eps), norm.nodes, node, ["pixel norm"]
        if op is not None and op.name in ("relu", "lrelu") and op.options["slope"] >= 0 and not overwrites(node):
            epilogue = replace(epilogue, act=op.name, slope=op.options["slope"])
            nodes, x, what = [node, *nodes], op.x, [op.name, *what]
        return Match(what, nodes, fused.bias_act, (x,), {"act": "linear"} | epilogue.options())

    def _pixel_norm_of(self, x: fx.Node) -> Norm | None:
        """The pixel norm of x's value, if that is all that reads it: x / sqrt(mean(x^2, 1) + eps) in any spelling."""
        shape = shape_of(x)
        if len(x.users) != 2 or shape is None or len(shape) < 2:
            return None
        for square in x.users:
            op = meaning(square)
            if op is None or op.name != "square" or op.x is not x:
                continue
            nodes = [square]
            for name in ("mean", "add", "root"):
                if len(nodes[-1].users) != 1:
                    return None
                (user,) = nodes[-1].users
                nodes.append(user)
                op = meaning(user)
                if op is None or op.x is not nodes[-2]:
                    return None
                over_channels = (1,), (1 - len(shape),)
                if name == "mean" and (
                    op.name != "mean" or op.options["dims"] not in over_channels or not op.options["keepdim"]
                ):
                    return None
                if name == "add":
                    if op.name != "add" or not is_number(op.other) or op.other <= 0:
                        return None
                    eps = float(op.other)
            exponent = {"sqrt": 0.5, "rsqrt": -0.5}.get(op.name, op.other if op.name == "power" else None)
            last = next((user for user in x.users if user is not square), None)
            if exponent not in (0.5, -0.5) or set(nodes[-1].users) != {last} or overwrites(last):
                return None
            op = meaning(last)
            operands = (op.x, op.other) if op is not None else ()
            divided = exponent == 0.5 and op is not None and op.name == "div" and operands == (x, nodes[-1])
            multiplied = exponent == -0.5 and op is not None and op.name == "mul" and set(operands) == {x, nodes[-1]}
            if not (divided or multiplied) or any(dtype_of(n) != dtype_of(x) for n in (*nodes, last)):
                return None
            return Norm(eps, [*nodes, last])
        return None

    def _rescaled(self, node: fx.Node) -> Match | None:
        """Rescaling by itself."""
        wanted = self.options.resample and self.options.alone and example(node).device.type == "cpu"
        op = meaning(node) if wanted else None
        if op is None or op.name not in ("up", "down") or overwrites(node):
            return None
        up = op.name == "up"
        what = "nearest upsampling" if up else "2x2 mean"
        return Match([what], [node], fused.upsample if up else fused.downsample, (op.x,), {})

    def _activated(self, node: fx.Node) -> Match | None:
        """An activation by itself, in place where nobody needs what it reads."""
        op = meaning(node) if self.options.bias_act else None
        if op is None or op.name not in ("relu", "lrelu") or op.options["slope"] < 0 or overwrites(node):
            return None
        fresh = op.x.op == "call_function" and op.x.target in _KEEP_INPUTS_ALONE and aliases_of(op.x) == {op.x}
        if not fresh or set(op.x.users) != {node} or dtype_of(op.x) != dtype_of(node) or leaves(node):
            return None
        return Match([f"{op.name} in place"], [node], fused.activate, (op.x,), {"act": op.name} | op.options)

    def _stddev(self, node: fx.Node) -> Match | None:
        op = meaning(node) if self.options.minibatch_stddev else None
        if op is None or op.name != "cat" or op.options["dim"] not in (1, -3) or len(op.x) != 2:
            return None
        if dtype_of(op.x[0]) != dtype_of(node):
            return None
        found = find_stddev(self.graph, *op.x, shape_of(op.x[0]))
        if found is None:
            return None
        nodes, options = found
        return Match(["minibatch stddev"], [*nodes, node], fused.minibatch_stddev, (op.x[0],), options)


_KEEP_INPUTS_ALONE = {F.batch_norm, F.conv2d, F.conv_transpose2d, F.linear, torch.add, operator.add}
"""Functions whose result is theirs alone and that do not need it for backward."""

_PLAIN = {"stride", "padding", "dilation", "groups", "act", "slope"}


def _may_scale(node: fx.Node) -> bool:
    """Whether a factor may be applied later: in half precision the unscaled values might overflow."""
    return dtype_of(node) != torch.float16


def _printed(node: Any) -> str:
    value = example(node)
    return "unknown" if value is None else str(list(value.shape))
