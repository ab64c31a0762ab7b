"""Patterns in a captured graph, and the fused calls that take their place."""

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from pggan_fast.dropin import blur, fused, identify
from pggan_fast.dropin.graph import (
    Match,
    aliases_of,
    dtype_of,
    example,
    follows_layout,
    has_gradient,
    is_on_cpu,
    is_per_channel,
    is_shared,
    kept_by,
    leaves,
    may_scale,
    note_modes,
    obstacle,
    overwrites,
    same_modes,
    shape_of,
    simplify,
    sizes_of,
    storage_of,
    written_by,
)
from pggan_fast.dropin.meaning import Op, meaning, pair

FOLD_FROM = 512
"""Pixels of a convolution's output, in a batch, from which folding a rescaling into it costs less than it saves."""

SCALE_FROM = 1 << 16
"""Values of a weight or an image from which a CPU's pass that scales them takes longer than to call an epilogue."""

BATCH_NORM_FROM = 4
"""Output values for each weight from which scaling the weights costs less than scaling the image."""

SMALL_CALLS = 65_536
"""Weights that could be scaled in the time that it takes to call the functions which scale them."""

INSTANCE_NORM_FROM = 1 << 17
"""Values from which a CPU's group norm saves more than its second derivative costs more."""

GUARDS = 128
"""Guards of a call that take as long as one activation in place of `fused.IN_PLACE_FROM` values saves."""

_KEEP_INPUTS_ALONE = {F.batch_norm, F.conv2d, F.conv_transpose2d, F.linear, F.group_norm, torch.add, operator.add}
"""Functions whose result is theirs alone and that do not need it for backward."""

_KEEPS = {fused.convolution: (0, 1), fused.modulated_convolution: (0, 2), fused.minibatch_stddev: (0,)}
"""{call: places of the arguments that autograd keeps for its backward, where it may not have kept them before}"""


@dataclass(frozen=True)
class Options:
    """Which patterns are replaced."""

    bias_act: bool = True
    conv: bool = True
    resample: bool = True
    minibatch_stddev: bool = True
    alone: bool = True
    """Also blurs and rescaling without a convolution, which Inductor would fuse with its neighbours."""


class Rewriter:
    """Find and replace patterns in one graph, where the example values prove that a call computes the same."""

    def __init__(self, graph: fx.Graph, options: Options, guards: int = 0):
        self.graph, self.options = graph, options
        self.guards = guards
        """How many guards each call is checked by, if anything is replaced."""
        simplify(graph)
        note_modes(graph)
        self.replaced: list[tuple[dict, str]] = []
        """(meta of the node where the chain begins, what) for each call that was put in."""
        self.reasons: dict[fx.Node, str] = {}
        """Why a node was left, where there is more to say than that nothing about it is fused."""
        self._patterns = (  # in this order: (switch, names of the nodes where it ends, what finds it or tells why not)
            ("alone", ("conv", "transposed conv"), blur.find),
            ("conv", ("conv", "transposed conv"), identify.modulation),
            ("conv", ("batch_norm",), _batch_norm),
            ("bias_act", ("instance_norm",), _instance_norm),
            ("conv", ("conv",), self._convolution),
            ("minibatch_stddev", ("cat",), identify.stddev),
            ("bias_act", None, self._epilogue),
            ("alone", ("up", "down"), _rescaled),
        )

    def run(self) -> list[tuple[dict, str]]:
        """Rewrite the graph and return `replaced`."""
        self._separate([node for node in self.graph.nodes if hasattr(node.target, "pggan_fast_name")])
        for switch, names, find in self._patterns:
            for node in self.graph.nodes if getattr(self.options, switch) else ():  # calls put in come up too
                if not node.users or example(node) is None:
                    continue
                op = meaning(node)
                match = find(node, op) if names is None or op is not None and op.name in names else None
                if isinstance(match, str):
                    self.reasons.setdefault(node, match)
                elif match is None:
                    continue
                elif reason := obstacle([*match.folded, *match.nodes], match.target not in _KEEP_INPUTS_ALONE):
                    self.reasons[match.nodes[0]] = reason
                elif not follows_layout(match.nodes[-1], match.args[0]):
                    self.reasons[match.nodes[0]] = "its result would lie in memory in another order"
                else:
                    place = next((n for n in match.nodes if n.target is F.conv2d), node)
                    self.replaced.append((place.meta, " + ".join(match.what)))
                    self._replace(match)
        return self.replaced

    def _replace(self, match: Match) -> None:
        last = match.nodes[-1]
        op = meaning(last)
        keeps_more = match.kwargs.keys() & {"act", "pixel_norm"} and not (op is not None and op.name == "relu")
        copies = keeps_more and leaves(last)  # where autograd keeps the result, and did not before
        with self.graph.inserting_after(last):
            call = self.graph.call_function(match.target, match.args, match.kwargs)
        call.meta.update((name, value) for name, value in last.meta.items() if name != "rescaling")
        last.replace_all_uses_with(call)
        if has_gradient(last):
            kept = {storage_of(source) for node in match.nodes for source in kept_by(node)}
            arguments = [match.args[i] for i in _KEEPS.get(match.target, ()) if isinstance(match.args[i], fx.Node)]
            self._copy([a for a in arguments if is_shared(a) and storage_of(a) not in kept], call)
        if copies:
            self._copy_result(call)
        for node in reversed(match.nodes):
            self._erase(node)

    def _copy(self, arguments: list[fx.Node], call: fx.Node) -> None:
        """Copy for a call what autograd keeps now and did not before, and others may write over."""
        for argument in arguments:
            with self.graph.inserting_before(call):
                copied = self.graph.call_function(torch.clone, (argument,))
            copied.meta |= {**call.meta, "example_value": example(argument).clone()}
            call.replace_input_with(argument, copied)

    def _copy_result(self, call: fx.Node) -> None:
        with self.graph.inserting_after(call):
            result = self.graph.call_function(fused.unshared, (call,))
        result.meta |= call.meta
        call.replace_all_uses_with(result, lambda user: user is not result)

    def _separate(self, calls: list[fx.Node]) -> None:
        """Copy what our functions in the place of theirs, which `known` has put in, may keep, and others write over."""
        written = {memory for node in self.graph.nodes for memory in written_by(node)} if calls else set()
        for call in calls:
            self.replaced.append((call.meta, call.target.pggan_fast_name))
            if has_gradient(call):
                self._copy([a for a in call.all_input_nodes if is_shared(a) or storage_of(a) in written], call)
                if leaves(call) or storage_of(call) in written:
                    self._copy_result(call)

    def _erase(self, node: fx.Node) -> None:
        """Erase a node that nothing reads, and what only it read."""
        if node._erased or node.users or node.op == "placeholder":
            return
        inputs = node.all_input_nodes
        self.graph.erase_node(node)
        for source in inputs:
            if source.op == "get_attr" or (op := meaning(source)) is not None and op.name in ("mul", "div"):
                self._erase(source)

    # A convolution and what surrounds it

    def _convolution(self, node: fx.Node, op: Op) -> Match | str:
        """A convolution between rescalings, or with more than an activation after it."""
        padding = _same_padding(node, op)
        if padding is None:
            return "its geometry is not that of a fused convolution"
        # A 1x1 convolution need not be folded: it takes the smaller image.
        point = shape_of(op.weight)[-1] == 1 and padding == 0
        foldable = self.options.resample and (point or _count(node, 1) >= FOLD_FROM)
        match = Match(fused.convolution, ["conv"], [node], kwargs={"padding": padding, "bias": op.bias})
        x, scale = _precede(match, op.x, foldable)
        weight, factor = _scaled(op.weight, node)
        match.folded += [op.weight] if weight is not op.weight else []
        if scale * factor != 1:
            match.what[-1], match.kwargs["weight_scale"] = "equalized conv", scale * factor
        self._follow(match, shrinks=foldable and "up" not in match.kwargs)
        found = {*match.what, *match.kwargs}
        spared = scale * factor != 1 and _count(op.x if scale != 1 else op.weight) >= SCALE_FROM
        activated = "act" in found and (spared or "gain" in found or not is_on_cpu(node))
        if not (found & {"up", "down", "pixel_norm"} or "bias" in match.what or activated):
            # A CPU's convolution adds the bias itself, and an activation is one pass either way.
            return match.reason or "nothing surrounds it that it could be fused with"
        match.args = (x, weight, match.kwargs.pop("bias"))
        return match

    def _follow(self, match: Match, shrinks: bool = False) -> None:
        """Add to a chain the nodes after its last, each the only reader of the one before."""
        while not self._add_norm(match, node := match.nodes[-1]):
            if len(node.users) != 1:
                match.reason = "its output has other readers"
                return
            (user,) = node.users
            op = meaning(user)
            if op is None or op.x is not node or not self._add(match, user, op, shrinks):
                return

    def _add(self, match: Match, node: fx.Node, op: Op, shrinks: bool = False) -> bool:
        """Add one node to a chain if it can come next; otherwise note the reason."""
        step = _step(match, op, shrinks, self.options.bias_act)
        if dtype_of(node) != dtype_of(op.x):
            step = f"{op.name} changes the dtype"
        if isinstance(step, str):
            match.reason = step
            return False
        match.add(step[0], [node], step[1])
        return True

    def _add_norm(self, match: Match, x: fx.Node) -> bool:
        """Add the pixel norm of x's value to a chain, if that is all that reads it."""
        for last in x.users if self.options.bias_act and len(x.users) > 1 else ():
            op = meaning(last)
            if op is None or op.name not in ("mul", "div") or overwrites(last):
                continue
            found = identify.pixel_norm(x, last)
            if found is not None and set(x.users) <= set(found[0]):
                match.add("pixel norm", found[0], {"pixel_norm": True, "eps": found[1]})
                return True
        return False

    def _epilogue(self, node: fx.Node, op: Op | None) -> Match | str | None:
        """Bias, activation and pixel norm without a convolution."""
        match = Match(fused.bias_act)
        starts = op is not None and op.name in ("add", "relu", "lrelu") and not overwrites(node)
        if starts and example(op.x) is not None and shape_of(op.x) == shape_of(node) and self._add(match, node, op):
            match.args = (op.x,)
            self._follow(match)
        elif self._add_norm(match, node):
            match.args = (node,)
        if "pixel norm" in match.what or match.kwargs.keys() >= {"bias", "act"}:
            return match
        return self._in_place(node, op) if "act" in match.kwargs else None

    def _in_place(self, node: fx.Node, op: Op) -> Match | str | None:
        """An activation in place, where nobody needs what it reads."""
        fresh = op.x.op == "call_function" and op.x.target in _KEEP_INPUTS_ALONE and aliases_of(op.x) == [op.x]
        if not fresh or set(op.x.users) != {node} or not same_modes(op.x, node):  # else it might get gradients
            return None
        if op.name == "lrelu" and leaves(node):  # autograd keeps the result, which it did not before
            return None
        least = fused.IN_PLACE_FROM * (1 if self.replaced else max(1, self.guards / GUARDS))
        if _count(node) < least:
            return "it is small: in place saves less than the guards of a call cost"
        options = {"act": op.name, "slope": op.slope}
        return Match(fused.activate_, [f"{op.name} in place"], [node], (op.x,), options)


def _same_padding(conv: fx.Node, op: Op) -> int | None:
    """The padding if `ops.equalized_conv2d` can take this convolution, else None."""
    taps = (shape_of(op.weight) or ())[2:]
    if len(shape_of(conv)) != 4 or not taps or taps[0] != taps[1] or op.groups != 1:
        return None
    if pair(op.stride) != (1, 1) or pair(op.dilation) != (1, 1) or (sides := op.sides(taps)) is None:
        return None
    pixels = {n for side in sides for n in side}
    return min(pixels) if len(pixels) == 1 and min(pixels) < taps[0] else None


def _precede(match: Match, x: Any, foldable: bool) -> tuple[Any, float]:
    """Add what comes before a convolution to its chain, and return (what goes in, its constant factor)."""
    factor = 1.0
    while (op := meaning(x)) is not None and not overwrites(x) and dtype_of(op.x) == dtype_of(x):
        alone = set(x.users) == {match.nodes[0]}
        if op.factor is not None and alone and may_scale(x):
            factor *= op.factor
            match.nodes.insert(0, x)
        elif op.name == "up" and foldable and "up" not in match.kwargs and (alone or _only_convolutions(x)):
            match.what.insert(0, "nearest upsampling")
            match.nodes[:0], match.kwargs["up"] = op.nodes, True
        else:
            break
        x = op.x
    return x, factor


def _scaled(weight: Any, conv: fx.Node) -> tuple[Any, float]:
    """(weight, factor) of a convolution's weight."""
    op = meaning(weight)
    if op is None or op.factor is None or overwrites(weight) or not may_scale(conv):
        return weight, 1.0
    alike = shape_of(op.x) == shape_of(weight) and dtype_of(op.x) == dtype_of(weight)
    return (op.x, op.factor) if alike and same_modes(weight, conv) else (weight, 1.0)


def _only_convolutions(up: fx.Node) -> bool:
    """Whether an upsampled image is read by nothing but convolutions, so that it need not be made."""
    return len(up.users) <= 2 and all(
        user.target is fused.convolution or ((op := meaning(user)) is not None and op.name == "conv" and op.x is up)
        for user in up.users
    )


def _step(match: Match, op: Op, shrinks: bool, bias_act: bool) -> tuple[str, dict[str, Any]] | str:
    """(what, arguments) that an operation adds to a chain, or why it cannot come next, if there is something to say.

    shrinks: a 2x2 mean may come: not after an upsampling, which does not commute with the convolution.
    """
    known = match.kwargs
    linear, biased = not known.keys() & {"act", "gain"}, known.get("bias") is not None
    if op.name == "down" and shrinks and linear and "down" not in known:
        return "2x2 mean", {"down": True, **op.options}
    if not bias_act:
        return ""
    if op.name == "add" and linear and not biased:
        if is_per_channel(op.other, op.x):
            return "bias", {"bias": op.other}
        shape = getattr(example(op.other), "shape", None)
        return f"what is added has shape {shape and list(shape)}, not one value per channel"
    if op.name in ("relu", "lrelu") and "act" not in known:
        return (op.name, {"act": op.name, "slope": op.slope}) if op.slope >= 0 else "its slope is negative"
    if op.factor is None:
        return ""
    # relu and lrelu let a positive factor through; before a bias it scales the weight.
    name = "weight_scale" if linear and match.target is fused.convolution and not biased else "gain"
    positive = op.factor >= 0
    return ("gain", {name: known.get(name, 1.0) * op.factor}) if positive else "its gain is not positive"


# Calls by themselves


def _batch_norm(node: fx.Node, op: Op) -> Match | str | None:
    """Batch norm in eval mode, folded into the weights of the convolution before it."""
    conv = meaning(op.x)
    if conv is None or conv.name != "conv" or len(op.x.users) != 1 or len(shape_of(node)) != 4:
        return None
    dtypes = dtype_of(op.running_mean) == dtype_of(conv.weight) and dtype_of(node) == dtype_of(op.x)
    if not dtypes or obstacle([op.x, node], False):
        return None
    if has_gradient(node) and not has_gradient(op.x):
        return "its convolution is not trained, and would be if the two were one"
    values = math.prod(shape_of(conv.weight))
    if _count(node, 1) * shape_of(conv.weight)[0] < BATCH_NORM_FROM * (values + SMALL_CALLS):
        return "its image is small: scaling the weights would cost more"
    norm = (op.running_mean, op.running_var, op.weight, op.bias, float(op.eps))
    with node.graph.inserting_before(node):
        folded = node.graph.call_function(fused.fold_batch_norm, (conv.weight, conv.bias, *norm))
        parts = [node.graph.call_function(operator.getitem, (folded, i)) for i in (0, 1)]
    for part, like in zip(parts, (conv.weight, op.running_mean), strict=True):
        part.meta |= {"example_value": example(like), "modes": node.meta["modes"]}
    return Match(F.conv2d, ["batch norm into conv"], [op.x, node], (conv.x, *parts), conv.geometry)


def _instance_norm(node: fx.Node, op: Op) -> Match | str | None:
    """Instance norm: on a CPU group norm with a group for each channel is faster.

    Not with weights: of these group norm has second derivatives that are zero, where instance norm has none.
    """
    sizes = sizes_of(op.x)
    if sizes is None or len(sizes) < 3 or not is_on_cpu(op.x) or not example(op.x).is_contiguous():
        return None
    if dtype_of(node) != dtype_of(op.x) or not (op.weight is op.bias is None):
        return None
    if not 0 < math.prod(sizes) >= INSTANCE_NORM_FROM:
        return "its image is small: torch's own is as fast"
    return Match(F.group_norm, ["instance norm"], [node], (op.x, sizes[1], None, None, float(op.eps)))


def _rescaled(node: fx.Node, op: Op) -> Match | None:
    """Rescaling by itself."""
    if not is_on_cpu(node) or dtype_of(node) != dtype_of(op.x):
        return None
    name, call = ("nearest upsampling", fused.upsample) if op.name == "up" else ("2x2 mean", fused.downsample)
    return Match(call, [name], op.nodes, (op.x,), op.options)


def _count(node: fx.Node, *left_out: int) -> float:
    """Product of the sizes, some dimensions left out; infinity, where sizes vary."""
    sizes = [n for i, n in enumerate(shape_of(node)) if i not in left_out]
    return math.prod(sizes) if all(type(n) is int for n in sizes) else math.inf
