"""conv2d with groups whose derivatives, of any order, are three convolutions.

F(x, w), its input gradient B(dz, w) and its weight gradient W(dz, x) are each linear in both arguments, and the
gradients of each are the other two. torch's own double backward computes W's part group by group, `groups`
convolutions of a narrow slice each.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast.ops.conv import autocast_input
from pggan_fast.ops.conv_gradients import as_nonleaf_view
from pggan_fast.ops.layout import is_channels_last
from pggan_fast.ops.narrow_cpu import convolution, convolution_backward, is_widened
from pggan_fast.ops.registry import OpFunction, is_transformed, through_dispatcher, will_need_grad

Pair = int | Sequence[int]


def conv2d(
    x: Tensor, weight: Tensor, *, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, groups: int = 1
) -> Tensor:
    """Convolve as `torch.nn.functional.conv2d` does, in autocast's dtype where autocast is on.

    x: [N, C_in, H, W], any strides. weight: [C_out, C_in / groups, kh, kw], cast to x's dtype.
    stride, padding, dilation: a number, or (y, x). Returns [N, C_out, H', W'].
    Differentiable in x and weight to any order, by convolutions of all groups at once. For contiguous x on a CPU, and
    under torch.compile and torch.func, it is torch's own convolution.
    """
    if x.ndim != 4 or weight.ndim != 4 or groups < 1 or x.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            "conv2d: x must be [N, C_in, H, W] and weight [C_out, C_in / groups, kh, kw], "
            f"got {list(x.shape)} and {list(weight.shape)} with groups={groups}"
        )
    if weight.shape[0] % groups:
        raise ValueError(f"conv2d: weight has {weight.shape[0]} output channels, must be a multiple of groups={groups}")
    x = autocast_input(x)
    geometry = (_pair("stride", stride, 1), _pair("padding", padding, 0), _pair("dilation", dilation, 1), groups)
    weight = weight.to(x.dtype)
    slower = x.is_cpu and not is_channels_last(x) and not is_widened(x)  # measured: docs/ops.md
    if slower or through_dispatcher() or is_transformed() or x.is_meta:
        return F.conv2d(x, weight, None, *geometry)
    return _Convolution.apply(x, as_nonleaf_view(weight), geometry)


def _pair(name: str, value: Pair, least: int) -> list[int]:
    pair = [value, value] if isinstance(value, int) else list(value)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"conv2d: {name} is {value}, must be a number from {least} or a pair (y, x) of them")
    return pair


class _Convolution(OpFunction):
    """F(x, w)."""

    @staticmethod
    def forward(ctx, x, weight, geometry):
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        stride, padding, dilation, groups = geometry
        with torch._C._AutoDispatchBelowAutograd():
            return convolution(x, weight, stride, padding, dilation, False, [0, 0], groups)

    @staticmethod
    def backward(ctx, dz):
        x, weight = ctx.saved_tensors
        needs_dx, needs_dw = ctx.needs_input_grad[0], will_need_grad(ctx, 1)
        if not torch.is_grad_enabled():
            return *_gradients(dz, x, weight, (needs_dx, needs_dw), ctx.geometry), None
        dx = _InputGradient.apply(dz, as_nonleaf_view(weight), x.detach(), ctx.geometry) if needs_dx else None
        dw = _WeightGradient.apply(dz, x, weight.detach(), ctx.geometry) if needs_dw else None
        return dx, dw, None


class _InputGradient(OpFunction):
    """B(dz, w); `like` has the shape of x and no gradient."""

    @staticmethod
    def forward(ctx, dz, weight, like, geometry):
        ctx.save_for_backward(dz, weight)
        ctx.geometry = geometry
        return _gradients(dz, like, weight, (True, False), geometry)[0]

    @staticmethod
    def backward(ctx, g):
        dz, weight = ctx.saved_tensors
        d_dz = _Convolution.apply(g, weight, ctx.geometry) if ctx.needs_input_grad[0] else None
        dw = _WeightGradient.apply(dz, g, weight.detach(), ctx.geometry) if will_need_grad(ctx, 1) else None
        return d_dz, dw, None, None


class _WeightGradient(OpFunction):
    """W(dz, x); `like` has the shape of the weight and no gradient."""

    @staticmethod
    def forward(ctx, dz, x, like, geometry):
        ctx.save_for_backward(dz, x)
        ctx.geometry = geometry
        return _gradients(dz, x, like, (False, True), geometry)[1]

    @staticmethod
    def backward(ctx, g):
        dz, x = ctx.saved_tensors
        d_dz = _Convolution.apply(x, g, ctx.geometry) if ctx.needs_input_grad[0] else None
        dx = _InputGradient.apply(dz, g, x.detach(), ctx.geometry) if ctx.needs_input_grad[1] else None
        return d_dz, dx, None, None


def _gradients(dz, x, weight, output_mask, geometry) -> tuple[Tensor | None, Tensor | None]:
    """Return (dx, dw), None where the mask says so. Of the tensor whose gradient it is, only the shape is read."""
    stride, padding, dilation, groups = geometry
    arguments = (stride, padding, dilation, False, [0, 0], groups)
    with torch._C._AutoDispatchBelowAutograd():
        dx, dw = convolution_backward(dz, x, weight, *arguments, output_mask=output_mask)
    return (dx if output_mask[0] else None), (dw.to(weight.dtype) if output_mask[1] else None)
