"""The ops as modules, with the constructors people know: the layers of the paper."""

import math
from numbers import Integral

import torch
from torch import Tensor, nn

from pggan_fast import ops
from pggan_fast.ops.bias_act import check_epilogue
from pggan_fast.ops.conv import check_rescaling


def _check(layer: str, act: str, slope: float, **counts: int) -> None:
    """Raise ValueError for what no input would fit, where the layer is made and not where it is first called."""
    for name, count in counts.items():
        if not isinstance(count, Integral) or count < 1:
            raise ValueError(f"{layer}: {name} is {count!r}, must be a whole number from 1")
    check_epilogue(layer, torch.Size([1]), None, (1.0, act, slope, 1.0, False, 0.0))


class EqualizedConv2d(nn.Module):
    """Convolution with an equalized learning rate, optional 2x rescaling, bias, activation and pixel norm.

    The weight [out, in, k, k] starts as N(0, 1) and is multiplied by `gain / sqrt(fan_in)` at run time (paper,
    section 4.1); the bias [out] starts at 0 and is not scaled. See `ops.equalized_conv2d` for the order of things.

    x: [N, in, H, W] -> [N, out, H, W] (2H x 2W with up=2, H // 2 x W // 2 with down=2), for the default padding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        up: int = 1,
        down: int = 1,
        act: str = "linear",
        slope: float = 0.2,
        pixel_norm: bool = False,
        eps: float = 1e-8,
        gain: float = math.sqrt(2),
        bias: bool = True,
        padding: int | None = None,
    ):
        super().__init__()
        counts = {"in_channels": in_channels, "out_channels": out_channels, "kernel_size": kernel_size}
        _check("EqualizedConv2d", act, slope, **counts)
        check_rescaling("EqualizedConv2d", kernel_size, up, down, padding)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_scale = gain / math.sqrt(in_channels * kernel_size**2)
        self.up, self.down, self.padding = up, down, padding
        self.act, self.slope, self.pixel_norm, self.eps = act, slope, pixel_norm, eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.equalized_conv2d(
            x,
            self.weight,
            self.bias,
            weight_scale=self.weight_scale,
            padding=self.padding,
            up=self.up,
            down=self.down,
            act=self.act,
            slope=self.slope,
            pixel_norm=self.pixel_norm,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        out_channels, in_channels, k, _ = self.weight.shape
        rescaling = {(2, 1): ", up=2", (1, 2): ", down=2"}.get((self.up, self.down), "")
        norm = ", pixel_norm=True" if self.pixel_norm else ""
        return f"{in_channels}, {out_channels}, {k}{rescaling}, act={self.act}{norm}, bias={self.bias is not None}"


class EqualizedLinear(nn.Module):
    """Dense layer with an equalized learning rate, bias and activation, [N, in] -> [N, out].

    The weight [out, in] starts as N(0, 1) and is multiplied by `gain / sqrt(in)` at run time (paper, section 4.1);
    the bias [out] starts at 0 and is not scaled.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        act: str = "linear",
        slope: float = 0.2,
        gain: float = math.sqrt(2),
        bias: bool = True,
    ):
        super().__init__()
        _check("EqualizedLinear", act, slope, in_features=in_features, out_features=out_features)
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.weight_scale = gain / math.sqrt(in_features)
        self.act, self.slope = act, slope

    def forward(self, x: Tensor) -> Tensor:
        return ops.equalized_linear(
            x,
            self.weight,
            self.bias,
            weight_scale=self.weight_scale,
            act=self.act,
            slope=self.slope,
        )

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, act={self.act}, bias={self.bias is not None}"


class PixelNorm(nn.Module):
    """`ops.pixel_norm`, [N, C, *spatial] -> the same shape."""

    def __init__(self, eps: float = 1e-8):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.pixel_norm(x, self.eps)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class MinibatchStdDev(nn.Module):
    """`ops.minibatch_stddev`, [N, C, H, W] -> [N, C + num_channels, H, W]."""

    def __init__(
        self,
        group_size: int = 4,
        num_channels: int = 1,
        eps: float = 1e-8,
        *,
        grouping: str = "strided",
        correction: int = 0,
    ):
        super().__init__()
        _check("MinibatchStdDev", "linear", 0, group_size=group_size, num_channels=num_channels)
        self.group_size, self.num_channels, self.eps = group_size, num_channels, eps
        self.grouping, self.correction = grouping, correction

    def forward(self, x: Tensor) -> Tensor:
        return ops.minibatch_stddev(
            x,
            self.group_size,
            self.num_channels,
            self.eps,
            grouping=self.grouping,
            correction=self.correction,
        )

    def extra_repr(self) -> str:
        return (
            f"group_size={self.group_size}, num_channels={self.num_channels}, "
            f"grouping={self.grouping}, correction={self.correction}"
        )


class FadeIn(nn.Module):
    """`ops.fade_in`: (low [N, C, H, W], high [N, C, 2H, 2W], alpha) -> [N, C, 2H, 2W]."""

    def forward(self, low: Tensor, high: Tensor, alpha: float | Tensor) -> Tensor:
        return ops.fade_in(low, high, alpha)


class Upsample2x(nn.Module):
    """`ops.upsample2x`: nearest, [N, C, H, W] -> [N, C, 2H, 2W]."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.upsample2x(x)


class Downsample2x(nn.Module):
    """`ops.downsample2x`: 2x2 mean, [N, C, H, W] -> [N, C, H // 2, W // 2]."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.downsample2x(x)
