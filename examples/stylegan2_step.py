"""Train a network shaped like StyleGAN2's with R1 and path length, by the plain formulas and with the fused ops.

python examples/stylegan2_step.py [RESOLUTION [BATCH [ROUNDS]]]
"""

import math
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pggan_fast
from pggan_fast import Blur, EqualizedConv2d, EqualizedLinear, FusedLeakyReLU, ModulatedConv2d, StyledConv2d

LATENT_DIM = 128


def channels(resolution: int) -> int:
    return min(128, 4096 // resolution)


class Generator(nn.Module):
    """Styled convolutions, and images that each resolution adds to (Karras et al. 2020, figure 7, b)."""

    def __init__(self, resolution: int):
        super().__init__()
        self.mapping = nn.Sequential(*(EqualizedLinear(LATENT_DIM, LATENT_DIM, act="lrelu") for _ in range(4)))
        self.constant = nn.Parameter(torch.randn(1, channels(4), 4, 4))
        self.first = StyledConv2d(channels(4), channels(4), 3, LATENT_DIM)
        self.first_rgb = ModulatedConv2d(channels(4), 3, 1, LATENT_DIM, demodulate=False)
        self.blocks = nn.ModuleList()
        for size in (2**i for i in range(3, int(math.log2(resolution)) + 1)):
            before, here = channels(size // 2), channels(size)
            up, same = StyledConv2d(before, here, 3, LATENT_DIM, up=2), StyledConv2d(here, here, 3, LATENT_DIM)
            to_rgb = ModulatedConv2d(here, 3, 1, LATENT_DIM, demodulate=False)
            self.blocks.append(nn.ModuleList([up, same, to_rgb]))
        self.upsample = Blur(up=2)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        w = self.mapping(pggan_fast.pixel_norm(z))
        x = self.first(self.constant.expand(len(z), -1, -1, -1), w)
        images = self.first_rgb(x, w)
        for up, same, to_rgb in self.blocks:
            x = same(up(x, w), w)
            images = self.upsample(images) + to_rgb(x, w)
        return images, w


class DownBlock(nn.Module):
    """A residual block: the filter comes before each convolution with stride 2."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.first = EqualizedConv2d(before, before, 3, act="lrelu", gain=2**0.5, bias=True)
        self.blur, self.shrink = Blur(), Blur(down=2)
        self.second = nn.Parameter(torch.randn(after, before, 3, 3))
        self.shortcut = nn.Parameter(torch.randn(after, before, 1, 1))
        self.activate = FusedLeakyReLU(after)

    def forward(self, x: Tensor) -> Tensor:
        y, f = self.first(x), self.blur.kernel
        second, shortcut = (weight / weight[0].numel() ** 0.5 for weight in (self.second, self.shortcut))
        y = pggan_fast.conv2d_resample(y, second, f, down=2, padding=1)
        return (self.activate(y) + pggan_fast.conv2d_resample(x, shortcut, f, down=2)) / 2**0.5


class Discriminator(nn.Module):
    """Residual blocks, the batch's deviation, a dense layer (figure 7, c)."""

    def __init__(self, resolution: int):
        super().__init__()
        sizes = [2**i for i in range(int(math.log2(resolution)), 2, -1)]
        blocks = [DownBlock(channels(size), channels(size // 2)) for size in sizes]
        from_rgb = EqualizedConv2d(3, channels(resolution), 1, act="lrelu")
        self.body = nn.Sequential(from_rgb, *blocks, pggan_fast.MinibatchStdDev())
        self.last = EqualizedConv2d(channels(4) + 1, channels(4), 3, act="lrelu")
        self.score = EqualizedLinear(channels(4) * 16, 1, gain=1.0)

    def forward(self, images: Tensor) -> Tensor:
        return self.score(self.last(self.body(images)).flatten(1))[:, 0]


def d_loss(G: nn.Module, D: nn.Module, z: Tensor, reals: Tensor, gamma: float = 10.0) -> Tensor:
    """Logistic loss with R1: the squared gradient of D at real images."""
    with torch.no_grad():
        fakes, _ = G(z)
    reals = reals.detach().requires_grad_()
    scores = D(reals)
    (gradient,) = torch.autograd.grad(scores.sum(), reals, create_graph=True)
    penalty = gradient.square().sum((1, 2, 3)).mean() * gamma / 2
    return F.softplus(-scores).mean() + F.softplus(D(fakes)).mean() + penalty


def g_loss(G: nn.Module, D: nn.Module, z: Tensor, mean_length: Tensor, weight: float = 2.0) -> Tensor:
    """Non-saturating loss with path length regularization: how far an image moves as w does should stay constant."""
    images, w = G(z)
    noise = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * noise).sum(), w, create_graph=True)
    lengths = gradient.square().sum(1).sqrt()
    mean_length.lerp_(lengths.mean().detach(), 0.01)
    return F.softplus(-D(images)).mean() + weight * (lengths - mean_length).square().mean()


class Training:
    """Two networks and their optimizers, always with the same first weights."""

    def __init__(self, resolution: int):
        torch.manual_seed(0)
        self.G, self.D = Generator(resolution), Discriminator(resolution)
        self.optimizers = [torch.optim.Adam(m.parameters(), lr=2e-3, betas=(0.0, 0.99)) for m in (self.G, self.D)]
        self.mean_length = torch.zeros(())

    def step(self, z: Tensor, reals: Tensor, seed: int) -> tuple[float, float]:
        torch.manual_seed(seed)  # of the noise
        g_optimizer, d_optimizer = self.optimizers
        losses = []
        for optimizer, loss in (
            (d_optimizer, lambda: d_loss(self.G, self.D, z, reals)),
            (g_optimizer, lambda: g_loss(self.G, self.D, z, self.mean_length)),
        ):
            optimizer.zero_grad()
            value = loss()
            value.backward(inputs=optimizer.param_groups[0]["params"])
            optimizer.step()
            losses.append(value.item())
        return tuple(losses)


def main(resolution: int = 64, batch: int = 4, rounds: int = 3) -> float:
    """Print the losses and the times of interleaved steps; returns by how much the losses differ, relatively."""
    ways = {"before": (Training(resolution), "reference"), "after": (Training(resolution), "auto")}
    times: dict[str, list[float]] = {way: [] for way in ways}
    difference = 0.0
    for i in range(rounds + 1):  # the first warms up
        z, reals = torch.randn(batch, LATENT_DIM), torch.randn(batch, 3, resolution, resolution)
        losses = {}
        for way, (training, impl) in ways.items():
            begin = time.perf_counter()
            with pggan_fast.use_impl(impl):
                losses[way] = training.step(z, reals, seed=i)
            times[way].append(time.perf_counter() - begin)
        if i == 0:
            # Later steps start from weights that Adam has moved by a learning rate for any gradient, however small.
            pairs = zip(*losses.values(), strict=True)
            difference = max(abs(before - after) / abs(before) for before, after in pairs)
            print(f"losses of D and G: {losses}")
    before, after = (sorted(samples[1:])[rounds // 2] for samples in times.values())
    print(f"before {before * 1e3:.0f} ms, after {after * 1e3:.0f} ms a step: {before / after:.2f} times as fast")
    return difference


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
