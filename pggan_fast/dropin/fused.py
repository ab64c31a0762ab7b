"""The functions that rewritten graphs call: each computes what it stands for, the faster way of two."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from pggan_fast import ops
from pggan_fast.ops.bias_act import zeros_like

FOLD_FROM = 512
"""Output pixels of a batch from which folding a weight with the rescaling costs less than it saves."""

BATCH_NORM_FROM = 4
"""Output values for each weight from which scaling the weights costs less than scaling the image."""

RESCALE_FROM = 4096
"""Values of a contiguous image from which this package's 2x rescaling is the faster one on a CPU."""

SMALL_CALLS = 65_536
"""Weights that could be scaled in the time that it takes to call the functions which scale them."""


class BatchNorm(NamedTuple):
    """A batch norm in eval mode."""

    mean: Tensor
    var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, False, 0.0, self.eps)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    batch_norm: tuple | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    up: bool = False,
    down: bool = False,
    zeros: bool = False,
    weight_scale: float = 1.0,
    **epilogue: Any,
) -> Tensor:
    """Nearest upsampling, convolution, 2x2 mean, bias, batch norm and the epilogue of `activate`, in this order.

    Either upsampling or a mean, not both. `batch_norm` is what `BatchNorm` is made of. zeros: see `downsample`.

    x [N, C_in, H, W]; weight [C_out, C_in / groups, kh, kw], multiplied by `weight_scale`; bias of C_out values.
    Differentiable twice.
    """
    if zeros and epilogue.get("act", "linear") == "linear" and not epilogue.get("pixel_norm", False):
        named = dict(batch_norm=batch_norm, stride=stride, padding=padding, dilation=dilation, groups=groups)
        return _Zeros.apply(convolution(x, weight, bias, **named, down=down, weight_scale=weight_scale, **epilogue))
    bias, geometry = _flat(bias), (stride, padding, dilation, groups)
    if batch_norm is not None:
        batch_norm = BatchNorm(*batch_norm)
        if not _worth_folding(batch_norm, weight, _output_pixels(x, up, down)):
            named = dict(stride=stride, padding=padding, dilation=dilation, groups=groups)
            return activate(
                batch_norm(convolution(x, weight, bias, **named, up=up, down=down, weight_scale=weight_scale)),
                **epilogue,
            )
        weight, bias = fold_batch_norm(weight, bias, batch_norm, weight_scale)
        weight_scale = 1.0
    pixel_norm = epilogue.get("pixel_norm", False)
    if x.is_cpu and not (up or down or pixel_norm or weight_scale != 1):  # oneDNN adds the bias itself
        return activate(torch.conv2d(x, weight, bias, *geometry), **epilogue)
    same = _same_padding(weight, *geometry)
    if (up or down) and same == 0 and weight.shape[-1] == 1:
        # One pixel to one pixel commutes with both: a quarter of the work.
        y = convolution(downsample(x) if down else x, weight, bias, weight_scale=weight_scale, **epilogue)
        return upsample(y) if up else y
    if same is not None and _worth_fusing(x, up, down):
        options = dict(weight_scale=weight_scale, padding=same, up=2 if up else 1, down=2 if down else 1)
        overwritable = epilogue.pop("overwritable", False)
        y = ops.equalized_conv2d(x, weight, bias, **options, **epilogue)
        # One fused launch keeps signs instead of y; torch's activations hand zeros on in a second backward.
        y = y if getattr(y.grad_fn, "gives_zeros", True) else _Zeros.apply(y)
        return y.clone() if overwritable and y.requires_grad else y
    x = upsample(x) if up else x
    weight = weight * weight_scale if weight_scale != 1 else weight
    z = torch.conv2d(x, weight, None if pixel_norm else bias, *geometry)
    z = downsample(z) if down else z
    return activate(z, bias if pixel_norm else None, **epilogue)


def plain_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    **epilogue: Any,
) -> Tensor:
    """`convolution` with nothing but an activation, for a CPU, whose convolution adds the bias: the shortest way."""
    return activate(torch.conv2d(x, weight, _flat(bias), stride, padding, dilation, groups), **epilogue)


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
    k = weight.shape[-2:]
    weight, styles = weight.reshape(channels, c, *k), styles.reshape(n, c)
    weight = weight * scale if scale != 1 else weight
    convolve = F.conv_transpose2d if transposed else F.conv2d
    y = convolve(x * styles[:, :, None, None], weight.transpose(0, 1) if transposed else weight, **geometry)
    if not demodulate:
        return y
    factors = torch.rsqrt(styles.square() @ weight.square().sum((2, 3)).T + 1e-8)
    return y * factors[:, :, None, None]


def instance_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, *, instance_eps: float, **epilogue: Any
) -> Tensor:
    """Instance norm of x [N, C, ...] and the epilogue of `activate`, for a CPU: torch's group norm is faster there."""
    if x.numel() == 0:
        return activate(F.instance_norm(x, weight=weight, bias=bias, eps=instance_eps), **epilogue)
    return activate(F.group_norm(x, x.shape[1], weight, bias, instance_eps), **epilogue)


def activate(
    z: Tensor,
    bias: Tensor | None = None,
    *,
    act: str = "linear",
    slope: float = 0.0,
    gain: float = 1.0,
    pixel_norm: bool = False,
    eps: float = 1e-8,
    overwritable: bool = False,
) -> Tensor:
    """`bias_act`, or torch's own functions in place where they are as good. Nothing else may read z [N, C, ...].

    overwritable: the caller may write over the result, even where backward needs it.
    """
    if pixel_norm or bias is not None or gain != 1:
        options = dict(act=act, slope=slope, gain=gain, pixel_norm=pixel_norm, eps=eps)
        return bias_act(z, bias, **options, overwritable=overwritable)
    if act == "relu":
        return torch.relu_(z)
    if act == "linear":
        return z
    return F.leaky_relu(z, slope) if overwritable and z.requires_grad else torch._C._nn.leaky_relu_(z, slope)


def bias_act(
    z: Tensor, bias: Tensor | None = None, *, act: str = "linear", overwritable: bool = False, **epilogue: Any
) -> Tensor:
    """`ops.bias_act`; z [N, C, ...] may have other readers, bias is of C values in any shape."""
    y = ops.bias_act(z, _flat(bias), act=act, **epilogue)
    return y.clone() if overwritable and y.requires_grad else y


def _flat(bias: Tensor | None) -> Tensor | None:
    return bias if bias is None or bias.ndim == 1 else bias.reshape(-1)


def _same_padding(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> int | None:
    """The padding if `ops.equalized_conv2d` can take this convolution, else None."""
    kh, kw = weight.shape[2:]
    one = (1, (1, 1), [1, 1])
    if kh != kw or stride not in one or dilation not in one or groups != 1:
        return None
    if isinstance(padding, str):
        return 0 if padding == "valid" else kh // 2 if kh % 2 else None
    pair = (padding, padding) if isinstance(padding, int) else tuple(padding)
    return pair[0] if pair[0] == pair[-1] and pair[0] < kh else None


def _output_pixels(x: Tensor, up: bool, down: bool) -> int:
    n, h, w = x.shape[0], x.shape[-2], x.shape[-1]
    return n * h * w * 4 if up else n * h * w // 4 if down else n * h * w


def _worth_fusing(x: Tensor, up: bool, down: bool) -> bool:
    return not (up or down) or _output_pixels(x, up, down) * (4 if down else 1) >= FOLD_FROM


def _worth_folding(batch_norm: BatchNorm, weight: Tensor, pixels: int) -> bool:
    if batch_norm.mean.dtype != weight.dtype:
        return False
    return pixels * weight.shape[0] >= BATCH_NORM_FROM * (weight.numel() + SMALL_CALLS)


def fold_batch_norm(
    weight: Tensor, bias: Tensor | None, batch_norm: BatchNorm, weight_scale: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution with the batch norm of eval mode in them; differentiable."""
    factor = torch.rsqrt(batch_norm.var + batch_norm.eps)
    factor = factor if batch_norm.weight is None else factor * batch_norm.weight
    shift = -batch_norm.mean if bias is None else bias - batch_norm.mean
    shift = shift * factor if batch_norm.bias is None else torch.addcmul(batch_norm.bias, shift, factor)
    return weight * (factor * weight_scale).view(-1, 1, 1, 1), shift


def upsample(x: Tensor) -> Tensor:
    """Nearest upsampling by 2 of x [N, C, ...]."""
    return ops.upsample2x(x) if _rescaled_faster(x) else F.interpolate(x, scale_factor=2.0, mode="nearest")


def downsample(x: Tensor, *, zeros: bool = False) -> Tensor:
    """2x2 means of x [N, C, H, W].

    zeros: the second derivative is zeros, as that of torch's pooling, and not absent, as that of its interpolation.
    """
    if zeros and not _rescaled_faster(x):
        return F.avg_pool2d(x, 2)
    return _Zeros.apply(ops.downsample2x(x)) if zeros else ops.downsample2x(x)


class _Zeros(Function):
    """y itself. In a second backward it gets zeros."""

    @staticmethod
    def forward(ctx, y):
        ctx.y = y  # which may be written over: only its graph is of interest
        return y.view_as(y)

    @staticmethod
    def backward(ctx, dy):
        return _ZerosBackward.apply(dy, ctx.y)


class _ZerosBackward(Function):
    """(dy, y) -> dy"""

    @staticmethod
    def forward(ctx, dy, y):
        ctx.y = y
        return dy.view_as(dy)

    @staticmethod
    def backward(ctx, g):
        return g, zeros_like(ctx.y)


def _rescaled_faster(x: Tensor) -> bool:
    # torch's own are as fast where channels are innermost.
    suits = x.is_cpu and x.ndim == 4 and x.is_floating_point()
    return suits and x.numel() >= RESCALE_FROM and x.is_contiguous()


def minibatch_stddev(x: Tensor, **options: Any) -> Tensor:
    """`ops.minibatch_stddev`."""
    return ops.minibatch_stddev(x, **options)
