"""accelerate, explain and restore."""

import copy
import functools
import random
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from pggan_fast.dropin.capture import JIT_IGNORED, STATE, Accelerated, Row, is_torchs
from pggan_fast.dropin.rewrite import Options

_LEFT = "_pggan_fast_left"
NOTHING_YET = "nothing yet: call the model, or give accelerate example_inputs"
AGREES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference on example inputs, of the largest value: many layers of a few roundings each."""


class Explanation(tuple[Row, ...]):
    """The rows of `explain`; prints as a table. `graphs` are the captured graphs, `reasons` why code was left."""

    graphs: tuple = ()
    reasons: tuple[str, ...] = ()

    @property
    def replaced(self) -> list[Row]:
        return [row for row in self if row.status == "replaced"]

    @property
    def left(self) -> list[Row]:
        return [row for row in self if row.status == "left"]

    def __str__(self) -> str:
        if not self:
            return "nothing is accelerated"
        rows = [("module", "class", "", "operations, or the reason")]
        rows += [(row.module or "(the model)", row.kind, row.status, row.what) for row in self]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
        for i, graph in enumerate(self.graphs):
            count = sum(row.status == "replaced" for row in graph.rows)
            lines.append(f"graph {i}: {graph.function}, {count} calls put in, ran {graph.runs} times")
            lines += [f"  ends at a graph break: {graph.ends}"] if graph.ends else []
        return "\n".join(lines)

    __repr__ = __str__


def accelerate(
    model: nn.Module,
    *,
    example_inputs: Any = None,
    bias_act: bool = True,
    conv: bool = True,
    resample: bool = True,
    minibatch_stddev: bool = True,
    inplace: bool = False,
) -> nn.Module:
    """The same model with fused ops where its own code does what they do.

    Its calls run through TorchDynamo, whose guards see what the code depends on. Class, parameters and buffers are the
    same under the same names, in training and eval, for derivatives to the second order; what is not provably the same
    is left alone. `explain(model)` says what was done, `restore(model)` undoes it.

    example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; with them the model is run now, not
        at its first call, and the outputs are compared: a model whose outputs differ comes back as it was, and
        `explain` says so. Buffers, random states and attributes stay as they were.
    bias_act: activations and pixel norm after a convolution or by themselves. conv: convolutions, with equalized
        weights and batch norm in eval mode. resample: nearest upsampling and 2x2 mean around them.
    minibatch_stddev: appended minibatch statistics.
    inplace: change `model` itself; otherwise a copy that shares its parameters and buffers.
    Raises TypeError if model is no nn.Module, or cannot be copied and inplace is False.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model is a {type(model).__name__}, must be a torch.nn.Module")
    model = restore(model) if inplace else restore(_sharing_copy(model))
    if reason := _unsuitable(model):
        vars(model)[_LEFT] = reason
        return model
    expected = None if example_inputs is None else _outputs(model, example_inputs)
    options = Options(bias_act, conv, resample, minibatch_stddev)
    for module in model.modules():  # a part may be called by itself, or after a graph break
        if module is model or not _unsuitable(module) and _has_parts(module):
            Accelerated(options, module)
    if expected is not None and (difference := _difference(expected, _outputs(model, example_inputs))):
        restore(model)
        vars(model)[_LEFT] = difference
    return model


def explain(model: nn.Module) -> Explanation:
    """Tell what was replaced in a model's calls so far, and what was left and why: rows that print as a table.

    Each row is of a module whose code ran; `graphs` and `reasons` hold what is of no one module.
    """
    rows: dict[Row, None] = {}
    graphs, reasons = [], []
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        state = state_of(module)
        kind = type(module).__name__
        if (left := vars(module).get(_LEFT)) is not None:
            rows[Row(path, kind, "left", left)] = None
        if state is None:
            continue
        graphs += state.graphs
        reasons += state.reasons
        rows |= dict.fromkeys(Row(f"{prefix}{r.module}".strip("."), *_rest(r)) for g in state.graphs for r in g.rows)
        rows |= dict.fromkeys(Row(path, kind, "left", reason) for reason in state.reasons)
        if state.calls and not state.graphs and not state.reasons:
            rows[Row(path, kind, "left", "no tensor code was captured")] = None
    if not rows and state_of(model) is not None:
        rows[Row("", type(model).__name__, "left", NOTHING_YET)] = None
    explanation = Explanation(sorted(rows, key=lambda row: row.status != "replaced"))
    explanation.graphs, explanation.reasons = tuple(graphs), tuple(reasons)
    return explanation


def restore(model: nn.Module) -> nn.Module:
    """The model with its own calls again, in place; also a copy that `accelerate` made."""
    for module in model.modules():
        if vars(module).pop(STATE, None) is vars(module).get("_compiled_call_impl", module):
            del vars(module)["_compiled_call_impl"], vars(module)[JIT_IGNORED]
        vars(module).pop(_LEFT, None)
    return model


def state_of(module: nn.Module) -> Accelerated | None:
    """The module's own state; a shallow copy has the state of another."""
    state = vars(module).get(STATE)
    return state if state is not None and state.module is module else None


def _rest(row: Row) -> tuple[str, str, str]:
    return row.kind, row.status, row.what


def _unsuitable(model: nn.Module) -> str:
    """Why a model is not accelerated at all, or nothing."""
    if isinstance(model, (torch.jit.ScriptModule, fx.GraphModule, torch._dynamo.OptimizedModule)):
        return "it is a compiled graph already"
    if vars(model).get("_compiled_call_impl") is not None:
        return "it is compiled already"
    if type(model).__call__ is not nn.Module.__call__:
        return "its class has a __call__ of its own"
    return ""


def _has_parts(module: nn.Module) -> bool:
    forward = type(module).forward
    return isinstance(module, nn.Sequential) or not forward.__module__.startswith("torch.")


def _sharing_copy(model: nn.Module) -> nn.Module:
    """A copy with the same parameters, buffers and other tensors, wherever they are kept."""
    memo = {id(tensor): tensor for tensor in _tensors(model)}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # a lock, a stream, a generator among its attributes
        raise TypeError(f"accelerate: model cannot be copied ({error}); inplace=True changes it itself") from error


def _tensors(root: Any) -> Iterator[Tensor]:
    """All tensors that a deep copy would copy: those in modules, containers and plain objects."""
    pending, seen = [root], set()
    while pending:
        value = pending.pop()
        if id(value) in seen or isinstance(value, (type, types.ModuleType, types.FunctionType)):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple, set, frozenset)):
            pending += value
        elif isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, functools.partial):
            pending += (value.func, value.args, value.keywords)
        elif isinstance(value, types.MethodType):
            pending.append(value.__self__)
        else:
            pending += getattr(value, "__dict__", {}).values()


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The tensors that the model returns, leaving no trace in its buffers, attributes or random states."""
    args = () if isinstance(inputs, Mapping) else (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    with _random_states_kept(), torch.no_grad(), _state_kept(model):
        torch.manual_seed(0)
        random.seed(0)
        leaves, _ = torch.utils._pytree.tree_flatten(model(*args, **kwargs))
        return [leaf.clone() for leaf in leaves if isinstance(leaf, Tensor)]


@contextmanager
def _state_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards buffers, attributes of modules and plain settings of their classes are what they were."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    spaces = [vars(module) for module in model.modules()]
    attributes = [(space, {name: _copied(value) for name, value in space.items()}) for space in spaces]
    classes = {cls for module in model.modules() for cls in type(module).__mro__ if not is_torchs(cls)}
    settings = [(cls, {n: v for n, v in vars(cls).items() if _is_setting(n, v)}) for cls in classes]
    scopes = [vars(sys.modules[name]) for name in {cls.__module__ for cls in classes} if name in sys.modules]
    values = [(scope, {n: v for n, v in scope.items() if _is_setting(n, v)}) for scope in scopes]
    try:
        yield
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
        for space, before in attributes:
            for name in space.keys() - before.keys() - {STATE, JIT_IGNORED, "_compiled_call_impl"}:
                del space[name]
            space.update({n: v[0] for n, v in before.items() if space.get(n) is not v[0]})
            for value, contents in before.values():
                _refill(value, contents)
        for cls, before in settings:
            for name, value in before.items():
                if vars(cls).get(name) is not value:
                    setattr(cls, name, value)
        for scope, before in values:
            scope.update({n: v for n, v in before.items() if scope.get(n) is not v})


def _copied(value: Any) -> tuple[Any, Any]:
    """(a value, a shallow copy if it is a plain container)."""
    return value, copy.copy(value) if type(value) in (list, dict, set) else None


def _refill(value: Any, contents: Any) -> None:
    if contents is None or value == contents and list(map(id, value)) == list(map(id, contents)):
        return
    value.clear()
    (value.extend if isinstance(value, list) else value.update)(contents)


def _is_setting(name: str, value: Any) -> bool:
    return not name.startswith("__") and isinstance(value, (bool, int, float, str, tuple, type(None)))


@contextmanager
def _random_states_kept() -> Iterator[None]:
    """Afterwards every random generator is where it was: Python's, torch's, NumPy's if it was imported."""
    numpy_random = sys.modules.get("numpy.random")
    numpy_state = None if numpy_random is None else numpy_random.get_state()
    python = random.getstate()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        if numpy_state is not None:
            numpy_random.set_state(numpy_state)


def _difference(expected: list[Tensor], actual: list[Tensor]) -> str:
    """How the outputs differ, or nothing."""
    if [t.shape for t in expected] != [t.shape for t in actual]:
        return "on the example inputs its outputs would have other shapes"
    for a, b in zip(expected, actual, strict=True):
        if a.dtype != b.dtype:
            return f"on the example inputs an output would be {b.dtype} instead of {a.dtype}"
        if a.numel() == 0 or not a.is_floating_point():
            continue
        error, size = (a.double() - b.double()).abs().max().item(), a.double().abs().max().item()
        if not error <= AGREES.get(a.dtype, 1e-3) * size + 1e-12:
            return f"on the example inputs an output would differ by {error:.2g}"
    return ""
