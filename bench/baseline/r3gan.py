"""R3GAN in plain PyTorch (Huang et al. 2024, arXiv 2501.05441): networks and the step's losses, as people write them.

This file imports nothing of pggan_fast. Parameters carry the names of pggan_fast's networks, so a state dict of those
loads here with `strict=True`. `widths` are the channels from 4 px on, `groups` the groups of the 3x3 convolutions.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64
GAIN = math.sqrt(2 / (1 + 0.2**2))


def upsample(x: Tensor) -> Tensor:
    """Bilinear, zeros beyond the border: [N, C, H, W] -> [N, C, 2H, 2W]."""
    kernel = (4 * KERNEL).to(x).expand(x.shape[1], 1, 4, 4)
    return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


def downsample(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, H / 2, W / 2]."""
    kernel = KERNEL.to(x).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


class Layer(nn.Module):
    """A convolution, with bias and leaky ReLU if `active`."""

    def __init__(self, inputs: int, outputs: int, size: int = 1, groups: int = 1, gain: float = 1.0, active=False):
        super().__init__()
        scale = gain / math.sqrt(inputs // groups * size**2)
        self.weight = nn.Parameter(torch.randn(outputs, inputs // groups, size, size) * scale)
        self.bias = nn.Parameter(torch.zeros(outputs)) if active else None
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2, groups=self.groups)
        return y if self.bias is None else F.leaky_relu(y, 0.2)


class Dense(nn.Module):
    def __init__(self, inputs: int, outputs: int, gain: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * (gain / math.sqrt(inputs)))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, groups: int, total: int):
        super().__init__()
        gain = GAIN * total ** (-1 / 4)
        self.first = Layer(width, hidden, gain=gain, active=True)
        self.grouped = Layer(hidden, hidden, 3, groups, gain=gain, active=True)
        self.last = Layer(hidden, width, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.grouped(self.first(x)))


class Resample(nn.Module):
    def __init__(self, inputs: int, outputs: int, up: bool):
        super().__init__()
        self.conv = Layer(inputs, outputs) if inputs != outputs else None
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.up else downsample(x)
        x = x if self.conv is None else self.conv(x)
        return upsample(x) if self.up else x


class Maps(nn.Module):
    """The ends at 4 px: [N, in] -> [N, out, 4, 4], or back with `to_vector`."""

    def __init__(self, inputs: int, outputs: int, to_vector: bool):
        super().__init__()
        self.maps = nn.Parameter(torch.randn(inputs if to_vector else outputs, 4, 4) / (4 if to_vector else 1))
        self.project = Dense(inputs, outputs)
        self.to_vector = to_vector

    def forward(self, x: Tensor) -> Tensor:
        if self.to_vector:
            return self.project((x * self.maps).sum(dim=(2, 3)))
        return self.project(x)[:, :, None, None] * self.maps


class Generator(nn.Module):
    def __init__(self, widths: list[int], groups: list[int], *, blocks=2, expansion=2, latent_dim=64, label_dim=0):
        super().__init__()
        self.embed_labels = Dense(label_dim, latent_dim) if label_dim else None
        self.input = Maps(latent_dim * (2 if label_dim else 1), widths[0], to_vector=False)
        self.stages = nn.ModuleDict()
        for i, (width, count) in enumerate(zip(widths, groups, strict=True)):
            up = [Resample(widths[i - 1], width, up=True)] if i else []
            body = [Block(width, width * expansion, count, blocks * len(widths)) for _ in range(blocks)]
            self.stages[str(4 * 2**i)] = nn.Sequential(*up, *body)
        self.output = Layer(widths[-1], 3)
        self.latent_dim = latent_dim

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """labels: one-hot [N, label_dim]."""
        x = self.input(z if labels is None else torch.cat([z, self.embed_labels(labels)], dim=1))
        for stage in self.stages.values():
            x = stage(x)
        return self.output(x)


class Discriminator(nn.Module):
    def __init__(self, widths: list[int], groups: list[int], *, blocks=2, expansion=2, label_dim=0):
        super().__init__()
        self.input = Layer(3, widths[-1])
        self.stages = nn.ModuleDict()
        for i in reversed(range(len(widths))):
            body = [Block(widths[i], widths[i] * expansion, groups[i], blocks * len(widths)) for _ in range(blocks)]
            down = [Resample(widths[i], widths[i - 1], up=False)] if i else []
            self.stages[str(4 * 2**i)] = nn.Sequential(*body, *down)
        features = widths[0] if label_dim else 1
        self.output = Maps(widths[0], features, to_vector=True)
        self.embed_labels = Dense(label_dim, features, gain=features**-0.5) if label_dim else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.input(images)
        for stage in self.stages.values():
            x = stage(x)
        scores = self.output(x)
        return scores[:, 0] if labels is None else (scores * self.embed_labels(labels)).sum(dim=1)


def zero_centered_penalty(scores: Tensor, images: Tensor) -> Tensor:
    """mean(|gradient of the scores in the images|^2) / 2: R1 at reals, R2 at fakes."""
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / 2


def d_loss(D: Discriminator, real: Tensor, fake: Tensor, labels: Tensor | None, gamma: float) -> Tensor:
    """The relativistic pairing loss of D with `gamma` times R1 and R2, which share the loss's passes through D."""
    real, fake = (images.detach().requires_grad_(gamma > 0) for images in (real, fake))
    real_scores, fake_scores = D(real, labels), D(fake, labels)
    loss = F.softplus(fake_scores - real_scores).mean()
    if gamma:
        loss = loss + gamma * (zero_centered_penalty(real_scores, real) + zero_centered_penalty(fake_scores, fake))
    return loss


def g_loss(D: Discriminator, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
    return F.softplus(D(real, labels) - D(fake, labels)).mean()
