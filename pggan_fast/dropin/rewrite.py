"""Patterns in a graph, and the fused calls that take their place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from pggan_fast.dropin import fused
from pggan_fast.dropin.chain import Chain, Epilogue, Match, Norm
from pggan_fast.dropin.graph import Meaning, Op, is_number, out_of_place, overwrites, shape_of
from pggan_fast.dropin.overwriting import is_written_over, leaves, writes
from pggan_fast.dropin.stddev import find_stddev
from pggan_fast.dropin.trace import is_of_torch


@dataclass(frozen=True)
class Options:
    """Which patterns `accelerate` replaces."""

    bias_act: bool = True
    conv: bool = True
    resample: bool = True
    minibatch_stddev: bool = True
    device: str = "cpu"
    alone: bool = True
    """Also rescaling without a convolution, which Inductor would fuse with its neighbours."""


class Rewriter:
    """Finds and replaces patterns in one graph of `root`'s forward.

    `root` gives modules and parameters that the graph names; `note(module, name, value)` is told what is read of them.
    """

    def __init__(self, graph: fx.Graph, root: nn.Module, options: Options, note: Callable = lambda *_: None):
        self.graph, self.root, self.options = graph, root, options
        self.meaning = Meaning(root, note)
        self.erased: set[fx.Node] = set()
        self.absorbed: list[nn.Module] = []
        """Modules whose code no longer runs."""

    def run(self) -> list[tuple[str, str]]:
        """Rewrites the graph. Returns (path of the module where it begins, what) for each call that was put in."""
        done = []
        for find in (self._convolution, self._biased, self._normalized, self._stddev, self._rescaled):
            for node in list(self.graph.nodes):
                match = find(node) if node.users and node not in self.erased else None
                if match is not None and self._undisturbed(match) and not self._written_over(match):
                    done.append((_place(node), " + ".join(match.what)))
                    self._replace(match)
        return done

    def _undisturbed(self, match: Match) -> bool:
        """Whether nothing that runs between the chain's nodes may write over what they read."""
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        first, last = min(order[n] for n in match.nodes), max(order[n] for n in match.nodes)
        members = set(match.nodes)
        return not any(first < order[n] < last and n not in members and self._may_overwrite(n) for n in order)

    def _written_over(self, match: Match) -> bool:
        """Whether something writes over what the call reads or returns, which backward may need."""
        if match.clamp is not None:
            return is_written_over(match.args[0], match.nodes[0], self.meaning)
        ends = (match.args[0], match.last)
        return any(is_written_over(end, match.nodes[0], self.meaning) for end in ends)

    def _may_overwrite(self, node: fx.Node) -> bool:
        own_code = node.op == "call_module" and not is_of_torch(self.meaning.module(node))
        return own_code or writes(node, self.meaning)

    def _replace(self, match: Match) -> None:
        with self.graph.inserting_after(match.last):
            call = self.graph.call_function(match.target, match.args, match.kwargs)
        call.meta.update(match.last.meta)
        result = call
        if self._keeps_more(match) and leaves(match.last, self.meaning):
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
            out_of_place(match.clamp, self.meaning)

    def _keeps_more(self, match: Match) -> bool:
        """Whether autograd keeps the call's result, and did not keep that of the last function."""
        op = self.meaning(match.last)
        kept = op is not None and (op.name == "relu" or (op.name == "lrelu" and self._may_overwrite(match.last)))
        activated = match.kwargs.get("act", "linear") != "linear" or match.kwargs.get("pixel_norm", False)
        return not kept and activated

    def _erase(self, node: fx.Node) -> None:
        """Erases a node that nothing reads, and what only it read."""
        if node in self.erased or node.users or node.op == "placeholder":
            return
        self.erased.add(node)
        inputs = node.all_input_nodes
        if node.op == "call_module":
            self.absorbed.append(self.meaning.module(node))
        self.graph.erase_node(node)
        for source in inputs:
            if (
                source.op == "get_attr"
                or (op := self.meaning(source)) is not None
                and op.name in ("mul", "div", "view")
            ):
                self._erase(source)

    def _attribute(self, module: fx.Node, name: str) -> fx.Node | None:
        """A node that reads a parameter of the module that another node calls."""
        if getattr(self.meaning.module(module), name) is None:
            return None
        with self.graph.inserting_before(module):
            return self.graph.get_attr(f"{module.target}.{name}")

    # A convolution and what surrounds it

    def _convolution(self, node: fx.Node) -> Match | None:
        op = self.meaning(node)
        if op is None or op.name != "conv" or not self.options.conv:
            return None
        what, nodes = ["conv"], [node]
        x, x_scale, up, before = self._inputs(op.x, node)
        weight, bias = op.other or (None, None)
        weight, weight_scale = self._scaled(weight) if weight is not None else (None, 1.0)
        if up:
            what.insert(0, "nearest upsampling")
        if x_scale * weight_scale != 1:
            what[-1] = "equalized conv"
        own_bias = bias is not None if op.other else self.meaning.module(node).bias is not None
        chain = self._follow(node, own_bias, convolution=True)
        if not up and set(chain.what) <= {"gain", "clamp"}:
            return None  # equalized or not: scaling weights takes no longer than a pass over the image
        if op.other is None:
            weight, bias = self._attribute(node, "weight"), self._attribute(node, "bias")
        scale = x_scale * weight_scale * chain.weight_scale
        kwargs = op.options | chain.epilogue.options()
        kwargs |= {"weight_scale": scale} if scale != 1 else {}
        kwargs |= {name: True for name, on in (("up", up), ("down", chain.down)) if on}
        args = (x, weight, bias if own_bias else chain.epilogue.bias)
        if chain.batch_norm is not None:
            with self.graph.inserting_before(node):
                args += (self.graph.get_attr(chain.batch_norm.target),)
        target = fused.convolution
        if set(kwargs) <= _PLAIN and kwargs["padding_mode"] == "zeros" and self.options.device == "cpu":
            target = fused.plain_convolution
            del kwargs["padding_mode"]
        return Match(what + chain.what, [*before, *nodes, *chain.nodes], target, args, kwargs, chain.clamp)

    def _inputs(self, x: Any, reader: fx.Node) -> tuple[Any, float, bool, list[fx.Node]]:
        """(what goes in, its constant factor, whether it is upsampled, the nodes of both) of a convolution's x."""
        factor, up, nodes = 1.0, False, []
        while (op := self.meaning(x)) is not None and not overwrites(x):
            alone = set(x.users) == {reader}
            if op.name == "mul" and is_number(op.other) and alone:
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
            or ((op := self.meaning(user)) is not None and op.name == "conv")
            for user in up.users
        )

    def _scaled(self, weight: Any) -> tuple[Any, float]:
        op = self.meaning(weight)
        if op is not None and op.name == "mul" and is_number(op.other) and isinstance(op.x, fx.Node):
            return op.x, float(op.other)
        if op is not None and op.name == "div" and is_number(op.other) and op.other != 0:
            return op.x, 1 / float(op.other)
        return weight, 1.0

    def _follow(self, node: fx.Node, has_bias: bool, *, convolution: bool) -> Chain:
        """The chain of nodes after `node`, each the only reader of the one before."""
        chain = Chain()
        while True:
            if (norm := self._pixel_norm_of(node)) is not None and self.options.bias_act:
                chain.epilogue = replace(chain.epilogue, pixel_norm=True, eps=norm.eps)
                chain.add("pixel norm", *norm.nodes)
                node = norm.nodes[-1]
            if len(node.users) != 1:
                return chain
            (user,) = node.users
            op = self.meaning(user)
            if op is not None and op.name == "clamp" and op.x is node and self.options.bias_act:
                chain.clamp = user
                chain.add("clamp")
                return chain
            done = op is None or op.x is not node or chain.epilogue.pixel_norm
            if done or not self._take(chain, op, user, has_bias, convolution):
                return chain
            node = user

    def _take(self, chain: Chain, op: Op, user: fx.Node, has_bias: bool, convolution: bool) -> bool:
        epilogue = chain.epilogue
        linear = epilogue.act == "linear" and epilogue.gain == 1 and chain.batch_norm is None
        has_bias = has_bias or epilogue.bias is not None
        if op.name == "down" and convolution and self.options.resample and linear and not chain.down:
            chain.down = True
            return chain.add("2x2 mean", user)
        if op.name == "batch_norm" and convolution and linear and user.op == "call_module":
            chain.batch_norm = user
            return chain.add("batch norm", user)
        if not self.options.bias_act:
            return False
        if op.name == "add" and linear and not has_bias and (bias := self._bias(op.other)) is not None:
            chain.epilogue = replace(epilogue, bias=bias)
            return chain.add("bias", user)
        if op.name in ("relu", "lrelu") and epilogue.act == "linear":
            slope = float(op.options.get("slope", 0.0))
            if slope < 0:
                return False
            chain.epilogue = replace(epilogue, act=op.name, slope=slope)
            return chain.add(op.name, user)
        if op.name in ("mul", "div") and is_number(op.other) and op.other > 0:
            factor = float(op.other) if op.name == "mul" else 1 / float(op.other)
            # relu and lrelu let a positive factor through; before a bias it scales the weight.
            if linear and convolution and not has_bias:
                chain.weight_scale *= factor
            else:
                chain.epilogue = replace(epilogue, gain=epilogue.gain * factor)
            return chain.add("gain", user)
        return False

    def _bias(self, node: Any) -> fx.Node | None:
        """The tensor of C values that a node broadcasts over [N, C, H, W]."""
        op = self.meaning(node)
        if op is not None and op.name == "view":
            shape = op.options["shape"]
            fits = len(shape) == 4 and shape[0] == shape[2] == shape[3] == 1
            return op.x if fits and isinstance(op.x, fx.Node) else None
        if isinstance(node, fx.Node) and node.op == "get_attr":
            shape = _attribute(self.root, node.target).shape
            return node if len(shape) == 4 and shape[0] == shape[2] == shape[3] == 1 else None
        return None

    # What stands without a convolution

    def _biased(self, node: fx.Node) -> Match | None:
        """Bias and activation by themselves."""
        op = self.meaning(node)
        if op is None or op.name != "add" or not self.options.bias_act or (bias := self._bias(op.other)) is None:
            return None
        chain = self._follow(node, True, convolution=False)
        if set(chain.what) <= {"clamp"}:
            return None
        what, nodes, options = ["bias", *chain.what], [node, *chain.nodes], chain.epilogue.options() | _act(chain)
        return Match(what, nodes, fused.bias_act, (op.x, bias), options, chain.clamp)

    def _normalized(self, node: fx.Node) -> Match | None:
        """Pixel norm by itself, with the activation before it if there is one."""
        norm = self._pixel_norm_of(node) if self.options.bias_act else None
        if norm is None:
            return None
        op = self.meaning(node)
        epilogue, nodes, x, what = Epilogue(pixel_norm=True, eps=norm.eps), norm.nodes, node, ["pixel norm"]
        if (
            op is not None
            and op.name in ("relu", "lrelu")
            and op.options.get("slope", 0.0) >= 0
            and not overwrites(node)
        ):
            epilogue = replace(epilogue, act=op.name, slope=float(op.options.get("slope", 0.0)))
            nodes, x, what = [node, *nodes], op.x, [op.name, *what]
        options = epilogue.options()
        return Match(what, nodes, fused.bias_act, (x,), {"act": "linear"} | options)

    def _pixel_norm_of(self, x: fx.Node) -> Norm | None:
        """The pixel norm of x's value, if that is all that reads it: x / sqrt(mean(x^2, 1) + eps) in any spelling."""
        if len(x.users) != 2:
            return None
        for square in x.users:
            op = self.meaning(square)
            if op is None or op.name != "square" or op.x is not x:
                continue
            nodes = [square]
            for name in ("mean", "add", "root"):
                if len(nodes[-1].users) != 1:
                    return None
                (user,) = nodes[-1].users
                nodes.append(user)
                op = self.meaning(user)
                if op is None or op.x is not nodes[-2]:
                    return None
                if name == "mean" and (op.name != "mean" or op.options["dims"] != (1,) or not op.options["keepdim"]):
                    return None
                if name == "add":
                    if op.name != "add" or not is_number(op.other) or op.other <= 0:
                        return None
                    eps = float(op.other)
            exponent = {"sqrt": 0.5, "rsqrt": -0.5}.get(op.name, op.other if op.name == "power" else None)
            last = next((user for user in x.users if user is not square), None)
            if exponent not in (0.5, -0.5) or set(nodes[-1].users) != {last} or overwrites(last):
                return None
            op = self.meaning(last)
            operands = (op.x, op.other) if op is not None else ()
            divided = exponent == 0.5 and op is not None and op.name == "div" and operands == (x, nodes[-1])
            multiplied = exponent == -0.5 and op is not None and op.name == "mul" and set(operands) == {x, nodes[-1]}
            return Norm(eps, [*nodes, last]) if divided or multiplied else None
        return None

    def _rescaled(self, node: fx.Node) -> Match | None:
        """Rescaling by itself."""
        wanted = self.options.resample and self.options.alone and self.options.device == "cpu"
        op = self.meaning(node) if wanted else None
        if op is None or op.name not in ("up", "down") or overwrites(node):
            return None
        up = op.name == "up"
        what = "nearest upsampling" if up else "2x2 mean"
        return Match([what], [node], fused.upsample if up else fused.downsample, (op.x,), {})

    def _stddev(self, node: fx.Node) -> Match | None:
        if not self.options.minibatch_stddev:
            return None
        op = self.meaning(node)
        if op is None or op.name != "cat" or op.options["dim"] not in (1, -3) or len(op.x) != 2:
            return None
        found = find_stddev(self.graph, self.root, *op.x, shape_of(op.x[0]))
        if found is None:
            return None
        nodes, options = found
        return Match(["minibatch stddev"], [*nodes, node], fused.minibatch_stddev, (op.x[0],), options)


_PLAIN = {"stride", "padding", "dilation", "groups", "padding_mode", "act", "slope"}


def _act(chain: Chain) -> dict[str, Any]:
    """`ops.bias_act` has lrelu for its default."""
    return {"act": chain.epilogue.act}


def _attribute(root: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(root.get_submodule(owner), name)


def _place(node: fx.Node) -> str:
    """The path of the module whose code the node comes from."""
    if node.op == "call_module":
        return node.target
    stack = node.meta.get("nn_module_stack")
    return list(stack.values())[-1][0] if stack else ""


def mentions_stddev(graph: fx.Graph) -> bool:
    """Whether a statistic over the batch is appended to something, which takes shapes to be sure of."""
    return any(_over_batch(node) for node in graph.nodes)


def _over_batch(node: fx.Node) -> Iterator[bool] | bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in ("std", "var")
