"""`op.*` of rosinality's StyleGAN2, and of the many projects that hold a copy."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pggan_fast import ops
from pggan_fast.compat.gradfix import conv2d_gradfix


def fused_leaky_relu(
    input: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2, scale: float = 2**0.5
) -> Tensor:
    """scale * leaky_relu(input + bias along dimension 1)"""
    # A fused backward reads the activation's sign off its output, and takes input that has channels.
    if negative_slope < 0 or scale < 0 or not input.numel() or input.ndim < 2:
        y = input if bias is None else input + bias.view(1, -1, *[1] * (input.ndim - 2))
        return torch.nn.functional.leaky_relu(y, negative_slope) * scale
    return ops.bias_act(input, bias, act="lrelu", slope=float(negative_slope), gain=float(scale))


class FusedLeakyReLU(nn.Module):
    """Bias, leaky ReLU and a scale. State: `bias` [channel], none with bias=False."""

    def __init__(self, channel: int, bias: bool = True, negative_slope: float = 0.2, scale: float = 2**0.5) -> None:
        super().__init__()
        if bias:
            self.bias = nn.Parameter(torch.zeros(channel))
        else:
            self.bias = None
        self.negative_slope, self.scale = negative_slope, scale

    def forward(self, input: Tensor) -> Tensor:
        return fused_leaky_relu(input, self.bias, self.negative_slope, self.scale)


def filtered(
    input: Tensor, kernel: Tensor, up: int | Sequence[int], down: int | Sequence[int], pad: Sequence[int]
) -> Tensor:
    """A true convolution without a gain; the kernel gets no gradient, as on a GPU there."""
    return ops.upfirdn2d(input, kernel.detach(), up=up, down=down, padding=pad)


def upfirdn2d(
    input: Tensor,
    kernel: Tensor,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    pad: Sequence[int] = (0, 0),
) -> Tensor:
    """pad: (before, after) on both axes, or (x0, x1, y0, y1)."""
    pad = tuple(pad) if len(pad) == 4 else (pad[0], pad[1], pad[0], pad[1])
    return filtered(input, kernel, _pair(up), _pair(down), pad)


def _pair(value):
    return value if isinstance(value, int) else tuple(value)


def upfirdn2d_native(
    input: Tensor,
    kernel: Tensor,
    up_x: int,
    up_y: int,
    down_x: int,
    down_y: int,
    pad_x0: int,
    pad_x1: int,
    pad_y0: int,
    pad_y1: int,
) -> Tensor:
    return filtered(input, kernel, (up_x, up_y), (down_x, down_y), (pad_x0, pad_x1, pad_y0, pad_y1))


MODULES = {
    "op.fused_act": lambda module: {"FusedLeakyReLU": FusedLeakyReLU, "fused_leaky_relu": fused_leaky_relu},
    "op.upfirdn2d": lambda module: {"upfirdn2d": upfirdn2d, "upfirdn2d_native": upfirdn2d_native},
    "op.conv2d_gradfix": conv2d_gradfix,
}
"""{module: a function of the module to what it holds}"""
