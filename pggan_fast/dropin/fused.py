"""The functions that rewritten graphs call: each computes what it stands for, faster."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from pggan_fast import ops
from pggan_fast.ops.bias_act import zeros_like

IN_PLACE_FROM = 1 << 17
"""Values of an activation from which writing in place saves more than TorchDynamo's guards of a call take."""


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    up: bool = False,
    down: bool = False,
    zeros: bool = False,
    padding: int = 0,
    weight_scale: float = 1.0,
    **epilogue: Any,
) -> Tensor:
    """Nearest upsampling, convolution, 2x2 mean and the epilogue of `ops.equalized_conv2d`, in this order.

    Either upsampling or a mean, not both. x [N, C_in, H, W]; weight [C_out, C_in, k, k] times `weight_scale`; bias of
    C_out values in any shape. zeros: as in `downsample`. Differentiable twice.
    """
    bias = _flat(bias)
    # One pixel to one pixel commutes with both: a quarter of the work.
    commutes = weight.shape[-1] == 1 and padding == 0
    x = ops.downsample2x(x) if down and commutes else x
    if x.is_cpu and (commutes or not (up or down)):
        # There is nothing to fold, and torch's own call is the shortest; it adds a bias itself.
        alone = weight_scale == 1 and not epilogue
        y = F.conv2d(x, weight, bias if alone else None, padding=padding)
        y = y if alone else bias_act(y, bias, scale=weight_scale, **epilogue)
    else:
        factors = {} if commutes else {"up": 1 + up, "down": 1 + down}
        y = ops.equalized_conv2d(x, weight, bias, weight_scale=weight_scale, padding=padding, **factors, **epilogue)
    y = ops.upsample2x(y) if up and commutes else y
    linear = "act" not in epilogue and not epilogue.get("pixel_norm", False)
    # One fused launch keeps signs instead of y; torch's activations hand zeros on in a second backward.
    return _Zeros.apply(y) if zeros and linear or not getattr(y.grad_fn, "gives_zeros", True) else y


def bias_act(z: Tensor, bias: Tensor | None = None, *, act: str = "linear", **epilogue: Any) -> Tensor:
    """`ops.bias_act`; z [N, C, ...], bias of C values in any shape."""
    return ops.bias_act(z, _flat(bias), act=act, **epilogue)


def _flat(bias: Tensor | None) -> Tensor | None:
    return bias if bias is None or bias.ndim == 1 else bias.reshape(-1)


def activate_(z: Tensor, *, act: str, slope: float) -> Tensor:
    """ReLU or leaky ReLU in place."""
    return torch.relu_(z) if act == "relu" else torch._C._nn.leaky_relu_(z, slope)


def unshared(y: Tensor) -> Tensor:
    """A copy where backward needs y: the caller may write over the result."""
    return y.clone() if y.requires_grad else y


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    factor: Tensor | None,
    shift: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Weight [C_out, C_in, kh, kw] and bias of the convolution that batch norm in eval mode follows; differentiable."""
    scale = torch.rsqrt(var + eps)
    scale = scale if factor is None else scale * factor
    bias = (-mean if bias is None else bias - mean) * scale
    return weight * scale.view(-1, 1, 1, 1), bias if shift is None else bias + shift


def modulated_convolution(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    *,
    channels: int,
    transposed: bool,
    demodulate: bool,
    scale: float,
    **geometry: Any,
) -> Tensor:
    """Convolve each sample of x [N, C, H, W] with its own weight * styles[n], demodulated if asked, `scale` times.

    weight of channels * C * kh * kw values, styles of N * C. As a convolution is linear in each input channel, x is
    scaled instead of the weight, and the output by the factor that demodulates (Karras et al. 2020, section 2.2).
    """
    n, c = x.shape[:2]
    weight, styles = scale * weight.reshape(channels, c, *weight.shape[-2:]), styles.reshape(n, c)
    convolve = F.conv_transpose2d if transposed else F.conv2d
    y = convolve(x * styles[:, :, None, None], weight.transpose(0, 1) if transposed else weight, **geometry)
    if not demodulate:
        return y
    factors = torch.rsqrt(styles.square() @ weight.square().sum((2, 3)).T + 1e-8)
    return y * factors[:, :, None, None]


def blur(x: Tensor, weight: Tensor, *, nearest: bool, **options: Any) -> Tensor:
    """Filter each channel of x [N, C, H, W] with weight [..., kh, kw], after nearest upsampling by 2 or not."""
    f = weight.detach().reshape(1, 1, *weight.shape[-2:]).clone()  # backward reads it: buffers may be written over
    if nearest:  # which is a filter of 2 x 2 ones over pixels with zeros between them
        f = f if f.dtype is torch.float64 else f.float()
        f = 4 * F.avg_pool2d(F.pad(f, (1, 1, 1, 1)), 2, stride=1)
    return _Zeros.apply(ops.upfirdn2d(x, f[0, 0], **options), x)


def minibatch_stddev(x: Tensor, **options: Any) -> Tensor:
    """`ops.minibatch_stddev`."""
    return ops.minibatch_stddev(x, **options)


def upsample(x: Tensor) -> Tensor:
    """`ops.upsample2x`."""
    return ops.upsample2x(x)


def downsample(x: Tensor, *, zeros: bool = False) -> Tensor:
    """2x2 means of x [N, C, H, W].

    zeros: the second derivative is zeros, as that of torch's pooling, and not absent, as that of its interpolation.
    """
    return _Zeros.apply(ops.downsample2x(x)) if zeros else ops.downsample2x(x)


class _Zeros(Function):
    """y itself. In a second backward it gets zeros; or x gets None, for a gradient with a graph, as a convolution's."""

    @staticmethod
    def forward(ctx, y, x=None):
        ctx.zeros, ctx.y = x is None, y if x is None else x  # which may be written over: only its graph is of interest
        return y.data  # no view, which the caller could not write over

    @staticmethod
    def backward(ctx, dy):
        return _ZerosBackward.apply(dy, ctx.y, ctx.zeros), None


class _ZerosBackward(Function):
    """(dy, y, zeros) -> dy"""

    @staticmethod
    def forward(ctx, dy, y, zeros):
        ctx.zeros, ctx.y = zeros, y
        return dy.view_as(dy)

    @staticmethod
    def backward(ctx, g):
        return g, zeros_like(ctx.y) if ctx.zeros else None, None
