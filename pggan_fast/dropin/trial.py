"""A model run on example inputs, after which everything is what it was before."""

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

AGREES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference on example inputs, of the largest value: many layers of a few roundings each."""


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The tensors that the model returns."""
    args = () if isinstance(inputs, Mapping) else (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    with torch.no_grad(), _state_kept(model):
        torch.manual_seed(0)
        random.seed(0)
        leaves = torch.utils._pytree.tree_leaves(model(*args, **kwargs))
        return [leaf.clone() for leaf in leaves if isinstance(leaf, Tensor)]


def difference(expected: list[Tensor], actual: list[Tensor]) -> str:
    """How the outputs differ, or nothing."""
    if [(t.shape, t.dtype) for t in expected] != [(t.shape, t.dtype) for t in actual]:
        return "on the example inputs its outputs would have other shapes or dtypes"
    for a, b in zip(expected, actual, strict=True):
        if a.numel() == 0 or not a.is_floating_point():
            continue
        error, size = (a.double() - b.double()).abs().max().item(), a.double().abs().max().item()
        if not error <= AGREES.get(a.dtype, 1e-3) * size + 1e-12:
            return f"on the example inputs an output would differ by {error:.2g}"
    return ""


@contextmanager
def _state_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards everything is what it was: buffers, attributes of modules, plain settings of their classes, and the
    random generators of Python, torch and, if it was imported, NumPy."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    classes = {cls for module in model.modules() for cls in type(module).__mro__ if not is_torchs(cls)}
    scopes = [sys.modules[name] for name in {cls.__module__ for cls in classes} if name in sys.modules]
    settings = [(holder, n, v) for holder in (*classes, *scopes) for n, v in vars(holder).items() if _is_setting(n, v)]
    held = [value for module in model.modules() for value in (vars(module), *vars(module).values())]
    containers = [(value, value.copy()) for value in held if type(value) in (dict, list, set)]
    numpy_random, python = sys.modules.get("numpy.random"), random.getstate()
    numpy_state = None if numpy_random is None else numpy_random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        if numpy_state is not None:
            numpy_random.set_state(numpy_state)
        for buffer, value in buffers:
            buffer.copy_(value)
        for container, before in containers:
            container.clear()
            (container.extend if type(container) is list else container.update)(before)
        for holder, name, value in settings:
            if vars(holder).get(name) is not value:
                setattr(holder, name, value)


def _is_setting(name: str, value: Any) -> bool:
    return not name.startswith("__") and isinstance(value, (bool, int, float, str, tuple, type(None)))


def is_torchs(cls: Any) -> bool:
    """Whether a class or function is of torch or of Python itself."""
    return cls.__module__.partition(".")[0] in ("torch", "builtins", "collections", "functools")
