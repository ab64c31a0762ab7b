"""A convolution and its gradients as three functions that are each other's derivatives, to any order.

The convolution F(x, w), its input gradient B(dz, w) and its weight gradient W(dz, x) are each linear in both
arguments, and the gradients of each are the other two. torch's own double backward computes W as a convolution with an
image-sized kernel, and of groups one by one, which is far slower.
"""

from typing import Protocol

import torch
from torch import Tensor

from pggan_fast.ops.registry import OpFunction, will_need_grad


class BareConvolution(Protocol):
    """One convolution, without autograd: its geometry and what computes it."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return F(x, w)."""

    def gradients(
        self, dz: Tensor, x: Tensor, weight: Tensor, output_mask: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return (B(dz, w), W(dz, x)), None where the mask says so; of the one that is not read the shape counts."""


def as_nonleaf_view(weight: Tensor) -> Tensor:
    """Return a view of a parameter, since `will_need_grad` cannot tell whether a leaf's gradient will be used."""
    if weight.requires_grad and weight.is_leaf and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return weight.view_as(weight)
    return weight


def conv_gradients(dz, x, weight, output_mask, conv: BareConvolution) -> tuple[Tensor | None, Tensor | None]:
    """Return (dx, dw): one call, or two differentiable ones where a graph is built."""
    needs_dx, needs_dw = output_mask
    if not needs_dx and not needs_dw:
        return None, None
    if not torch.is_grad_enabled():
        return conv.gradients(dz, x, weight, output_mask)
    dx = InputGradient.apply(dz, as_nonleaf_view(weight), x.detach(), conv) if needs_dx else None
    dw = WeightGradient.apply(dz, x, weight.detach(), conv) if needs_dw else None
    return dx, dw


class Convolution(OpFunction):
    """F(x, w)."""

    @staticmethod
    def forward(ctx, x, weight, conv):
        ctx.save_for_backward(x, weight)
        ctx.conv = conv
        return conv.forward(x, weight)

    @staticmethod
    def backward(ctx, dz):
        x, weight = ctx.saved_tensors
        output_mask = (ctx.needs_input_grad[0], will_need_grad(ctx, 1))
        return *conv_gradients(dz, x, weight, output_mask, ctx.conv), None


class InputGradient(OpFunction):
    """B(dz, w); `like` has the shape of x and no gradient."""

    @staticmethod
    def forward(ctx, dz, weight, like, conv):
        ctx.save_for_backward(dz, weight)
        ctx.conv = conv
        return conv.gradients(dz, like, weight, (True, False))[0]

    @staticmethod
    def backward(ctx, g):
        dz, weight = ctx.saved_tensors
        d_dz = Convolution.apply(g, weight, ctx.conv) if ctx.needs_input_grad[0] else None
        dw = WeightGradient.apply(dz, g, weight.detach(), ctx.conv) if will_need_grad(ctx, 1) else None
        return d_dz, dw, None, None


class WeightGradient(OpFunction):
    """W(dz, x); `like` has the shape and dtype of the weight and no gradient."""

    @staticmethod
    def forward(ctx, dz, x, like, conv):
        ctx.save_for_backward(dz, x)
        ctx.conv = conv
        return conv.gradients(dz, x, like, (False, True))[1]

    @staticmethod
    def backward(ctx, g):
        dz, x = ctx.saved_tensors
        d_dz = Convolution.apply(x, g, ctx.conv) if ctx.needs_input_grad[0] else None
        dx = InputGradient.apply(dz, g, x.detach(), ctx.conv) if ctx.needs_input_grad[1] else None
        return d_dz, dx, None, None
