"""The op namespaces: schemas, composites, fake kernels and autograd formulas.

Schemas live here, in Python, so that an install without any compiled module has every op.
The compiled modules add kernels for their device to the same schemas in `pggan_fast`. The namespace
`pggan_fast_triton` has the same ops and formulas with Triton kernels alone.
"""

import functools
import importlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch._C import FunctionSchema
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from pggan_fast import _native

TRITON_INSTALLED = find_spec("triton") is not None
# Triton's interpreter runs kernels on the CPU. It reads this variable when it is imported.
TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

_library = torch.library.Library("pggan_fast", "DEF")
_triton_library = torch.library.Library("pggan_fast_triton", "DEF")
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_transforms_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack


def define(schema: str, *, composite: Callable, fake: Callable) -> torch._ops.OpOverload:
    """Define an op. `composite` computes it in plain PyTorch on any device that has no kernel of its own.

    `fake` gives its outputs' shapes, dtypes and strides. Both take the op's arguments in order.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    op = getattr(torch.ops.pggan_fast, name).default
    _library.impl(name, _all_positional(op._schema, composite), "CompositeExplicitAutograd")
    torch.library.register_fake(op, _all_positional(op._schema, fake), lib=_library)
    return op


def define_implementations(
    schema: str, *, composite: Callable, fake: Callable, triton: str | Callable, triton_on_cuda: bool = True
) -> dict[str, torch._ops.OpOverload]:
    """Define an op in both namespaces: {"native": in pggan_fast, "triton": in pggan_fast_triton}.

    `triton` computes the second: "module.function" of pggan_fast.kernels, imported at its first use, or a function.
    Where a GPU has no native kernels, it computes the first there too, if `triton_on_cuda`.
    """
    native = define(schema, composite=composite, fake=fake)
    name = schema.partition("(")[0]
    _triton_library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    triton_op = getattr(torch.ops.pggan_fast_triton, name).default
    kernel = _all_positional(native._schema, triton)
    _triton_library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(triton_op, _all_positional(native._schema, fake), lib=_triton_library)
    if not TRITON_INTERPRETED:
        torch.library.register_torch_dispatch(triton_op, FunctionalTensorMode, _decomposed(kernel), lib=_triton_library)
    if triton_on_cuda and TRITON_INSTALLED and not _native.cuda_available:
        _library.impl(name, kernel, "CUDA")
    return {"native": native, "triton": triton_op}


def _imported(path: str) -> Callable:
    """Return the function "module.function" of pggan_fast.kernels, which needs Triton."""
    module, function = path.split(".")
    return getattr(importlib.import_module(f"pggan_fast.kernels.{module}"), function)


def _decomposed(run: Callable) -> Callable:
    """Let torch.compile see the kernels inside an op, as torch.library.triton_op does; torch.export keeps the op."""

    def rule(mode, op, types, args, kwargs):
        if torch.compiler.is_exporting():
            return mode.__torch_dispatch__(op, types, args, kwargs)
        with mode:
            return run(*args, **kwargs)

    return rule


class OpFunction(_SingleLevelFunction):
    """An autograd.Function that is an op's formula; `apply` is C++ alone, without Function's detour through Python.

    It knows nothing of the transforms of torch.func. Under those an op goes through the dispatcher, which peels off
    one transform after the other and calls the formula for one at a time, as it does with torch's own ops.
    """


def through_dispatcher() -> bool:
    """Whether an op must be called by its name instead of by its formula: torch.compile or torch.func is at work."""
    return torch.compiler.is_compiling() or _transforms_active()


def is_transformed() -> bool:
    """Whether torch.func or forward mode is at work, for which the convolution and the product have no formula."""
    return _transforms_active() or in_forward_mode()


def differentiate(op: torch._ops.OpOverload, apply: Callable) -> None:
    """Make `apply`, which takes the op's arguments in order, the op's autograd formula.

    It applies an OpFunction. The public functions apply the same one without the detour
    through the dispatcher, which halves the host time of a small op.
    """

    def kernel(*args):
        if not _transforms_active():
            return apply(*args)
        from torch._functorch.autograd_function import enable_single_level_autograd_function

        with enable_single_level_autograd_function():
            return apply(*args)

    _library_of(op).impl(_name_of(op), _all_positional(op._schema, kernel), "Autograd")


def differentiate_implementations(implementations: dict[str, torch._ops.OpOverload], apply: Callable) -> None:
    """Do as `differentiate` does for each implementation of an op: `apply` takes its name after the op's arguments."""
    for impl, op in implementations.items():
        differentiate(op, lambda *args, impl=impl: apply(*args, impl))


def refuse_derivatives(implementations: dict[str, torch._ops.OpOverload]) -> None:
    """Make each implementation of an op one whose derivative is refused, not taken for zero."""
    for op in implementations.values():
        differentiate(op, lambda *args, op=op: _LastOrder.apply(op, *args))


def batch_implementations(implementations: dict[str, torch._ops.OpOverload], rule: Callable) -> None:
    """Make `rule(call, info, in_dims, *args)` the batching rule of each implementation, which torch.func.vmap calls.

    `call` is the op; the rule returns (outputs, out_dims).
    """
    for op in implementations.values():
        _library_of(op).impl(_name_of(op), _all_positional(op._schema, _batched(op, rule)), "FuncTorchBatched")


def _batched(op: torch._ops.OpOverload, rule: Callable) -> Callable:
    def kernel(*args):
        from torch._functorch.autograd_function import custom_function_call_vmap_helper
        from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

        interpreter = retrieve_current_functorch_interpreter()
        return custom_function_call_vmap_helper(interpreter, functools.partial(rule, op), op, *args)

    return kernel


def decompose_implementations(implementations: dict[str, torch._ops.OpOverload], composite: Callable) -> None:
    """Let torch.func.vmap take each implementation apart: `composite(*args, name)` in terms of ops that have a rule."""
    for impl, op in implementations.items():
        call = functools.partial(_last_argument, composite, impl)
        _library_of(op).impl(_name_of(op), _all_positional(op._schema, call), "FuncTorchBatched")


def _last_argument(function: Callable, last, *args):
    return function(*args, last)


def _library_of(op: torch._ops.OpOverload) -> torch.library.Library:
    return _library if op.namespace == "pggan_fast" else _triton_library


def _name_of(op: torch._ops.OpOverload) -> str:
    return op._schema.name.partition("::")[2]


def _all_positional(schema: FunctionSchema, function: Callable | str) -> Callable:
    """Return `function`, or the kernels' function of that name, as the dispatcher can call it.

    The dispatcher leaves out trailing arguments that have their default value: this puts them back.
    """
    names = [a.name for a in schema.arguments]
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}

    def kernel(*args, **kwargs):
        nonlocal function
        if isinstance(function, str):
            function = _imported(function)
        if kwargs or len(args) < len(names):
            given = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
            args = [given[name] for name in names]
        return function(*args)

    return kernel


def fake_like(x: Tensor) -> Tensor:
    """Return what torch.empty_like gives for a real x: of a dense x the strides as they are, which its fake redraws."""
    innermost = x.movedim(1, -1) if x.ndim > 2 else x
    if x.is_contiguous() or innermost.is_contiguous():
        return x.new_empty_strided(x.shape, x.stride())
    return torch.empty_like(x)


def below_autograd(op: torch._ops.OpOverload, *args: Any) -> Any:
    """Call an op from inside an autograd.Function that is its autograd formula."""
    if not _transforms_active():
        with _BelowAutograd():
            return op._op(*args)
    # A Function's forward has grad mode off; the transforms around this one may be derivatives too.
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), _BelowAutograd():
        return op._op(*args)


def composite_below_autograd(
    implementations: dict[str, torch._ops.OpOverload], composite: Callable, impl: str, x: Tensor, *args: Any
) -> Any:
    """Do as `below_autograd` does for an op that is `composite(impl, x, *args)` on every device.

    On a CPU where nothing listens it is called by itself: the dispatcher's way to it and back takes 5 to 20 us.
    """
    if not x.is_cpu or type(x) is not Tensor or _transforms_active() or _dispatch_modes():
        return below_autograd(implementations[impl], x, *args)
    with _BelowAutograd():
        return composite(impl, x, *args)


def call_op(op: torch._ops.OpOverload, *args: Any) -> Any:
    """Call an op from a backward that has a formula of its own: below autograd, or by its name under torch.func."""
    return op(*args) if _transforms_active() else below_autograd(op, *args)


THIRD_ORDER = "pggan_fast: this op has derivatives of first and second order, not of third"


def no_third_derivative(backward: Callable) -> Callable:
    """For a backward that has none of its own: a derivative of what it returns is refused, not taken for zero.

    torch's `once_differentiable` lets it pass where the incoming gradients are constants.
    """

    @functools.wraps(backward)
    def refusing(ctx, *gradients):
        if _transforms_active():
            return backward(ctx, *gradients)  # calls an op that refuses by itself
        with torch.no_grad():
            outputs = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return outputs
        sources = (*gradients, *ctx.saved_tensors)
        return tuple(None if o is None else _Refusal.apply(o, *sources) for o in outputs)

    return refusing


class _Refusal(OpFunction):
    """(output, *what it was computed from) -> output, whose derivative raises."""

    @staticmethod
    def forward(ctx, output, *sources):
        return output.view_as(output)

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError(THIRD_ORDER)

    @staticmethod
    def jvp(ctx, *tangents):
        raise NotImplementedError(THIRD_ORDER)


class _LastOrder(OpFunction):
    """(op, *its arguments) -> its outputs, whose derivative raises."""

    @staticmethod
    def forward(ctx, op, *args):
        return below_autograd(op, *args)

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError(THIRD_ORDER)

    @staticmethod
    def jvp(ctx, *tangents):
        raise NotImplementedError(THIRD_ORDER)


def in_forward_mode() -> bool:
    """Whether forward-mode derivatives are being taken, so that a formula's `jvp` may be called."""
    return forward_ad._current_level >= 0


def tangent_rule(jvp: Callable) -> Callable:
    """Decorate a formula's `jvp(ctx, saved, *tangents)`, so that it is differentiable by transforms around its own.

    torch calls a jvp with forward mode off: a jvp of a jvp would take the inner one's result for a constant. Here it is
    on, and `saved` are the saved tensors without the tangents that this very level gave them.
    """

    @functools.wraps(jvp)
    def rule(ctx, *tangents):
        with forward_ad._set_fwd_grad_enabled(True):
            saved = [t if t is None else forward_ad.unpack_dual(t).primal for t in ctx.saved_tensors]
            return jvp(ctx, saved, *tangents)

    return rule


def will_need_grad(ctx: torch.autograd.function.FunctionCtx, index: int) -> bool:
    """Whether the backward pass that now runs will use the gradient of input `index`.

    `ctx.needs_input_grad` says only what required a gradient when forward ran. A gradient penalty asks for the
    images' gradient alone; this spares it every weight gradient. A leaf's answer is unknown: give a view instead.
    """
    if not ctx.needs_input_grad[index]:
        return False
    try:
        return torch._C._will_engine_execute_node(ctx.next_functions[index][0])
    except RuntimeError:
        return True
