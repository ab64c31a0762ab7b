"""The `pggan_fast` op namespace: schemas, fallback kernels, fake kernels and autograd formulas.

Schemas live here, in Python, so that an install without any compiled module has every op.
The compiled modules add kernels for their device to the same schemas.
"""

import functools
from collections.abc import Callable

import torch
from torch._C import FunctionSchema

_library = torch.library.Library("pggan_fast", "DEF")
_BelowAutograd = torch._C._AutoDispatchBelowAutograd


def define(schema: str, *, fallback: Callable, fake: Callable) -> torch._ops.OpOverload:
    """Defines an op. `fallback` computes it in plain PyTorch on any device that has no kernel of its own.

    `fake` gives its outputs' shapes, dtypes and strides. Both take the op's arguments in order.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    op = getattr(torch.ops.pggan_fast, name).default
    _library.impl(name, _all_positional(op._schema, fallback), "CompositeExplicitAutograd")
    torch.library.register_fake(op, _all_positional(op._schema, fake), lib=_library)
    return op


def differentiate(op: torch._ops.OpOverload, apply: Callable) -> None:
    """Makes `apply`, which takes the op's arguments in order, the op's autograd formula.

    It applies an autograd.Function. The public functions apply the same one without the detour
    through the dispatcher, which halves the host time of a small op.
    """
    name = op._schema.name.partition("::")[2]
    _library.impl(name, _all_positional(op._schema, apply), "Autograd")


def _all_positional(schema: FunctionSchema, function: Callable) -> Callable:
    """The dispatcher leaves out trailing arguments that have their default value: this puts them back."""
    names = [a.name for a in schema.arguments]
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}

    def kernel(*args, **kwargs):
        if kwargs or len(args) < len(names):
            given = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
            args = [given[name] for name in names]
        return function(*args)

    return kernel


def below_autograd(op: torch._ops.OpOverload, *args):
    """Calls an op from inside an autograd.Function that is its autograd formula."""
    with _BelowAutograd():
        return op._op(*args)


def last_order(backward: Callable) -> Callable:
    """For a backward that has none of its own: a derivative of what it returns is refused, not taken for zero.

    torch's `once_differentiable` lets it pass where the incoming gradients are constants.
    """

    @functools.wraps(backward)
    def refusing(ctx, *gradients):
        with torch.no_grad():
            outputs = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return outputs
        sources = (*gradients, *ctx.saved_tensors)
        return tuple(None if o is None else _Refusal.apply(o, *sources) for o in outputs)

    return refusing


class _Refusal(torch.autograd.Function):
    """(output, *what it was computed from) -> output, whose derivative raises."""

    @staticmethod
    def forward(ctx, output, *sources):
        return output.view_as(output)

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("pggan_fast: this op has derivatives of first and second order, not of third")


def engine_wants(ctx: torch.autograd.function.FunctionCtx, index: int) -> bool:
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
