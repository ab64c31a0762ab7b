"""Corrections of TorchDynamo, which would capture some code wrongly, or not at all."""

import contextlib
import functools
import operator
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch._dynamo.exc import Unsupported
from torch._dynamo.guards import GuardBuilder
from torch._dynamo.variables import builtin
from torch._dynamo.variables.builder import SourcelessBuilder, VariableBuilder
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.functions import WrapperUserFunctionVariable
from torch._dynamo.variables.misc import NumpyVariable

from pggan_fast.compat.known import suppresses_tracer_warnings

_TELL_NUMBERS_APART = (isinstance, type, repr, pow, operator.pow, hasattr, getattr)
"""Builtins that give something else of a float than of NumPy's float64."""
_BUILTINS = {getattr(builtin, f"{name}BuiltinVariable", builtin.BuiltinVariable) for name in ("HasAttr", "GetAttr", "")}
"""Dynamo's classes of these builtins: from torch 2.14 on some have one of their own."""


@contextmanager
def corrected() -> Iterator[None]:
    """Inside, Dynamo captures otherwise what it would capture wrongly, or not at all.

    Left to Python is what keeps something from call to call: generators that exist already, and functions with a cache,
    whose results are computed once and shared. A context that only suppresses the tracer's warnings becomes one that
    does nothing: Dynamo would guard all filters of warnings as they are while it captures, and write them back at each
    call. NumPy's function of constants, as `np.sqrt(0.5)` is, becomes a constant: it would end a graph. An attribute
    that is a number of NumPy's, as `1 / np.sqrt(fan_in)` is, becomes a float: it would be a tensor. Code that tells the
    two apart is left to Python.
    """
    call, wrap = WrapperUserFunctionVariable.call_function, VariableBuilder._wrap
    numpys, builtins = NumpyVariable.call_function, {kind: kind.call_function for kind in _BUILTINS}
    numbers: set[Any] = set()  # the sources of NumPy's

    def call_function(self: Any, *args: Any) -> Any:
        home = (getattr(self.wrapper_obj, "__module__", "") or "").partition(".")[0]
        if isinstance(self.wrapper_obj, functools._lru_cache_wrapper) and home not in ("torch", "einops"):
            raise Unsupported("a function with a cache is called")
        return call(self, *args)

    def wrapped(self: Any, value: Any) -> Any:
        if isinstance(value, types.GeneratorType):
            raise Unsupported("a generator is used that exists already")
        if suppresses_tracer_warnings(value):
            self.install_guards(GuardBuilder.ID_MATCH)
            return SourcelessBuilder.create(self.tx, contextlib.nullcontext)
        if type(value) is np.float64:
            numbers.add(self.source)
            value = float(value)
        return wrap(self, value)

    def of_anything(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        asks = self.as_python_constant() in _TELL_NUMBERS_APART
        if asks and any(a.realize().source in numbers for a in args if a.source is not None):
            raise Unsupported("it is asked what a number of NumPy's is")
        kind = next(kind for kind in type(self).__mro__ if kind in builtins)
        return builtins[kind](self, tx, args, kwargs)

    def of_numbers(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(self.value, np.ufunc) and not kwargs and all(isinstance(a, ConstantVariable) for a in args):
            result = self.value(*(a.as_python_constant() for a in args))
            if type(result) is np.float64:  # a float too
                return ConstantVariable.create(float(result))
        return numpys(self, tx, args, kwargs)

    WrapperUserFunctionVariable.call_function, VariableBuilder._wrap = call_function, wrapped
    NumpyVariable.call_function = of_numbers
    for kind in _BUILTINS:
        kind.call_function = of_anything
    try:
        yield
    finally:
        NumpyVariable.call_function = numpys
        for kind in _BUILTINS:
            kind.call_function = builtins[kind]
        WrapperUserFunctionVariable.call_function, VariableBuilder._wrap = call, wrap
