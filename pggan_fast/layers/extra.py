"""Layers that later papers added to GANs, with equalized weights. Each is twice differentiable."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pggan_fast import ops
from pggan_fast.layers.pggan import EqualizedConv2d, EqualizedLinear

Layer = TypeVar("Layer", EqualizedConv2d, EqualizedLinear)


class SelfAttention2d(nn.Module):
    """`x + gamma * attention(x)`: each pixel sees all others (Zhang et al. 2019, section 3). [N, C, H, W] -> the same.

    Queries and keys have C / 8 channels, values C / 2, all by 1x1 convolutions; gamma starts at 0, so the layer starts
    as the identity. No matrix of all pairs of pixels is kept, or made at once: see `ops.attention`.
    """

    def __init__(self, channels: int):
        super().__init__()
        inner, values = max(1, channels // 8), max(1, channels // 2)
        self.query = EqualizedConv2d(channels, inner, 1, gain=1.0, bias=False)
        self.key = EqualizedConv2d(channels, inner, 1, gain=1.0, bias=False)
        self.value = EqualizedConv2d(channels, values, 1, gain=1.0, bias=False)
        self.output = EqualizedConv2d(values, channels, 1, gain=1.0, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (conv(x).flatten(2).transpose(1, 2) for conv in (self.query, self.key, self.value))
        # torch's fused attention has no second derivative, which a gradient penalty takes.
        attended = ops.attention(query, key, value).transpose(1, 2).unflatten(2, x.shape[2:])
        return x + (self.gamma * self.output(attended)).to(x.dtype)


class ResidualBlock(nn.Module):
    """`shortcut(x) + gamma * conv(conv(x))`, 3x3 convolutions with activation, gamma starting at 0.

    A block that is new in a growing network so starts as the plain rescaling of its input, and comes in by training.
    The shortcut is nearest upsampling or the 2x2 mean, and a 1x1 convolution where the channels change.

    x: [N, in, H, W] -> [N, out, H, W] (2H x 2W with up=2; H // 2 x W // 2 with down=2). fused_scale=False takes the
    2x2 mean after the activation, as `Discriminator` does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        up: int = 1,
        down: int = 1,
        act: str = "lrelu",
        slope: float = 0.2,
        pixel_norm: bool = False,
        eps: float = 1e-8,
        fused_scale: bool = True,
    ):
        super().__init__()
        middle = in_channels if down == 2 else out_channels
        layer = dict(act=act, slope=slope, pixel_norm=pixel_norm, eps=eps)
        self.first = EqualizedConv2d(in_channels, middle, 3, up=up, **layer)
        self.second = EqualizedConv2d(middle, out_channels, 3, down=down if fused_scale else 1, **layer)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = EqualizedConv2d(in_channels, out_channels, 1, gain=1.0, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.up, self.down, self.fused_scale = up, down, fused_scale

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        if self.down == 2 and not self.fused_scale:
            y = ops.downsample2x(y)
        # At the smaller size: a 1x1 convolution commutes with both rescalings.
        x = ops.downsample2x(x) if self.down == 2 else x
        x = x if self.shortcut is None else self.shortcut(x)
        x = ops.upsample2x(x) if self.up == 2 else x
        return x + (self.gamma * y).to(x.dtype)


class MinibatchDiscrimination(nn.Module):
    """How near each sample is to the others of its batch, appended (Salimans et al. 2016, section 3.2).

    x: [N, in] -> [N, in + kernels]. Each kernel projects x to `kernel_dim` numbers and appends the sum over the other
    samples of exp(-L1 distance of the projections), in fp32 whatever x is.
    """

    def __init__(self, in_features: int, kernels: int = 32, kernel_dim: int = 4):
        super().__init__()
        self.kernels, self.kernel_dim = kernels, kernel_dim
        self.project = EqualizedLinear(in_features, kernels * kernel_dim, gain=1.0, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        projected = self.project(x)
        projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
        projected = projected.unflatten(1, (self.kernels, self.kernel_dim))
        distances = (projected.unsqueeze(0) - projected.unsqueeze(1)).abs().sum(dim=3)
        nearness = distances.neg().exp().sum(dim=0) - 1  # without the sample itself, at distance 0
        return torch.cat([x, nearness.to(x.dtype)], dim=1)

    def extra_repr(self) -> str:
        return f"kernels={self.kernels}, kernel_dim={self.kernel_dim}"


def spectral_norm(layer: Layer) -> Layer:
    """Make the layer's weight divide by its largest singular value at run time (Miyato et al. 2018), in place.

    The singular value is torch's estimate: one power iteration per forward in training mode. The constant of the
    equalized learning rate would undo the bound, and is taken away.
    """
    parametrizations.spectral_norm(layer)
    layer.weight_scale = 1.0
    return layer


@torch.no_grad()
def unscale_weights(network: nn.Module) -> None:
    """Give every equalized convolution and dense layer its constant by initialization, not at run time.

    It is the official use_wscale=False: weights start as N(0, gain^2 / fan_in) and are used as they are.
    """
    for layer in [m for m in network.modules() if isinstance(m, (EqualizedConv2d, EqualizedLinear))]:
        layer.weight.mul_(layer.weight_scale)
        layer.weight_scale = 1.0


def normalize_spectra(network: nn.Module) -> None:
    """Put `spectral_norm` on every equalized convolution and dense layer."""
    for layer in [m for m in network.modules() if isinstance(m, (EqualizedConv2d, EqualizedLinear))]:
        spectral_norm(layer)
