"""accelerate, explain and restore."""

import copy
import gc
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from pggan_fast.dropin import trial
from pggan_fast.dropin.report import COMPILED, JIT_IGNORED, STATE, Explanation, Row
from pggan_fast.dropin.rewrite import Options

try:
    from pggan_fast.dropin.capture import Accelerated

    MISSING = ""
except (ImportError, AttributeError) as error:
    MISSING = f"torch {torch.__version__} lacks what accelerate stands on: {error}"

_LEFT = "_pggan_fast_left"
NOTHING_YET = "nothing yet: call the model, or give accelerate example_inputs"


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
    _check_module("accelerate", model)
    model = restore(model) if inplace else restore(_sharing_copy(model))
    if reason := MISSING or _unsuitable(model):
        vars(model)[_LEFT] = reason
        return model
    expected = None if example_inputs is None else trial.outputs(model, example_inputs)
    options = Options(bias_act, conv, resample, minibatch_stddev, alone=resample)
    for module in model.modules():  # a part may be called by itself, or after a graph break
        of_torch = type(module).forward.__module__.startswith("torch.") and not isinstance(module, nn.Sequential)
        if module is model or not _unsuitable(module) and not of_torch:
            Accelerated(options, module)
    if expected is not None and (difference := trial.difference(expected, trial.outputs(model, example_inputs))):
        vars(restore(model))[_LEFT] = difference
    return model


def explain(model: nn.Module) -> Explanation:
    """Tell what was replaced in a model's calls so far, and what was left and why: rows that print as a table.

    Each row is of a module whose code ran; `graphs` and `reasons` hold what is of no one module.
    """
    _check_module("explain", model)
    rows, graphs, reasons = [], [], []
    for path, module in model.named_modules():
        left = [vars(module)[_LEFT]] if _LEFT in vars(module) else []
        if (state := _state_of(module)) is not None:
            graphs += state.graphs
            reasons += state.reasons
            rows += [replace(row, module=f"{path}.{row.module}".strip(".")) for g in state.graphs for row in g.rows]
            unseen = state.calls and not state.graphs and not state.reasons
            left += ["no tensor code was captured"] if unseen else state.reasons
        rows += [Row(path, type(module).__name__, "left", reason) for reason in left]
    if not rows and _state_of(model) is not None:
        rows = [Row("", type(model).__name__, "left", NOTHING_YET)]
    explanation = Explanation(sorted(dict.fromkeys(rows), key=lambda row: row.status != "replaced"))
    explanation.graphs, explanation.reasons = tuple(graphs), tuple(reasons)
    return explanation


def restore(model: nn.Module) -> nn.Module:
    """The model with its own calls again, in place; also a copy that `accelerate` made."""
    _check_module("restore", model)
    for module in model.modules():
        if vars(module).pop(STATE, None) is vars(module).get(COMPILED, module):
            del vars(module)[COMPILED], vars(module)[JIT_IGNORED]
        vars(module).pop(_LEFT, None)
    return model


def _check_module(function: str, model: object) -> None:
    """Raise TypeError, naming the function that was called, unless `model` is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model is a {type(model).__name__}, must be a torch.nn.Module")


def _state_of(module: nn.Module) -> Any:
    """The module's own state; a shallow copy has the state of another."""
    state = vars(module).get(STATE)
    return state if state is not None and state.module is module else None


def _unsuitable(model: nn.Module) -> str:
    """Why a model is not accelerated at all, or nothing."""
    if isinstance(model, (torch.jit.ScriptModule, fx.GraphModule, torch._dynamo.OptimizedModule)):
        return "it is a compiled graph already"
    if vars(model).get(COMPILED) is not None:
        return "it is compiled already"
    if type(model).__call__ is not nn.Module.__call__:
        return "its class has a __call__ of its own"
    return ""


def _sharing_copy(model: nn.Module) -> nn.Module:
    """A copy with the same parameters, buffers and other tensors, wherever they are kept."""
    memo = {id(tensor): tensor for tensor in _tensors(model)}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # a lock, a stream, a generator among its attributes
        raise TypeError(f"accelerate: model cannot be copied ({error}); inplace=True changes it itself") from error


def _tensors(root: Any) -> Iterator[Tensor]:
    """All tensors that a deep copy would copy, wherever they are kept."""
    pending, seen = [root], set()
    while pending:
        value = pending.pop()
        if id(value) in seen or isinstance(value, (type, types.ModuleType, types.FunctionType)):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        else:
            pending += gc.get_referents(value)
