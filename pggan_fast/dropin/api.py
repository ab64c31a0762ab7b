"""accelerate, explain and restore."""

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from pggan_fast.dropin.accelerated import STATE, State, accelerated, is_accelerated, original
from pggan_fast.dropin.rewrite import Options
from pggan_fast.dropin.trace import has_hooks, is_of_torch
from pggan_fast.dropin.watch import random_states_kept

_LEFT = "_pggan_fast_left"
HOOKS = "it has hooks"
AGREES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference on example inputs, of the largest value: many layers of a few roundings each."""


@dataclass(frozen=True)
class Row:
    """`module` is a path; `status` "replaced" or "left"; `what` the operations replaced, or why they were left."""

    module: str
    kind: str
    status: str
    what: str


class Explanation(tuple[Row, ...]):
    """The rows of `explain`; prints as a table."""

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
        return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows)

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

    Parameters and buffers are the same objects under the same names, in training and eval, to the second derivative;
    what is not sure to be the same is left alone. `explain(model)` says what was done, `restore(model)` undoes it.

    example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; with them, forwards whose code
        branches on shapes are rewritten now and not at their first call, and the outputs are compared: a model whose
        outputs differ comes back as it was, and `explain` says so.
    bias_act: activations and pixel norm after a convolution or by themselves. conv: convolutions, with equalized
        weights and batch norm in eval mode. resample: nearest upsampling and 2x2 mean around them.
    minibatch_stddev: appended minibatch statistics.
    inplace: change `model` itself; otherwise a copy that shares its parameters and buffers.
    Raises TypeError if model is no nn.Module, or cannot be copied and inplace is False.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model is a {type(model).__name__}, must be a torch.nn.Module")
    model = restore(model) if inplace else restore(_sharing_copy(model))
    expected = None if example_inputs is None else _outputs(model, example_inputs)
    left: dict[str, str] = {}
    for path, module in model.named_modules():
        reason = _exchange(module, Options(bias_act, conv, resample, minibatch_stddev))
        if reason:
            left[path] = reason
    vars(model)[_LEFT] = left
    if expected is not None and (difference := _difference(expected, _outputs(model, example_inputs))):
        restore(model)
        vars(model)[_LEFT] = {"": difference}
    return model


def explain(model: nn.Module) -> Explanation:
    """What `accelerate` replaced in a model, and what it left and why: rows that print as a table."""
    rows: list[Row] = []
    covered: list[tuple[str, tuple[str, ...]]] = []
    """Modules whose forward was rewritten, and their children that still run by themselves.

    The others' own forwards only serve where the rewritten one does not apply.
    """

    def is_covered(path: str) -> bool:
        belows = [(path[len(parent) :].strip("."), apart) for parent, apart in covered if _is_below(path, parent)]
        return any(below.partition(".")[0] not in apart for below, apart in belows)

    def row(path: str, status: str, what: str) -> Row:
        return Row(path, original(modules[path]).__name__, status, what)

    modules = dict(model.named_modules())
    for path, module in modules.items():
        if not is_accelerated(module) or is_covered(path):
            continue
        state = vars(module)[STATE]
        state.prepare(module)
        done = {(below, what) for variant in state.variants for below, what in variant.replaced}
        rows += [row(_joined(path, below), "replaced", what) for below, what in sorted(done)]
        if done:
            covered.append((path, tuple(name for variant in state.variants for name in variant.apart)))
        else:
            rows.append(row(path, "left", f"until it is called, since it depends on shapes ({state.reason})"))
    left = vars(model).get(_LEFT, {})
    rows += [row(path, "left", why) for path, why in left.items() if why == HOOKS or not is_covered(path)]
    return Explanation(rows)


def restore(model: nn.Module) -> nn.Module:
    """The model with its own forward methods again, in place; also a copy that `accelerate` made."""
    for module in model.modules():
        if is_accelerated(module):
            if "_pggan_fast_class" in vars(type(module)):
                module.__class__ = original(module)
            del vars(module)[STATE]
        vars(module).pop(_LEFT, None)
    return model


def _exchange(module: nn.Module, options: Options) -> str:
    """Gives a module its accelerated class. Returns why not, or nothing where there was nothing to say."""
    if is_of_torch(module) and not isinstance(module, nn.Sequential):
        if has_hooks(module):
            return HOOKS
        return "it is parametrized" if parametrize.is_parametrized(module) else ""
    if has_hooks(module):
        return HOOKS
    if isinstance(module, (torch.jit.ScriptModule, fx.GraphModule)):
        return "it is a compiled graph already"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if type(module).forward is nn.Module.forward:
        return ""
    state = State(options)
    state.prepare(module)
    worthwhile = state.by_shape or any(variant.replaced for variant in state.variants)
    if not worthwhile:
        return state.reason or "nothing in it to fuse"
    try:
        module.__class__ = accelerated(type(module))
    except TypeError as error:
        return f"its class cannot be extended: {error}"
    vars(module)[STATE] = state
    return ""


def _is_below(path: str, parent: str) -> bool:
    return path.startswith(f"{parent}.") if parent else bool(path)


def _joined(path: str, below: str) -> str:
    return f"{path}.{below}".strip(".")


def _sharing_copy(model: nn.Module) -> nn.Module:
    """A copy with the same parameters and buffers."""
    shared = [*model.parameters(), *model.buffers()]
    # Tensors among plain attributes, as spectral norm by hooks leaves, cannot be copied if they have a gradient.
    shared += [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    try:
        return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    except Exception as error:  # a lock, a stream, a generator among its attributes
        raise TypeError(f"accelerate: model cannot be copied ({error}); inplace=True changes it itself") from error


def _outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The tensors that the model returns, without a trace in its buffers or in random states."""
    args = () if isinstance(inputs, Mapping) else (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    kwargs = inputs if isinstance(inputs, Mapping) else {}
    with random_states_kept(), torch.no_grad(), _buffers_kept(model):
        torch.manual_seed(0)
        random.seed(0)
        leaves, _ = torch.utils._pytree.tree_flatten(model(*args, **kwargs))
    return [leaf.clone() for leaf in leaves if isinstance(leaf, Tensor)]


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    for buffer, value in before:
        buffer.copy_(value)


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
