"""The baseline: progressive GANs in plain PyTorch, written the way people write them.

This file imports nothing of pggan_fast and no optimisation of pggan_fast touches it. It is what a good
engineer writes without custom kernels, in the manner of the published PyTorch ports, and computes the
very functions that pggan_fast computes, so that each timing compares equal work. Parameters carry the
names of pggan_fast's networks, so a state dict of those loads here with `strict=True`.

A discriminator block ends in `leaky_relu(avg_pool2d(conv(x) + bias))`: the official default
(`fused_scale=True`), where the activation follows the pooling. The bias commutes with the mean, so it
stays inside the convolution, which adds it for free.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pixel_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def bias_act(x: Tensor, bias: Tensor) -> Tensor:
    """x [N, C, H, W], bias [C]."""
    return F.leaky_relu(x + bias.view(1, -1, 1, 1), 0.2)


def bias_act_pixel_norm(x: Tensor, bias: Tensor) -> Tensor:
    return pixel_norm(bias_act(x, bias))


def fade_in(low: Tensor, high: Tensor, alpha: float) -> Tensor:
    """low [N, C, H/2, W/2], high [N, C, H, W]."""
    return torch.lerp(F.interpolate(low, scale_factor=2, mode="nearest"), high, alpha)


def fade_reals(images: Tensor, alpha: float, dtype: torch.dtype) -> Tensor:
    """images [N, C, H, W], uint8 0..255 or float -1..1."""
    x = images.to(dtype) / 127.5 - 1 if images.dtype == torch.uint8 else images
    coarse = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="nearest")
    return torch.lerp(coarse, x, alpha)


def minibatch_stddev(x: Tensor, group_size: int = 4) -> Tensor:
    n, c, h, w = x.shape
    group_size = min(group_size, n)
    y = x.view(group_size, -1, c, h, w)
    y = y - y.mean(dim=0, keepdim=True)
    std = torch.sqrt(y.square().mean(dim=0) + 1e-8)  # y.var(dim=0) takes several times as long
    std = std.mean(dim=(1, 2, 3), keepdim=True).repeat(group_size, 1, h, w)
    return torch.cat([x, std], dim=1)


def conv2d_up(x: Tensor, weight: Tensor, bias: Tensor, scale: float) -> Tensor:
    x = F.interpolate(x, scale_factor=2, mode="nearest")
    return F.conv2d(x, weight * scale, bias, padding=weight.shape[-1] // 2)


def conv2d_down(x: Tensor, weight: Tensor, bias: Tensor, scale: float) -> Tensor:
    return F.avg_pool2d(F.conv2d(x, weight * scale, bias, padding=weight.shape[-1] // 2), 2)


class EqualizedConv2d(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, gain: float = 2**0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.scale = gain / math.sqrt(in_channels * kernel_size**2)
        self.padding = kernel_size // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class EqualizedLinear(nn.Module):
    def __init__(self, in_features: int, out_features: int, gain: float = 2**0.5, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.scale = gain / math.sqrt(in_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias)


def channels(resolution: int, fmap_base: int, fmap_max: int) -> int:
    """Feature maps of the layers at a resolution (paper, table 2)."""
    return min(fmap_base * 2 // resolution, fmap_max)


def resolutions(top: int) -> list[int]:
    return [2**r for r in range(2, int(math.log2(top)) + 1)]


class FirstBlock(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        self.conv = EqualizedConv2d(features, features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return pixel_norm(F.leaky_relu(self.conv(x), 0.2))


class UpBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.up = EqualizedConv2d(in_channels, out_channels, 3)
        self.conv = EqualizedConv2d(out_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = pixel_norm(F.leaky_relu(self.up(x), 0.2))
        return pixel_norm(F.leaky_relu(self.conv(x), 0.2))


class Generator(nn.Module):
    """z [N, latent] -> images [N, image_channels, resolution, resolution]; alpha weighs the new block."""

    def __init__(self, resolution: int, image_channels: int = 3, fmap_base: int = 8192, fmap_max: int = 512):
        super().__init__()
        width = {r: channels(r, fmap_base, fmap_max) for r in resolutions(resolution)}
        latent = min(fmap_base, fmap_max)
        self.resolution, self.latent_dim = resolution, latent
        self.input = EqualizedLinear(latent, width[4] * 16, gain=2**0.5 / 4, bias=False)
        self.input_bias = nn.Parameter(torch.zeros(width[4]))
        self.blocks = nn.ModuleDict({"4": FirstBlock(width[4])})
        for r in resolutions(resolution)[1:]:
            self.blocks[str(r)] = UpBlock(width[r // 2], width[r])
        self.to_rgb = nn.ModuleDict({str(r): EqualizedConv2d(c, image_channels, 1, gain=1) for r, c in width.items()})

    def forward(self, z: Tensor, alpha: float = 1.0) -> Tensor:
        x = self.input(pixel_norm(z)).view(len(z), -1, 4, 4)
        x = pixel_norm(bias_act(x, self.input_bias))
        for block in self.blocks.values():
            previous, x = x, block(x)
        rgb = self.to_rgb[str(self.resolution)](x)
        if alpha == 1:
            return rgb
        return fade_in(self.to_rgb[str(self.resolution // 2)](previous), rgb, alpha)


class DownBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = EqualizedConv2d(in_channels, in_channels, 3)
        self.down = EqualizedConv2d(in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv(x), 0.2)
        return F.leaky_relu(F.avg_pool2d(self.down(x), 2), 0.2)


class Head(nn.Module):
    def __init__(self, features: int, hidden: int):
        super().__init__()
        self.conv = EqualizedConv2d(features + 1, features, 3)
        self.dense = EqualizedLinear(features * 16, hidden)
        self.output = EqualizedLinear(hidden, 1, gain=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv(minibatch_stddev(x)), 0.2)
        x = F.leaky_relu(self.dense(x.flatten(1)), 0.2)
        return self.output(x).squeeze(1)


class Discriminator(nn.Module):
    """images [N, image_channels, resolution, resolution] -> scores [N]; alpha weighs the new block."""

    def __init__(self, resolution: int, image_channels: int = 3, fmap_base: int = 8192, fmap_max: int = 512):
        super().__init__()
        width = {r: channels(r, fmap_base, fmap_max) for r in resolutions(resolution)}
        self.resolution = resolution
        self.from_rgb = nn.ModuleDict({str(r): EqualizedConv2d(image_channels, c, 1) for r, c in width.items()})
        self.blocks = nn.ModuleDict({str(r): DownBlock(c, width[r // 2]) for r, c in width.items() if r > 4})
        self.head = Head(width[4], min(fmap_base, fmap_max))

    def embed(self, images: Tensor, resolution: int) -> Tensor:
        return F.leaky_relu(self.from_rgb[str(resolution)](images), 0.2)

    def forward(self, images: Tensor, alpha: float = 1.0) -> Tensor:
        x = self.embed(images, self.resolution)
        for r in reversed(resolutions(self.resolution)[1:]):
            x = self.blocks[str(r)](x)
            if r == self.resolution and alpha < 1:
                x = torch.lerp(self.embed(F.avg_pool2d(images, 2), r // 2), x, alpha)
        return self.head(x)


class TrainStep:
    """One iteration of WGAN-GP with drift: a step of D, the moving average of G, a step of G.

    As in the published ports, D's parameters keep requiring gradients during G's step. `autocast` is
    None for fp32, or torch.bfloat16. `compiled` runs both networks by torch.compile except where D's gradient is
    differentiated again, which it refuses.
    """

    def __init__(self, G: Generator, D: Discriminator, autocast: torch.dtype | None = None, *, compiled: bool = False):
        self.penalized_D, self.G_ema = D, copy.deepcopy(G).requires_grad_(False)
        self.G, self.D = (torch.compile(network) if compiled else network for network in (G, D))
        self.optimizer_G = torch.optim.Adam(G.parameters(), lr=1e-3, betas=(0.0, 0.99), eps=1e-8)
        self.optimizer_D = torch.optim.Adam(D.parameters(), lr=1e-3, betas=(0.0, 0.99), eps=1e-8)
        self.autocast = autocast
        self.device = next(G.parameters()).device

    def cast(self) -> torch.autocast:
        enabled = self.autocast is not None
        return torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=enabled)

    def gradient_penalty(self, real: Tensor, fake: Tensor, alpha: float) -> Tensor:
        mix = torch.rand(len(real), 1, 1, 1, device=self.device)
        mixed = torch.lerp(real, fake, mix).requires_grad_(True)
        with self.cast():
            scores = self.penalized_D(mixed, alpha)
        (gradient,) = torch.autograd.grad(scores.sum(), mixed, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    def __call__(self, real: Tensor, alpha: float = 1.0) -> dict[str, Tensor]:
        """real [N, C, R, R] fp32 in -1..1, already faded and mirrored."""
        z = torch.randn(len(real), self.G.latent_dim, device=self.device)
        with torch.no_grad(), self.cast():
            fake = self.G(z, alpha)
        fake = fake.float()
        with self.cast():
            real_scores = self.D(real, alpha).float()
            fake_scores = self.D(fake, alpha).float()
        penalty = self.gradient_penalty(real, fake, alpha)
        d_loss = fake_scores.mean() - real_scores.mean() + 10 * penalty
        d_loss = d_loss + 0.001 * real_scores.square().mean()
        self.optimizer_D.zero_grad()
        d_loss.backward()
        self.optimizer_D.step()

        with torch.no_grad():
            for averaged, current in zip(self.G_ema.parameters(), self.G.parameters(), strict=True):
                averaged.lerp_(current, 1 - 0.999)

        z = torch.randn(len(real), self.G.latent_dim, device=self.device)
        with self.cast():
            g_loss = -self.D(self.G(z, alpha), alpha).float().mean()
        self.optimizer_G.zero_grad()
        g_loss.backward()
        self.optimizer_G.step()
        return {"d_loss": d_loss.detach(), "g_loss": g_loss.detach()}
