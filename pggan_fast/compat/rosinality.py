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
    input: Tensor,
    kernel: Tensor,
    up: int | Sequence[int],
    down: int | Sequence[int],
    pad: Sequence[int],
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """The kernel gets no gradient, as on a GPU there."""
    options = dict(up=up, down=down, padding=pad, flip_filter=flip_filter, gain=gain)
    return ops.upfirdn2d(input, kernel.detach(), **options)


def upfirdn2d(
    input: Tensor,
    kernel: Tensor,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    pad: Sequence[int] = (0, 0),
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    """pad: (before, after) on both axes, or (x0, x1, y0, y1); the last two are of alias-free-gan-pytorch."""
    pad = tuple(pad) if len(pad) == 4 else (pad[0], pad[1], pad[0], pad[1])
    return filtered(input, kernel, _pair(up), _pair(down), pad, flip_filter, gain)


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
    flip_filter: bool = False,
    gain: float = 1,
) -> Tensor:
    pad = (pad_x0, pad_x1, pad_y0, pad_y1)
    return filtered(input, kernel, (up_x, up_y), (down_x, down_y), pad, flip_filter, gain)


# Autograd functions that some call in the place of the functions above. Ours are none: TorchDynamo would take the
# `forward` of one, where `apply` is all there is.


class FusedLeakyReLUFunction:
    @staticmethod
    def apply(input: Tensor, bias: Tensor | None, negative_slope: float, scale: float) -> Tensor:
        return fused_leaky_relu(input, bias, negative_slope, scale)


class FusedLeakyReLUFunctionBackward:
    @staticmethod
    def apply(grad_output: Tensor, out: Tensor, *options: bool | float) -> tuple[Tensor, Tensor]:
        """(gradient of input, of the bias); options: whether there is a bias, which copies from before leave out, the
        slope and the scale.
        """
        *has_bias, negative_slope, scale = options
        gradient = torch.where(out > 0, grad_output * scale, grad_output * (scale * negative_slope))
        if has_bias and not has_bias[0]:
            return gradient, gradient.new_empty(0)
        return gradient, gradient.sum([i for i in range(gradient.ndim) if i != 1])


class UpFirDn2d:
    apply = staticmethod(upfirdn2d)


class UpFirDn2dBackward:
    @staticmethod
    def apply(
        grad_output: Tensor,
        kernel: Tensor,
        grad_kernel: Tensor,
        up: Sequence[int],
        down: Sequence[int],
        pad: Sequence[int],
        g_pad: Sequence[int],
        in_size: Sequence[int],
        out_size: Sequence[int],
    ) -> Tensor:
        """The gradient of input [*in_size]; grad_kernel is the flipped kernel, g_pad the padding of the gradient."""
        grad_output = grad_output.reshape(in_size[0], in_size[1], *out_size)
        return upfirdn2d(grad_output, grad_kernel, down, up, g_pad).reshape(in_size)


ACTIVATIONS: dict[str, object] = {
    "FusedLeakyReLU": FusedLeakyReLU,
    "fused_leaky_relu": fused_leaky_relu,
    "FusedLeakyReLUFunction": FusedLeakyReLUFunction,
    "FusedLeakyReLUFunctionBackward": FusedLeakyReLUFunctionBackward,
}
FILTERS: dict[str, object] = {
    "upfirdn2d": upfirdn2d,
    "upfirdn2d_native": upfirdn2d_native,
    "UpFirDn2d": UpFirDn2d,
    "UpFirDn2dBackward": UpFirDn2dBackward,
}

MODULES = {
    "op.fused_act": lambda module: dict(ACTIVATIONS),
    "op.upfirdn2d": lambda module: dict(FILTERS),
    "op.conv2d_gradfix": conv2d_gradfix,
}
"""{module: a function of the module to what it holds}"""
