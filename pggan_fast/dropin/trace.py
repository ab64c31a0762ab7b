"""Traces of a module's forward with torch.fx, and the guards under which each is right."""

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize

from pggan_fast.dropin.watch import NotTraceable, Reads, is_plain, unwatched, watching

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_lock = threading.RLock()
_MISSING: Any = object()


def has_hooks(module: nn.Module) -> bool:
    return any(module.__dict__[name] for name in _HOOKS)


def is_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


class BranchesOnValues(NotTraceable):
    """Code that branches on a tensor, or on its shape: in the latter case a trace for one shape may do."""


@dataclass
class Guards:
    """Values that a trace froze. `hold` costs tens of nanoseconds for each."""

    values: list[tuple[Any, str, Any]] = field(default_factory=list)
    hooks: list[dict] = field(default_factory=list)
    children: list[tuple[dict, dict]] = field(default_factory=list)
    present: list[tuple[dict, str]] = field(default_factory=list)
    _known: set[tuple[int, str]] = field(default_factory=set)

    def hold(self) -> bool:
        """Whether all values are what they were, no hook has come, no child module was exchanged and no
        parameter was taken away."""
        for namespace, name, value in self.values:
            if namespace.get(name, _MISSING) != value:
                return False
        for now, then in self.children:
            if now != then:
                return False
        for held, name in self.present:
            if name not in held:
                return False
        return not any(self.hooks)

    def add_attribute(self, module: nn.Module, name: str, value: Any) -> None:
        owners = (vars(module), *(vars(cls) for cls in type(module).__mro__))
        owner = next((o for o in owners if name in o), None)
        if owner is None or isinstance(owner[name], property):
            return  # what a property or __getattr__ read is guarded itself
        if (id(owner), name) not in self._known:
            self._known.add((id(owner), name))
            self.values.append((owner, name, value))

    def add_children(self, module: nn.Module) -> None:
        childless = is_of_torch(module) and not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        if not childless and all(module._modules is not now for now, _ in self.children):
            self.children.append((module._modules, dict(module._modules)))

    def add_module(self, module: nn.Module) -> None:
        """For a module whose code is inlined: the same children, no hooks, no other forward."""
        self.hooks += [module.__dict__[name] for name in _HOOKS]
        self.add_children(module)
        self.values.append((vars(module), "forward", vars(module).get("forward", _MISSING)))


@dataclass
class Trace:
    graph: fx.Graph
    guards: Guards


def trace(module: nn.Module, given: int | None = None, shapes: Sequence[torch.Tensor] | None = None) -> Trace:
    """The graph of `module.forward` for tensors in its first `given` arguments and the defaults of the others.

    given: by default, as many as have no default.

    With `shapes`, tensors for each argument, the graph is for exactly their shapes, and code that branches on shapes
    can be traced. Raises NotTraceable.
    """
    names, defaults = arguments(type(module))
    given = len(names) - len(defaults) if given is None else given
    reads = Reads()
    tracer = Tracer(names[:given], defaults[len(defaults) - (len(names) - given) :], shapes)
    with _lock:
        try:
            with watching(reads):
                graph = tracer.trace(module)
        except NotTraceable:
            raise
        except fx.proxy.TraceError as error:
            raise BranchesOnValues(f"control flow on values: {_first_line(error).partition('. ')[0]}") from error
        except Exception as error:
            raise NotTraceable(f"{type(error).__name__}: {_first_line(error)}") from error
    guards = Guards()
    for inlined in (module, *tracer.inlined):
        guards.add_module(inlined)
    for container in reads.containers.values():
        guards.add_children(container)
    for owner, name, value in reads.attributes.values():
        guards.add_attribute(owner, name, value)
    guards.values += reads.globals.values()
    return Trace(graph, guards)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""


def arguments(cls: type[nn.Module]) -> tuple[list[str], list[Any]]:
    """Names of forward's arguments, and the defaults of the last ones. Raises NotTraceable for odd arguments."""
    forward = inspect.getattr_static(cls, "forward")
    if not inspect.isfunction(forward):
        raise NotTraceable("forward is no plain method")
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    if any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
        raise NotTraceable("forward takes *args, **kwargs or keyword-only arguments")
    defaults = [p.default for p in parameters if p.default is not p.empty]
    if not all(map(is_plain, defaults)):
        raise NotTraceable("forward has a default that may change")
    return [p.name for p in parameters], defaults


class Tracer(fx.Tracer):
    """Inlines every module but torch's own and those with hooks; keeps fake tensors beside proxies if asked."""

    def __init__(self, required: list[str], defaults: list[Any], shapes: Sequence[torch.Tensor] | None):
        super().__init__(param_shapes_constant=True)
        self.required, self.defaults = required, defaults
        self.inlined: list[nn.Module] = []
        self.thread = threading.get_ident()
        self.evaluating = False
        self.mode = FakeTensorMode(allow_non_fake_inputs=True) if shapes is not None else None
        self.shapes = iter([self.mode.from_tensor(t) for t in shapes]) if shapes is not None else None

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        placeholders = [self.create_proxy("placeholder", name, (), {}) for name in self.required]
        return root_fn, [self.root, *placeholders, *self.defaults]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = is_of_torch(m) and not isinstance(m, nn.Sequential)
        return own or has_hooks(m) or parametrize.is_parametrized(m) or isinstance(m, torch.jit.ScriptModule)

    def call_module(self, m: nn.Module, forward: Any, args: tuple, kwargs: dict) -> Any:
        # fx replaces Module.__call__ and __getattr__ for all threads, and for what computes fake tensors
        if self.evaluating or threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        if not self.is_leaf_module(m, ""):
            if type(m).__getattribute__ is not nn.Module.__getattribute__:
                raise NotTraceable(f"{type(m).__name__} reads attributes in a way of its own")
            self.inlined.append(m)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        if self.evaluating or threading.get_ident() != self.thread:
            return attr_val
        if isinstance(attr_val, torch.Tensor) and not isinstance(attr_val, nn.Parameter):
            return self._buffer(attr_val, parameter_proxy_cache)
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def _buffer(self, tensor: torch.Tensor, cache: dict) -> Any:
        """What reads a buffer at each call; fx's own way to it takes every attribute for a parameter."""
        name = next((name for name, buffer in self.root.named_buffers() if buffer is tensor), None)
        if name is not None and name not in cache:
            cache[name] = self.create_proxy("get_attr", name, (), {})
        return tensor if name is None else cache[name]

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, float):
            return float(a)  # NumPy's are floats too, but what is printed into the code is not
        known = isinstance(a, nn.Parameter) or any(a is b for b in self.root.buffers())
        if isinstance(a, torch.Tensor) and not known:
            raise NotTraceable("makes a tensor that the trace would freeze")
        return super().create_arg(a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return super().proxy(node) if self.mode is None else ShapedProxy(node, self)

    def create_node(self, kind: str, target: Any, args: tuple, kwargs: dict, *rest: Any, **others: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **others)
        if self.mode is not None and kind != "output":
            self.evaluating = True
            with unwatched():
                node.meta["value"] = self._value(node)
            self.evaluating = False
        return node

    def _value(self, node: fx.Node) -> Any:
        """What the node computes, as a fake tensor."""
        if node.op == "placeholder":
            return next(self.shapes)
        if node.op == "get_attr":
            return self.mode.from_tensor(_attribute(self.root, node.target).detach())
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["value"])
        with self.mode, torch.no_grad():
            if node.op == "call_function":
                return node.target(*args, **kwargs)
            if node.op == "call_method":
                return getattr(args[0], node.target)(*args[1:], **kwargs)
            leaf = self.root.get_submodule(node.target)
            if has_hooks(leaf):
                raise NotTraceable(f"branches on shapes after {node.target}, which has hooks")
            return type(leaf).forward(self._fake_module(leaf, node.target), *args, **kwargs)

    def _fake_module(self, leaf: nn.Module, path: str) -> nn.Module:
        """A module whose parameters and buffers are fake, so that a batch norm in training counts no batch."""
        if any(leaf.children()):
            raise NotTraceable(f"branches on shapes after {path}, which has modules in it")
        shell = object.__new__(type(leaf))
        vars(shell).update(vars(leaf))
        for name in ("_parameters", "_buffers"):
            tensors = vars(leaf)[name].items()
            vars(shell)[name] = {k: t if t is None else self.mode.from_tensor(t.detach()) for k, t in tensors}
        return shell


def _attribute(root: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(root.get_submodule(owner), name)


class ShapedProxy(fx.Proxy):
    """A proxy whose shape, dtype and device are known."""

    @property
    def shape(self) -> torch.Size:
        return self.node.meta["value"].shape

    @property
    def dtype(self) -> torch.dtype:
        return self.node.meta["value"].dtype

    @property
    def device(self) -> torch.device:
        return self.node.meta["value"].device

    @property
    def ndim(self) -> int:
        return self.node.meta["value"].ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    def numel(self) -> int:
        return self.shape.numel()

    def __len__(self) -> int:
        value = self.node.meta["value"]
        return len(value)

    def __iter__(self) -> Any:
        return iter([self[i] for i in range(len(self))])
