"""Layers of R3GAN (Huang et al. 2024, arXiv 2501.05441): no normalization, weights that start scaled instead."""

import math

import torch
from torch import Tensor, nn

from pggan_fast import ops

SLOPE = 0.2
LRELU_GAIN = math.sqrt(2 / (1 + SLOPE**2))  # with which a leaky ReLU's output keeps the variance of its input
BILINEAR = (1, 3, 3, 1)  # [1, 2, 1] after nearest upsampling, [1, 1]


class ScaledConv2d(nn.Module):
    """Convolution to the same size, with leaky ReLU and bias or with neither.

    The weight [out, in / groups, k, k] starts as N(0, gain^2 / fan_in) and is not scaled at run time; the bias [out]
    starts at 0. x: [N, in, H, W] -> [N, out, H, W].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        groups: int = 1,
        act: str = "linear",
        bias: bool = False,
        gain: float = 1.0,
    ):
        super().__init__()
        fan_in = in_channels // groups * kernel_size**2
        weight = torch.randn(out_channels, in_channels // groups, kernel_size, kernel_size)
        self.weight = nn.Parameter(weight * (gain / math.sqrt(fan_in)))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.groups, self.act = groups, act

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return ops.equalized_conv2d(x, self.weight, self.bias, weight_scale=1.0, act=self.act, slope=SLOPE)
        y = ops.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2, groups=self.groups)
        return ops.bias_act(y, self.bias, act=self.act, slope=SLOPE)

    def extra_repr(self) -> str:
        out_channels, in_channels, k, _ = self.weight.shape
        groups = "" if self.groups == 1 else f", groups={self.groups}"
        return f"{in_channels * self.groups}, {out_channels}, {k}{groups}, act={self.act}, bias={self.bias is not None}"


class ScaledLinear(nn.Module):
    """Dense layer without bias, [N, in] -> [N, out]; the weight [out, in] starts as N(0, gain^2 / in)."""

    def __init__(self, in_features: int, out_features: int, *, gain: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * (gain / math.sqrt(in_features)))

    def forward(self, x: Tensor) -> Tensor:
        return ops.equalized_linear(x, self.weight, weight_scale=1.0)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}"


class InvertedBottleneck(nn.Module):
    """`x + last(grouped(first(x)))`: 1x1 to more channels, 3x3 in groups, 1x1 back (section 4.2). Shape is kept.

    first and grouped have bias and leaky ReLU. The weights start as Fix-up initialisation has them (Zhang et al. 2019):
    those of the last layer at 0, the others scaled by blocks^(-1/4), for `blocks` such blocks in the network.
    """

    def __init__(self, channels: int, hidden: int, group_channels: int, blocks: int):
        super().__init__()
        layer = dict(act="lrelu", bias=True, gain=LRELU_GAIN * blocks**-0.25)
        self.first = ScaledConv2d(channels, hidden, 1, **layer)
        self.grouped = ScaledConv2d(hidden, hidden, 3, groups=hidden // group_channels, **layer)
        self.last = ScaledConv2d(hidden, channels, 1, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.grouped(self.first(x)))


class BilinearResample(nn.Module):
    """Twice the size (up=2) or half (down=2), by the filter [1, 2, 1], and a 1x1 convolution where channels change.

    x: [N, in, H, W] -> [N, out, 2H, 2W] or [N, out, H / 2, W / 2]. The convolution runs at the smaller size: the two
    commute.
    """

    def __init__(self, in_channels: int, out_channels: int, *, up: int = 1, down: int = 1):
        super().__init__()
        self.conv = ScaledConv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.register_buffer("kernel", ops.setup_filter(BILINEAR), persistent=False)
        self.up, self.down = up, down

    def forward(self, x: Tensor) -> Tensor:
        x = ops.downsample2d(x, self.kernel) if self.down == 2 else x
        x = x if self.conv is None else self.conv(x)
        return ops.upsample2d(x, self.kernel) if self.up == 2 else x

    def extra_repr(self) -> str:
        return f"up={self.up}, down={self.down}"


class LatentToFeatures(nn.Module):
    """A learned map of each channel, scaled by a linear function of the latent: [N, in] -> [N, out, *size]."""

    def __init__(self, in_features: int, out_channels: int, size: tuple[int, int]):
        super().__init__()
        self.maps = nn.Parameter(torch.randn(out_channels, *size))
        self.project = ScaledLinear(in_features, out_channels)

    def forward(self, z: Tensor) -> Tensor:
        factors = self.project(z)
        return factors[:, :, None, None] * self.maps.to(factors.dtype)


class FeaturesToVector(nn.Module):
    """The inner product of each channel with a learned map, then a linear function: [N, in, *size] -> [N, out].

    In fp32 whatever x is: scores and penalties are taken of these few numbers.
    """

    def __init__(self, in_channels: int, out_features: int, size: tuple[int, int]):
        super().__init__()
        self.maps = nn.Parameter(torch.randn(in_channels, *size) / math.sqrt(size[0] * size[1]))
        self.project = ScaledLinear(in_channels, out_features)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.project((x * self.maps).sum(dim=(2, 3)))
