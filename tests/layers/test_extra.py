"""Attention, residual blocks, minibatch discrimination and spectral norm against torch's own functions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from pggan_fast import EqualizedConv2d, EqualizedLinear, MinibatchDiscrimination, ResidualBlock, SelfAttention2d
from pggan_fast.layers import spectral_norm
from tests.tolerances import EXACT, GRADCHECK

DOUBLE = dict(dtype=torch.float64)


def _filled(layer: nn.Module) -> nn.Module:
    """In fp64, with nothing at 0."""
    random = torch.Generator().manual_seed(1)
    layer = layer.double()
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=random, **DOUBLE))
    return layer


def _images(n: int = 2, channels: int = 8, height: int = 4, width: int = 6) -> torch.Tensor:
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(0), **DOUBLE)


RESIDUALS = {
    "same": (8, 8, {}),
    "widening": (8, 5, {}),
    "up": (8, 8, dict(up=2, pixel_norm=True)),
    "up, narrowing": (8, 3, dict(up=2, pixel_norm=True)),
    "down": (8, 8, dict(down=2)),
    "down, unfused": (8, 3, dict(down=2, fused_scale=False)),
}


@pytest.fixture(params=RESIDUALS)
def residual(request):
    in_channels, out_channels, options = RESIDUALS[request.param]
    return ResidualBlock(in_channels, out_channels, **options), options


# What they compute


def test_attention():
    layer, x = _filled(SelfAttention2d(16)), _images(channels=16)

    def project(conv, x):
        weight = conv.weight.flatten(1) / conv.weight.shape[1] ** 0.5
        return torch.einsum("oc,nchw->nhwo", weight, x).flatten(1, 2)

    attended = F.scaled_dot_product_attention(*(project(conv, x) for conv in (layer.query, layer.key, layer.value)))
    output = attended @ (layer.output.weight.flatten(1) / 8**0.5).T
    expected = x + layer.gamma * output.transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(layer(x), expected, **EXACT)


def test_residual(residual):
    block, options = residual
    block, x = _filled(block), _images()
    up, down = options.get("up", 1), options.get("down", 1)

    def act(y):
        y = F.leaky_relu(y, 0.2)
        return y / (y.square().mean(1, keepdim=True) + 1e-8).sqrt() if options.get("pixel_norm") else y

    def conv(layer, x):
        weight = layer.weight * layer.weight_scale
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def bias(layer):
        return layer.bias.view(1, -1, 1, 1)

    enlarged = F.interpolate(x, scale_factor=2.0, mode="nearest") if up == 2 else x
    y = act(conv(block.first, enlarged) + bias(block.first))
    if down == 2 and options.get("fused_scale", True):
        y = act(F.avg_pool2d(conv(block.second, y), 2) + bias(block.second))
    else:
        y = act(conv(block.second, y) + bias(block.second))
        y = F.avg_pool2d(y, 2) if down == 2 else y
    shortcut = enlarged if block.shortcut is None else conv(block.shortcut, enlarged)
    shortcut = F.avg_pool2d(shortcut, 2) if down == 2 else shortcut
    torch.testing.assert_close(block(x), shortcut + block.gamma * y, **EXACT)


def test_minibatch_discrimination():
    layer = _filled(MinibatchDiscrimination(6, kernels=3, kernel_dim=2))
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), **DOUBLE)
    projected = (x @ layer.project.weight.T / 6**0.5).reshape(4, 3, 2)
    y = layer(x)
    assert torch.equal(y[:, :6], x)
    for i in range(4):
        for kernel in range(3):
            others = [j for j in range(4) if j != i]
            near = sum(torch.exp(-(projected[i, kernel] - projected[j, kernel]).abs().sum()) for j in others)
            torch.testing.assert_close(y[i, 6 + kernel], near, **EXACT)


@pytest.mark.parametrize("make", [lambda: EqualizedConv2d(5, 7, 3), lambda: EqualizedLinear(6, 4)])
def test_spectral_norm_is_torchs(make):
    """The same weight and the same first guess give torch's own layer, step by step."""
    torch.manual_seed(0)
    layer = _filled(make())
    weight = layer.weight.detach().clone()
    theirs = nn.Conv2d(5, 7, 3, padding=1) if weight.ndim == 4 else nn.Linear(6, 4)
    theirs.weight.data, theirs.bias.data = weight, layer.bias.detach().clone()
    torch.manual_seed(1)
    spectral_norm(layer)
    torch.manual_seed(1)
    parametrizations.spectral_norm(theirs)
    x = _images(channels=5) if weight.ndim == 4 else _images()[:, 0, 0]
    for _ in range(3):
        torch.testing.assert_close(layer(x), theirs(x), **EXACT)
    for _ in range(200):
        layer(x)
    # The estimate converges by the square of the ratio of the two largest singular values per forward.
    assert torch.linalg.svdvals(layer.weight.detach().flatten(1))[0] == pytest.approx(1, abs=1e-6)


# How they start


def test_attention_starts_as_the_identity():
    x = _images().float()
    assert torch.equal(SelfAttention2d(8)(x), x)


def test_residual_blocks_start_as_rescaling():
    x = _images().float()
    assert torch.equal(ResidualBlock(8, 8)(x), x)
    assert torch.equal(ResidualBlock(8, 8, up=2)(x), F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(ResidualBlock(8, 8, down=2)(x), F.avg_pool2d(x, 2))


def test_what_starts_at_zero_learns():
    """The first step moves gamma, the second all else."""
    torch.manual_seed(0)
    for layer in (SelfAttention2d(8), ResidualBlock(8, 4, up=2)):
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        for _ in range(2):
            before = [p.detach().clone() for p in layer.parameters()]
            optimizer.zero_grad()
            (layer(_images().float()) - 1).square().mean().backward()
            optimizer.step()
        assert all(not torch.equal(p, b) for p, b in zip(layer.parameters(), before, strict=True))


# Gradients

LAYERS = {
    "attention": lambda: (SelfAttention2d(4), _images(2, 4, 2, 3)),
    "residual up": lambda: (ResidualBlock(3, 2, up=2, pixel_norm=True), _images(2, 3, 2, 3)),
    "residual down": lambda: (ResidualBlock(3, 2, down=2), _images(1, 3, 4, 2)),
    "minibatch discrimination": lambda: (MinibatchDiscrimination(3, 2, 2), _images()[:, 0, 0, :3]),
    "spectral norm": lambda: (spectral_norm(_filled(EqualizedConv2d(2, 3, 3))).eval(), _images(1, 2, 3, 2)),
}


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name, check):
    layer, x = LAYERS[name]()
    layer = _filled(layer) if name != "spectral norm" else layer
    names = [name for name, _ in layer.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert check(function, (x.requires_grad_(), *parameters), **GRADCHECK)


# How they are used


@pytest.mark.parametrize("make", [lambda: SelfAttention2d(8), lambda: ResidualBlock(8, 4, up=2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layout_is_kept(make, layout):
    x = _images().float().contiguous(memory_format=layout)
    assert make().to(memory_format=layout)(x).is_contiguous(memory_format=layout)


@pytest.mark.parametrize("make", [lambda: SelfAttention2d(8), lambda: ResidualBlock(8, 8, down=2)])
def test_bf16_autocast(make):
    layer, x = _filled(make()).float(), _images().bfloat16()
    expected = layer(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        actual = layer(x)
    assert actual.dtype == torch.bfloat16
    # bf16 keeps 8 bits per rounding; three convolutions and a softmax in a row.
    error = (actual.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 0 < error < 0.03


@pytest.mark.parametrize("make", [lambda: SelfAttention2d(8), lambda: ResidualBlock(8, 4, up=2)])
def test_empty_batch(make):
    assert len(make()(_images(n=0).float())) == 0


def test_empty_batch_and_one_sample_of_minibatch_discrimination():
    layer = MinibatchDiscrimination(6)
    assert layer(torch.zeros(0, 6)).shape == (0, 38)
    assert not layer(torch.randn(1, 6))[:, 6:].any()


def test_a_copy_of_a_layer_with_spectral_norm_is_its_own():
    layer = spectral_norm(EqualizedLinear(6, 4))
    other = copy.deepcopy(layer)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    other(torch.zeros(1, 6))
    other.bias.data.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6)
    assert torch.equal(layer.eval()(x), other.eval()(x))


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (SelfAttention2d(8), "(query): EqualizedConv2d(8, 1, 1"),
        (MinibatchDiscrimination(6, 3, 2), "kernels=3, kernel_dim=2"),
        (spectral_norm(EqualizedLinear(6, 4)), "6, 4, act=linear, bias=True"),
    ],
)
def test_repr(layer, text):
    assert text in repr(layer)
