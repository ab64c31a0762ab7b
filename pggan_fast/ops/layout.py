"""Memory layouts of images: what counts as channels_last, and quick copies from one to the other."""

import torch
from torch import Tensor

from pggan_fast.ops.registry import define
from pggan_fast.reference import is_channels_last

__all__ = ["in_layout", "is_channels_last", "to_layout"]


def _copy(x: Tensor, channels_last: bool) -> Tensor:
    return _fake(x, channels_last).copy_(x)


def _fake(x: Tensor, channels_last: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


to_layout = define("to_layout(Tensor x, bool channels_last) -> Tensor", composite=_copy, fake=_fake)
"""A copy of x [N, C, H, W] that is channels_last or contiguous. fp32, bf16 and fp16 by squares transposed in
registers, several times as fast as torch's copy. Not differentiable."""


def in_layout(x: Tensor, channels_last: bool) -> Tensor:
    """Return x [N, C, H, W] with exactly the strides of a fresh tensor of this layout: itself, a view, or a copy.

    Where a size is 1, several strides describe the same memory, and torch's convolutions choose their results' by them.
    """
    n, c, h, w = x.shape
    if channels_last:
        strides = (h * w * c, 1, w * c, c)
    else:
        c, h, w = max(c, 1), max(h, 1), max(w, 1)
        strides = (c * h * w, h * w, w, 1)
    if x.stride() == strides:
        return x
    if x.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format):
        return x.as_strided(x.shape, strides)
    return to_layout(x, channels_last)
