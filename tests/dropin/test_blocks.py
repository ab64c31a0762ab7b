"""Blocks as other people's GANs are built of them, written from the papers: what is put in, and what comes out."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pggan_fast import accelerate, explain
from tests.dropin.helpers import EXACT, always_fuse, assert_same, results
from tests.dropin.model_zoo import fill

X = torch.randn(4, 8, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Written(nn.Module):
    """A convolution and a function of its output, the convolution and a second parameter [8]."""

    def __init__(self, function: Callable, **conv):
        super().__init__()
        self.conv, self.function = nn.Conv2d(8, 8, 3, padding=1, **conv), function
        self.other = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Normed(nn.Module):
    """BigGAN's convolution: its spectral norm by one step of the power iteration, written out."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 8, 3, 3)), nn.Parameter(torch.zeros(8))
        self.register_buffer("u", torch.randn(1, 8))

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight.view(8, -1)
        with torch.no_grad():
            v = F.normalize(self.u @ w)
            u = F.normalize(v @ w.t())
            if self.training:
                self.u[:] = u
        return F.conv2d(x, self.weight / (v @ w.t() @ u.t()).squeeze(), self.bias, padding=1)


class Conditional(nn.Module):
    """BigGAN's generator block: batch norm with a gain and a bias of each sample, ReLU, up, convolution."""

    def __init__(self):
        super().__init__()
        self.gain, self.bias, self.conv = nn.Linear(8, 8), nn.Linear(8, 8), Normed()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3))
        h = F.batch_norm(x, self.mean, self.var, None, None, self.training, 0.1, 1e-4)
        h = F.relu(h * (1 + self.gain(y)).view(4, -1, 1, 1) + self.bias(y).view(4, -1, 1, 1))
        return self.conv(F.interpolate(h, scale_factor=2))


def equalized_by_a_hook() -> nn.Module:
    """A pre-hook sets the weight anew at each call, as of StyleGAN's ports."""
    conv = nn.Conv2d(8, 8, 3, padding=1)
    conv.weight_orig = nn.Parameter(conv.weight.data)
    del conv._parameters["weight"]
    conv.register_forward_pre_hook(lambda module, _: setattr(module, "weight", module.weight_orig * 0.3))
    return nn.Sequential(nn.Upsample(scale_factor=2), conv, nn.LeakyReLU(0.2))


def pool(m: Written, x: Tensor) -> Tensor:
    return F.leaky_relu(F.interpolate(m.conv(x), scale_factor=0.5, mode="bilinear", align_corners=False), 0.2)


def adain(m: Written, x: Tensor) -> Tensor:
    y = F.leaky_relu(m.conv(x) + m.other.view(1, -1, 1, 1), 0.2)
    mean, std = y.mean((2, 3), keepdim=True), (y.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    return (y - mean) / std * m.other.view(1, -1, 1, 1)


def deviation(function: Callable[[Tensor], Tensor]) -> Callable[[Written, Tensor], Tensor]:
    return lambda m, x: torch.cat([x, function(x)], 1)


def filled(x: Tensor) -> Tensor:
    std = torch.sqrt(((x - x.mean(0, keepdim=True)) ** 2).mean(0, keepdim=True) + 1e-8)
    return std.mean().view(1, 1, 1, 1).expand(x.shape[0], 1, *x.shape[2:])


def chunked(x: Tensor) -> Tensor:
    y = x.view(2, -1, 1, *x.shape[1:])
    y = torch.sqrt(y.var(0, unbiased=False) + 1e-8)
    return y.mean([2, 3, 4], keepdim=True).squeeze(2).repeat(2, 1, *x.shape[2:])


def unpooled(m: Written, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    up = x.view(n, c, h, 1, w, 1).expand(n, c, h, 2, w, 2).contiguous().view(n, c, 2 * h, 2 * w)
    return m.conv(up)


def repeated(m: Written, x: Tensor) -> Tensor:
    return m.conv(x.repeat_interleave(2, 2).repeat_interleave(2, dim=3))


def residual(m: Written, x: Tensor) -> Tensor:
    return F.avg_pool2d(m.conv(F.relu(x)), 2) + F.avg_pool2d(x, 2)


def reflected(m: Written, x: Tensor) -> Tensor:
    y = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), m.conv.weight, m.conv.bias)
    return F.relu(F.instance_norm(y))


def fused_lrelu(m: Written, x: Tensor) -> Tensor:
    return (F.leaky_relu(m.conv(x) + m.other[None, :, None, None], 0.2) * 2**0.5).clamp(-0.7, 0.7)


CASES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "BigGAN's block": (Conditional, "nearest upsampling + conv"),
    "equalized by a pre-hook": (equalized_by_a_hook, "nearest upsampling + equalized conv + lrelu"),
    "mean by bilinear halving": (lambda: Written(pool), "conv + 2x2 mean + lrelu"),
    "bias and AdaIN": (lambda: Written(adain, bias=False), "conv + bias + lrelu"),
    "deviation, filled": (lambda: Written(deviation(filled)), "minibatch stddev"),
    "deviation, repeated": (lambda: Written(deviation(chunked)), "minibatch stddev"),
    "upsampling by a view": (lambda: Written(unpooled), "nearest upsampling + conv"),
    "upsampling by repetition": (lambda: Written(repeated), "nearest upsampling + conv"),
    "residual mean": (lambda: Written(residual), "conv + 2x2 mean"),
    "reflection, instance norm, ReLU": (lambda: Written(reflected), "instance norm"),
    "gain and clamp": (lambda: Written(fused_lrelu, bias=False), "conv + bias + lrelu + gain"),
}
NORMED = {
    "instance norm, leaving": lambda: nn.Sequential(nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8), nn.LeakyReLU(0.2)),
    "instance norm alone": lambda: nn.Sequential(nn.InstanceNorm2d(8), nn.Conv2d(8, 8, 1)),
}
CASES |= {name: (make, "instance norm") for name, make in NORMED.items()}
PIXEL_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "keepdim": lambda x: x * torch.rsqrt(torch.mean(x * x, dim=1, keepdim=True) + 1e-8),
    "unsqueezed": lambda x: x / torch.sqrt(x.pow(2).mean(1) + 1e-8).unsqueeze(1),
    "indexed": lambda x: x * (x.square().mean(1) + 1e-8).rsqrt()[:, None],
    "summed": lambda x: x / ((x**2).sum(1, keepdim=True) / x.shape[1] + 1e-8).sqrt(),
    "reciprocal": lambda x: x * (1.0 / torch.sqrt(torch.mean(x**2, 1, keepdim=True) + 1e-8)),
}


@pytest.fixture(autouse=True)
def no_thresholds(monkeypatch):
    always_fuse(monkeypatch)


def check(model: nn.Module, expected: str) -> None:
    model = fill(model.double())
    fast = accelerate(copy.deepcopy(model), inplace=True)
    for _ in range(2):
        assert_same(results(fast, (X,)), results(model, (X,)), EXACT)
    assert_same(fast.state_dict(), model.state_dict(), EXACT)
    what = [row.what for row in explain(fast).replaced]
    assert any(expected in row for row in what) if expected else not what


@pytest.mark.parametrize("name", CASES)
def test_blocks(name):
    torch.manual_seed(0)
    make, expected = CASES[name]
    check(make(), expected)


@pytest.mark.parametrize("options", [{"track_running_stats": True}, {"affine": True}], ids=str)
def test_running_statistics_and_weights_are_left_to_instance_norm(options):
    check(nn.Sequential(nn.InstanceNorm2d(8, **options), nn.LeakyReLU(0.2, True), nn.Conv2d(8, 8, 1)), "")


@pytest.mark.parametrize("name", PIXEL_NORMS)
def test_pixel_norms(name):
    check(nn.Sequential(nn.Conv2d(8, 8, 1), Written(lambda m, x: PIXEL_NORMS[name](x))), "pixel norm")
