"""Activation checkpointing that holds up under a gradient penalty.

torch.utils.checkpoint drops a block's activations until the first backward pass, but with create_graph=True
that pass keeps them all again for the second. Here each pass keeps only what enters the block, computes the
rest anew, and drops it: x for the first, x and dy for the second.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge as _edge  # differentiates a tensor without holding its memory

from pggan_fast.ops.closed_conv import as_nonleaf_view
from pggan_fast.ops.registry import will_need_grad


def recomputed(block: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)`, which reads no tensors but x and the parameters of `block`, draws no random numbers
    and writes to nothing. Twice differentiable in x and the parameters; the backward passes compute it again.
    """
    device_type = x.device.type
    autocast = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)

    def run(x: Tensor) -> Tensor:
        enabled, dtype = autocast
        # Without autocast's own cache: it would keep cast weights of one pass for the next.
        with torch.autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=False):
            return function(x)

    if not torch.is_grad_enabled():
        return function(x)
    parameters = tuple(block.parameters())
    return _Block.apply(x, *map(as_nonleaf_view, parameters), run, parameters)


class _Block(Function):
    """(x, *views of the parameters, run, parameters) -> run(x)."""

    @staticmethod
    def forward(ctx, x, *rest):
        *views, ctx.run, ctx.parameters = rest
        ctx.save_for_backward(x, *views)
        return ctx.run(x)

    @staticmethod
    def backward(ctx, dy):
        output_mask = [will_need_grad(ctx, index) for index in range(len(ctx.saved_tensors))]
        return *_Gradients.apply(dy, *ctx.saved_tensors, ctx.run, ctx.parameters, output_mask), None, None


class _Gradients(Function):
    """(dy, x, *views, run, parameters, output_mask) -> gradients of (x, *parameters), None where not in output_mask."""

    @staticmethod
    def forward(ctx, dy, x, *rest):
        *views, ctx.run, ctx.parameters, ctx.output_mask = rest
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, x, *views)
        return _gradients(ctx.run, ctx.parameters, ctx.output_mask, dy, x.detach().requires_grad_(), create_graph=False)

    @staticmethod
    @once_differentiable
    def backward(ctx, *g):
        dy, x = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors[:2])
        gradients = _gradients(ctx.run, ctx.parameters, ctx.output_mask, dy, x, create_graph=True)
        pairs = [(_edge(d), g_d) for d, g_d in zip(gradients, g, strict=True) if d is not None and g_d is not None]
        del gradients
        sources = [dy, x, *ctx.parameters]
        if not pairs:
            return *[None] * len(sources), None, None, None
        outputs, g_outputs = zip(*pairs, strict=True)
        output_mask = [source.requires_grad for source in sources]
        seconds = torch.autograd.grad(outputs, _where(sources, output_mask), g_outputs, allow_unused=True)
        return *_placed(seconds, output_mask), None, None, None


def _gradients(run, parameters, output_mask, dy, x, *, create_graph) -> tuple[Tensor | None, ...]:
    """run(x) once more, then its gradients."""
    with torch.enable_grad():
        y = _edge(run(x))
        sources = _where([x, *parameters], output_mask)
        found = torch.autograd.grad(y, sources, dy, create_graph=create_graph, allow_unused=True)
    return _placed(found, output_mask)


def _where(tensors: list[Tensor], marked: list[bool]) -> list[Tensor]:
    return [tensor for tensor, mark in zip(tensors, marked, strict=True) if mark]


def _placed(found: tuple[Tensor | None, ...], marked: list[bool]) -> tuple[Tensor | None, ...]:
    """`found` in the places marked True, None in the others."""
    left = iter(found)
    return tuple(next(left) if mark else None for mark in marked)
