"""conv2d with groups whose derivatives, of any order, are three convolutions: see `closed_conv`."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast.ops.closed_conv import Convolution, as_nonleaf_view
from pggan_fast.ops.conv import autocast_input
from pggan_fast.ops.geometry import Pair, check_floating, checked_axes
from pggan_fast.ops.layout import is_channels_last
from pggan_fast.ops.narrow_cpu import convolution, convolution_backward, is_widened
from pggan_fast.ops.registry import is_transformed, through_dispatcher
from pggan_fast.ops.small import takes_convolution


def conv2d(
    x: Tensor, weight: Tensor, *, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, groups: int = 1
) -> Tensor:
    """Convolve as `torch.nn.functional.conv2d` does, in autocast's dtype where autocast is on.

    x: [N, C_in, H, W], any strides. weight: [C_out, C_in / groups, kh, kw], cast to x's dtype.
    stride, padding, dilation: a number, or (y, x). Returns [N, C_out, H', W'].
    Differentiable in x and weight to any order, by convolutions of all groups at once. On a CPU for contiguous x in
    several groups and for small work in one, and under torch.compile and torch.func, it is torch's own convolution.
    """
    if x.ndim != 4 or weight.ndim != 4 or groups < 1 or x.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            "conv2d: x must be [N, C_in, H, W] and weight [C_out, C_in / groups, kh, kw], "
            f"got {list(x.shape)} and {list(weight.shape)} with groups={groups}"
        )
    check_floating("conv2d", x)
    if weight.shape[0] % groups:
        raise ValueError(f"conv2d: weight has {weight.shape[0]} output channels, must be a multiple of groups={groups}")
    stride, padding, dilation = _pair("stride", stride, 1), _pair("padding", padding, 0), _pair("dilation", dilation, 1)
    return convolve(x, weight, GroupedConvolution(stride, padding, dilation, groups=groups))


def convolve(x: Tensor, weight: Tensor, conv: "GroupedConvolution") -> Tensor:
    """The convolution, in autocast's dtype where autocast is on, differentiable to any order."""
    x = autocast_input(x)
    weight = in_dtype(weight, x.dtype)
    if conv.groups > 1:
        slower = x.is_cpu and not is_channels_last(x) and not is_widened(x)  # measured: docs/ops.md
    else:
        pixels = x.shape[2] * x.shape[3] // (1 if conv.transposed else math.prod(conv.stride))
        slower = takes_convolution(x, weight, pixels)
    if slower or through_dispatcher() or is_transformed() or x.is_meta:
        if conv.transposed:
            return F.conv_transpose2d(x, weight, None, conv.stride, conv.padding, 0, conv.groups, conv.dilation)
        return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return Convolution.apply(x, as_nonleaf_view(weight), conv)


def in_dtype(t: Tensor, dtype: torch.dtype) -> Tensor:
    """`t.to(dtype)`, which takes a microsecond where there is nothing to convert."""
    return t if t.dtype is dtype else t.to(dtype)


def _pair(name: str, value: Pair, least: int) -> list[int]:
    return list(checked_axes("conv2d", name, value, least=least, order="(y, x)"))


class GroupedConvolution(NamedTuple):
    """A `closed_conv.BareConvolution`: torch's own, of all groups at once. Its fields are that one's arguments."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool = False
    output_padding: tuple[int, int] = (0, 0)
    groups: int = 1

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return convolution(x, weight, *self)

    def gradients(
        self, dz: Tensor, x: Tensor, weight: Tensor, output_mask: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        with torch._C._AutoDispatchBelowAutograd():
            dx, dw, _ = convolution_backward(dz, x, weight, *self, output_mask=(*output_mask, False))
        return (dx if output_mask[0] else None), (in_dtype(dw, weight.dtype) if output_mask[1] else None)
