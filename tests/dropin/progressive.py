"""Progressive and style GANs, as their ports write them, in plain PyTorch."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PixelNorm(nn.Module):
    def __init__(self, epsilon: float = 1e-8):
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + self.epsilon)


class EqualConv(nn.Conv2d):
    """The weight scaled at run time."""

    def __init__(self, *args, gain: float = math.sqrt(2), **kwargs):
        super().__init__(*args, **kwargs)
        nn.init.normal_(self.weight)
        self.scale = gain / math.sqrt(self.weight[0].numel())

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ScaledInputConv(nn.Module):
    """The input scaled at run time, the bias added by itself."""

    def __init__(self, inputs: int, outputs: int, k: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, k, padding=k // 2, bias=False)
        nn.init.normal_(self.conv.weight)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = math.sqrt(2 / (inputs * k * k))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x * self.scale) + self.bias.view(1, self.bias.shape[0], 1, 1)


class ScaledOutputConv(nn.Module):
    """The output scaled at run time, in place and with its bias."""

    def __init__(self, inputs: int, outputs: int, k: int = 3):
        super().__init__()
        self.module = nn.Conv2d(inputs, outputs, k, padding=k // 2)
        nn.init.normal_(self.module.weight)
        self.weight = math.sqrt(2 / (inputs * k * k))

    def forward(self, x: Tensor) -> Tensor:
        x = self.module(x)
        x *= self.weight
        return x


class UpBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, conv: Callable[..., nn.Module]):
        super().__init__()
        self.conv1, self.conv2 = conv(inputs, outputs), conv(outputs, outputs)
        self.lrelu, self.norm = nn.LeakyReLU(0.2), PixelNorm()

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = self.norm(self.lrelu(self.conv1(x)))
        return self.norm(self.lrelu(self.conv2(x)))


class ProgressiveGenerator(nn.Module):
    """Depth and alpha are arguments of forward: its own control flow stays."""

    def __init__(self, conv: Callable[..., nn.Module], width: int = 16, stages: int = 3):
        super().__init__()
        self.start = nn.Sequential(nn.ConvTranspose2d(width, width, 4), nn.LeakyReLU(0.2), PixelNorm())
        self.blocks = nn.ModuleList([UpBlock(width, width, conv) for _ in range(stages)])
        self.rgb = nn.ModuleList([nn.Conv2d(width, 3, 1) for _ in range(stages + 1)])
        self.depth, self.alpha = stages, 0.4

    def forward(self, z: Tensor, depth: int | None = None) -> Tensor:
        depth = self.depth if depth is None else depth
        x = self.start(z[:, :, None, None])
        for block in self.blocks[:depth]:
            low, x = x, block(x)
        old = F.interpolate(self.rgb[depth - 1](low), scale_factor=2)
        return torch.lerp(old, self.rgb[depth](x), self.alpha)


class GroupedDeviation(nn.Module):
    def __init__(self, group: int = 4):
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        group = min(n, self.group)
        y = x.reshape(group, -1, 1, c, h, w)
        y = y - y.mean(0, keepdim=True)
        y = (y.square().mean(0) + 1e-8).sqrt().mean([2, 3, 4], keepdim=True).squeeze(2)
        return torch.cat([x, y.repeat(group, 1, h, w)], dim=1)


class BatchDeviation(nn.Module):
    """Deviation of the whole batch, unbiased."""

    def forward(self, x: Tensor) -> Tensor:
        deviation = torch.sqrt(x.var(0) + 1e-8).mean()
        return torch.cat([x, deviation.expand(x.size(0), 1, x.size(2), x.size(3))], 1)


def consecutive_deviation(x: Tensor, group: int = 2) -> Tensor:
    """Neighbours in the batch form a group; unbiased."""
    size = x.size()
    group = min(size[0], group)
    y = torch.sqrt(torch.var(x.view(-1, group, *size[1:]), 1) + 1e-8).view(size[0] // group, -1)
    y = torch.mean(y, 1).view(-1, 1).expand(-1, size[2] * size[3]).view(-1, 1, 1, size[2], size[3])
    y = y.expand(-1, group, -1, -1, -1).contiguous().view(-1, 1, size[2], size[3])
    return torch.cat([x, y], dim=1)


class ProgressiveDiscriminator(nn.Module):
    def __init__(self, deviation: Callable[[Tensor], Tensor], width: int = 16):
        super().__init__()
        self.rgb = nn.Sequential(EqualConv(3, width, 1), nn.LeakyReLU(0.2))
        self.conv1, self.conv2 = EqualConv(width, width, 3, padding=1), EqualConv(width, width, 3, padding=1)
        self.deviation = deviation
        self.head = EqualConv(width + 1, width, 3, padding=1)
        self.score = nn.Linear(width * 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv1(self.rgb(x)), 0.2)
        x = F.leaky_relu(F.avg_pool2d(self.conv2(x), 2), 0.2)
        x = F.leaky_relu(self.head(self.deviation(F.adaptive_avg_pool2d(x, 4))), 0.2)
        return self.score(x.flatten(1))


# StyleGAN2


class ModulatedConv(nn.Module):
    def __init__(self, inputs: int, outputs: int, k: int = 3, demodulate: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, k, k))
        self.style, self.demodulate = nn.Linear(16, inputs), demodulate
        self.scale = 1 / math.sqrt(inputs * k * k)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        n, c, h, w = x.shape
        weight = self.scale * self.weight * (1 + self.style(style)).view(n, 1, c, 1, 1)
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8).view(n, -1, 1, 1, 1)
        weight = weight.view(-1, *weight.shape[2:])
        y = F.conv2d(x.reshape(1, n * c, h, w), weight, padding=weight.shape[-1] // 2, groups=n)
        return y.view(n, -1, h, w)


class FusedLeakyReLU(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.bias.view(1, -1, 1, 1), negative_slope=0.2) * 2**0.5


class StyleGenerator(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.mapping = nn.Sequential(PixelNorm(), nn.Linear(16, 16), nn.LeakyReLU(0.2), nn.Linear(16, 16))
        self.constant = nn.Parameter(torch.randn(1, width, 8, 8))
        self.convs = nn.ModuleList([ModulatedConv(width, width) for _ in range(2)])
        self.acts = nn.ModuleList([FusedLeakyReLU(width) for _ in range(2)])
        self.rgb = ModulatedConv(width, 3, 1, demodulate=False)

    def forward(self, z: Tensor) -> Tensor:
        style = self.mapping(z)
        x = self.constant.repeat(z.shape[0], 1, 1, 1)
        x = self.acts[0](self.convs[0](x, style))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.rgb(self.acts[1](self.convs[1](x, style)), style)
