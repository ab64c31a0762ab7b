"""A module whose forward runs a rewritten graph while that is right, and else its own code.

The module's class is exchanged for a subclass of the same name, so that parameters, children, hooks, buffers and
every attribute stay what and where they are; copies and pickles come out the same way.
"""

import copyreg
import functools
import operator
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C import _is_any_autocast_enabled, _is_tracing
from torch._C._functorch import peek_interpreter_stack as _interpreters
from torch.autograd import forward_ad

from pggan_fast.dropin.rewrite import Options, Rewriter, mentions_stddev
from pggan_fast.dropin.trace import BranchesOnValues, Guards, arguments, is_of_torch, trace
from pggan_fast.dropin.watch import NotTraceable

STATE = "_pggan_fast"
MOST_VARIANTS = 16
"""Traces kept for one module; a forward that wants more (an attribute that changes at each step) runs its own code."""


@dataclass
class Variant:
    """A trace that was rewritten, or found not worth it (`run` is None)."""

    run: Callable | None
    guards: Guards
    key: tuple
    """(number of arguments, kind of device, whether under autocast, shapes or None)."""
    replaced: list[tuple[str, str]] = field(default_factory=list)
    """(path below the module, what)."""
    apart: tuple[str, ...] = ()
    """Children of a Sequential that run as they are, beside the others."""


class State:
    """The variants of one module. Copies and pickles start without any and trace again."""

    def __init__(self, options: Options):
        self.options = options
        self.variants: list[Variant] = []
        self.counts: range | None = None
        """How many arguments forward takes."""
        self.by_shape = False
        """Whether only the trace for a known shape finds all there is to replace."""
        self.reason = ""
        self.owner: Callable[[], nn.Module | None] = lambda: None
        """Whose variants these are: a shallow copy has this very state, and parameters of its own."""
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return State, (self.options,)

    def prepare(self, module: nn.Module) -> None:
        """Traces without shapes, once."""
        if self.counts is not None:
            return
        self.owner = weakref.ref(module)
        try:
            names, defaults = arguments(original(module))
            self.counts = range(len(names) - len(defaults), len(names) + 1)
            device = next((p.device.type for p in module.parameters()), "cpu")
            self.add(module, (self.counts[0], device, False, None), None)
        except NotTraceable as error:
            self.counts = range(0)
            self.reason = str(error)

    def add(self, module: nn.Module, key: tuple, args: tuple[Tensor, ...] | None) -> Variant:
        """Traces for a key; `args` where it has shapes."""
        count, device, autocast, shapes = key
        options = replace(self.options, device=device)
        if autocast:  # where each function's place in torch's lists decides its dtype
            options = replace(options, bias_act=False, minibatch_stddev=False)
        try:
            variant = self._rewrite(module, count, args, options, key)
        except NotTraceable as error:
            try_with_shapes = isinstance(error, BranchesOnValues) and shapes is None
            self.by_shape |= try_with_shapes
            self.reason = str(error)
            variant = Variant(None, Guards(), key)
            if original(module).forward is nn.Sequential.forward and not try_with_shapes:
                variant = _in_parts(module, options, key)
        self.variants.append(variant)
        return variant

    def _rewrite(self, module: nn.Module, count: int, args: Any, options: Options, key: tuple) -> Variant:
        traced = trace(module, count, args)
        guards = traced.guards
        rewriter = Rewriter(traced.graph, module, options, guards.add_attribute)
        replaced = rewriter.run()
        for absorbed in rewriter.absorbed:
            guards.add_module(absorbed)
        if args is None and options.minibatch_stddev and mentions_stddev(traced.graph):
            self.by_shape = True
        return Variant(_compiled(traced.graph, module, guards) if replaced else None, guards, key, replaced)

    def find(self, module: nn.Module, args: tuple, kwargs: dict) -> Callable | None:
        """The rewritten forward that is right for this call. Runs cold before each forward: every look-up counts."""
        if kwargs or not args:
            return None
        if self.counts is not None and (len(args) not in self.counts or self.owner() is not module):
            return None
        for argument in args:
            if type(argument) is not Tensor and type(argument) is not nn.Parameter:
                return None
        # A transformation is at work that the ops do not know: torch.func, forward mode, torch.jit.trace.
        if _interpreters() is not None or forward_ad._current_level >= 0 or _is_tracing():
            return None
        device = "cpu" if args[0].is_cpu else args[0].device.type
        autocast = _is_any_autocast_enabled() and torch.is_autocast_enabled(device)
        key = (len(args), device, autocast, tuple([a.shape for a in args]) if self.by_shape else None)
        variant = self._known(key) or self._new(module, key, args)
        return None if variant is None else variant.run

    def _new(self, module: nn.Module, key: tuple, args: tuple[Tensor, ...]) -> Variant | None:
        """The variant for a key without one: traced now, unless there are too many or this is inside a trace."""
        if fx._symbolic_trace.is_fx_symbolic_tracing():
            return None
        with self.lock:
            self.prepare(module)
            if key[0] not in self.counts or self.owner() is not module:
                return None
            key = (*key[:3], tuple([a.shape for a in args]) if self.by_shape else None)
            if len(self.variants) >= MOST_VARIANTS:
                key = (*key[:3], None)
                return self._known(key)
            return self._known(key) or self.add(module, key, args if self.by_shape else None)

    def _known(self, key: tuple) -> Variant | None:
        for variant in self.variants:
            if variant.key == key and variant.guards.hold():
                return variant
        return None


def _in_parts(module: nn.Sequential, options: Options, key: tuple) -> Variant:
    """A Sequential with children that cannot be traced: each run of the others is rewritten by itself.

    Its guards are looked at when its turn comes, since the children before it may change what it reads.
    """
    guards = Guards()
    guards.add_module(module)
    parts: list[nn.Module] = []
    run: dict[str, nn.Module] = {}
    replaced, apart = [], []

    def end_run() -> None:
        part = nn.Sequential(OrderedDict(run))
        state = State(options)
        state.prepare(part)
        found = [row for variant in state.variants for row in variant.replaced]
        if found:
            part.__class__ = accelerated(nn.Sequential)
            vars(part)[STATE] = state
        replaced.extend(found)
        parts.extend([part] if found else run.values())
        run.clear()

    for name, child in module._modules.items():
        if _can_be_traced(child):
            run[name] = child
        else:
            end_run()
            parts.append(child)
            apart.append(name)
    end_run()

    def forward(self: nn.Module, x: Any) -> Any:
        for part in parts:
            x = part(x)
        return x

    return Variant(forward if replaced else None, guards, key, replaced, tuple(apart))


def _can_be_traced(module: nn.Module) -> bool:
    if is_of_torch(module) and not isinstance(module, nn.Sequential):
        return True
    try:
        trace(module)
    except NotTraceable:
        return False
    return True


def _compiled(graph: fx.Graph, module: nn.Module, guards: Guards) -> Callable:
    """The graph as a function of (module, *arguments).

    It has at hand the modules that it calls and the dicts that hold parameters, whose values it looks up at each call:
    for a small layer the way there through attributes takes a tenth of its time.
    """
    bound: list[Any] = []
    first = next(iter(graph.nodes))

    def at_hand(value: Any) -> fx.Node:
        with graph.inserting_before(first):
            bound.append(value)
            return graph.placeholder(f"bound_{len(bound)}")

    for node in list(graph.nodes):
        with graph.inserting_before(node):
            if node.op == "call_module":
                target = at_hand(module.get_submodule(node.target))
                found = graph.call_method("__call__", (target, *node.args), node.kwargs)
            elif node.op == "get_attr" and (held := _holder(module, node.target)) is not None:
                name = node.target.rpartition(".")[2]
                guards.present.append((held, name))
                found = graph.call_function(operator.getitem, (at_hand(held), name))
            else:
                continue
        node.replace_all_uses_with(found)
        graph.erase_node(node)
    graph.lint()
    code = graph.python_code("self")
    namespace = dict(code.globals)
    exec(code.src, namespace)
    forward = namespace["forward"]
    return lambda self, *arguments: forward(self, *bound, *arguments)


def _holder(module: nn.Module, path: str) -> dict[str, Any] | None:
    """The dict of a module where a parameter or buffer lies, if it does."""
    owner, _, name = path.rpartition(".")
    owner = module.get_submodule(owner)
    return next((held for held in (owner._parameters, owner._buffers) if name in held), None)


@functools.cache
def accelerated(cls: type[nn.Module]) -> type[nn.Module]:
    """The subclass whose forward looks for a rewritten one first."""
    forward = cls.forward

    @functools.wraps(forward)
    def accelerated_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return forward(self, *args, **kwargs)
        state = vars(self).get(STATE)  # gone after `restore` where FSDP or a parametrization made a class over this one
        run = None if state is None else state.find(self, args, kwargs)
        return forward(self, *args, **kwargs) if run is None else run(self, *args)

    def reduce_ex(self: nn.Module, protocol: int) -> tuple:
        maker, arguments, *rest = super(subclass, self).__reduce_ex__(protocol)
        if maker is copyreg.__newobj__:
            return _rebuild, (cls, *arguments[1:]), *rest
        return maker, arguments, *rest

    namespace = {
        "forward": accelerated_forward,
        "__reduce_ex__": reduce_ex,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_pggan_fast_class": cls,
    }
    subclass = type(cls)(cls.__name__, (cls,), namespace)
    return subclass


def _rebuild(cls: type[nn.Module], *arguments: Any) -> nn.Module:
    return copyreg.__newobj__(accelerated(cls), *arguments)


def original(module: nn.Module) -> type[nn.Module]:
    """The module's class as it is without acceleration."""
    return getattr(type(module), "_pggan_fast_class", type(module))


def is_accelerated(module: nn.Module) -> bool:
    return STATE in vars(module)
