"""TorchDynamo takes our functions for those of the StyleGAN family that `compat.known` tells."""

import functools
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.decorators import substitute_in_graph
from torch._dynamo.trace_rules import _polyfilled_function_ids, get_torch_obj_rule_map
from torch._dynamo.variables import PolyfilledFunctionVariable
from torch._dynamo.variables.builder import VariableBuilder

from pggan_fast.compat.known import KNOWN, ours_for


@contextmanager
def substituted(options: Any) -> Iterator[None]:
    """Inside, TorchDynamo takes our functions for theirs: while it captures, under its lock."""
    taken: list[Callable] = []
    for theirs, name in _candidates(options):
        if (ours := ours_for(theirs, name)) is not None:
            taken += [theirs, substitute_in_graph(theirs, skip_signature_check=True)(_as_node(ours, name))]
    try:
        yield
    finally:
        for function in taken:
            VariableBuilder._id_dispatch().pop(id(function), None)
            _polyfilled_function_ids.remove(id(function))
            get_torch_obj_rule_map().pop(function, None)
            PolyfilledFunctionVariable._get_polyfill_handlers().pop(function, None)


@functools.cache
def _as_node(ours: Callable, name: str) -> Callable:
    """Our function as one node of a graph, which is not captured itself."""

    @functools.wraps(ours)
    def node(*args: Any, **kwargs: Any) -> Tensor:
        return ours(*args, **kwargs)

    node.pggan_fast_name = name
    torch._dynamo.allow_in_graph(node)
    return lambda *args, **kwargs: node(*args, **kwargs)


def _candidates(options: Any) -> set[tuple[types.FunctionType, str]]:
    """Functions of known names in all modules but those of torch and of ours."""
    found = set()
    names = {name for name, (switch, _) in KNOWN.items() if getattr(options, switch)}
    for module in list(sys.modules.values()):
        for name in names & vars(module).keys() if type(module) is types.ModuleType else ():
            function = vars(module)[name]
            home = (getattr(function, "__module__", "") or "").partition(".")[0]
            if isinstance(function, types.FunctionType) and home not in ("torch", "pggan_fast"):
                found.add((function, name))
    return found
