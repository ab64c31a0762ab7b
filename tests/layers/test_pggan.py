"""The modules: they hand their parameters and options to the right op, start as the paper says, and save."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pggan_fast
from pggan_fast import (
    Downsample2x,
    EqualizedConv2d,
    EqualizedLinear,
    FadeIn,
    MinibatchStdDev,
    PixelNorm,
    Upsample2x,
    reference,
)
from tests.tolerances import EXACT

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _filled(layer: nn.Module) -> nn.Module:
    """In fp64, with biases that are not 0."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
    return layer.double()


# What the layers compute, in torch's own functions


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_conv(k, up, down, bias):
    layer = _filled(EqualizedConv2d(3, 7, k, up=up, down=down, act="lrelu", gain=1.5, bias=bias))
    x = F.interpolate(X, scale_factor=2.0, mode="nearest") if up == 2 else X
    y = F.conv2d(x, layer.weight * 1.5 / math.sqrt(3 * k * k), padding=k // 2)
    y = F.avg_pool2d(y, 2) if down == 2 else y
    y = F.leaky_relu(y if layer.bias is None else y + layer.bias.view(1, -1, 1, 1), 0.2)
    torch.testing.assert_close(layer(X), y, **EXACT)


def test_conv_options():
    layer = _filled(EqualizedConv2d(3, 7, 4, padding=2, act="lrelu", slope=0.3, pixel_norm=True, eps=0.1))
    y = F.conv2d(X, layer.weight * math.sqrt(2 / 48), layer.bias, padding=2)
    y = F.leaky_relu(y, 0.3)
    torch.testing.assert_close(layer(X), y / (y.square().mean(1, keepdim=True) + 0.1).sqrt(), **EXACT)


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias):
    layer = _filled(EqualizedLinear(6, 5, act="lrelu", slope=0.3, gain=0.5, bias=bias))
    x = X[:, 0, 0]
    torch.testing.assert_close(
        layer(x), F.leaky_relu(F.linear(x, layer.weight * 0.5 / math.sqrt(6), layer.bias), 0.3), **EXACT
    )


def test_layers_without_parameters():
    torch.testing.assert_close(PixelNorm(eps=0.3)(X), X / (X.square().mean(1, keepdim=True) + 0.3).sqrt(), **EXACT)
    torch.testing.assert_close(Upsample2x()(X), F.interpolate(X, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(Downsample2x()(X), F.avg_pool2d(X, 2), **EXACT)
    high = Upsample2x()(X).flip(0)
    torch.testing.assert_close(FadeIn()(X, high, 0.3), torch.lerp(Upsample2x()(X), high, 0.3), **EXACT)
    torch.testing.assert_close(FadeIn()(X, high, torch.tensor(0.0)), Upsample2x()(X))


def test_minibatch_stddev():
    """Its own default is the official one; every argument arrives."""
    group = X.var(0, correction=0)
    expected = (group + 1e-8).sqrt().mean().expand(4, 1, 6, 6)
    torch.testing.assert_close(MinibatchStdDev()(X), torch.cat([X, expected], 1), **EXACT)
    options = dict(grouping="consecutive", correction=1)
    expected = reference.minibatch_stddev(X, 2, 3, 0.1, **options)
    torch.testing.assert_close(MinibatchStdDev(2, 3, 0.1, **options)(X), expected, **EXACT)


# How they start


@pytest.mark.parametrize(("gain", "expected"), [(None, math.sqrt(2)), (1.0, 1.0)])
def test_weights_start_as_normal_and_are_scaled_at_run_time(gain, expected):
    torch.manual_seed(2)
    options = {} if gain is None else {"gain": gain}
    for layer, fan_in in (
        (EqualizedConv2d(64, 128, 3, **options), 64 * 9),
        (EqualizedLinear(512, 256, **options), 512),
    ):
        # 70,000 draws and more: these estimates' deviations are below 0.004.
        assert abs(layer.weight.mean()) < 0.02
        assert abs(layer.weight.std() - 1) < 0.02
        assert not layer.bias.any()
        assert layer.weight_scale == pytest.approx(expected / math.sqrt(fan_in))


@pytest.mark.parametrize("layer", [EqualizedConv2d(256, 256, 3, act="relu"), EqualizedLinear(2048, 2048, act="relu")])
def test_gain_keeps_the_scale_of_activations(layer):
    """He's constant, sqrt(2 / fan_in), is that for relu (paper, section 4.1): mean square 1 stays 1."""
    torch.manual_seed(3)
    nn.init.normal_(layer.weight)
    shape = (4, 256, 16, 16) if layer.weight.ndim == 4 else (64, 2048)
    with torch.no_grad():
        y = layer(torch.randn(shape))[..., 1:-1]
    # Zero padding costs the border rows; tens of thousands of values.
    assert y.square().mean() == pytest.approx(1, abs=0.1)


def test_biases_are_not_scaled():
    layer = EqualizedLinear(4, 3)
    nn.init.constant_(layer.bias, 2.5)
    assert torch.equal(layer(torch.zeros(1, 4)), torch.full((1, 3), 2.5))


# How they are used


LAYERS = [
    (
        EqualizedConv2d(3, 4, 3, up=2, act="lrelu", pixel_norm=True),
        "3, 4, 3, up=2, act=lrelu, pixel_norm=True, bias=True",
    ),
    (EqualizedConv2d(3, 4, 1, down=2, bias=False), "3, 4, 1, down=2, act=linear, bias=False"),
    (EqualizedLinear(6, 2, act="lrelu"), "6, 2, act=lrelu, bias=True"),
    (PixelNorm(1e-4), "eps=0.0001"),
    (MinibatchStdDev(8, 2), "group_size=8, num_channels=2, grouping=strided, correction=0"),
]


@pytest.mark.parametrize(("layer", "text"), LAYERS)
def test_repr(layer, text):
    assert repr(layer) == f"{type(layer).__name__}({text})"


@pytest.mark.parametrize(("bias", "names"), [(True, ["weight", "bias"]), (False, ["weight"])])
@pytest.mark.parametrize("make", [lambda **o: EqualizedConv2d(3, 4, 3, **o), lambda **o: EqualizedLinear(6, 2, **o)])
def test_parameters_and_state(make, bias, names):
    layer, same = make(bias=bias), make(bias=bias)
    assert [name for name, _ in layer.named_parameters()] == names == list(layer.state_dict())
    same.load_state_dict(layer.state_dict())
    x = X.float() if layer.weight.ndim == 4 else X[:, 0, 0].float()
    assert torch.equal(same(x), layer(x))


def test_a_layer_trains():
    """A linear map of 12 numbers is found again by gradient descent, through the layer that scales its weights."""
    torch.manual_seed(4)
    target, layer = torch.randn(3, 4), EqualizedLinear(4, 3)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    x = torch.randn(256, 4)
    for _ in range(200):
        loss = (layer(x) - x @ target.T).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_layers_move_to_a_dtype(dtype):
    layers = nn.Sequential(EqualizedConv2d(3, 4, 3, up=2, act="lrelu"), PixelNorm(), MinibatchStdDev(), Downsample2x())
    assert layers.to(dtype)(X.to(dtype)).dtype == dtype


def test_use_impl_reaches_into_layers():
    layer = EqualizedConv2d(3, 4, 3, act="lrelu").double()
    with pggan_fast.use_impl("reference"):
        expected = layer(X)
    with pytest.raises(RuntimeError, match="equalized_conv2d: impl='triton'"), pggan_fast.use_impl("triton"):
        layer(X)
    torch.testing.assert_close(layer(X), expected, **EXACT)


@pytest.mark.parametrize(
    ("kernel_size", "options", "message"),
    [
        (4, {}, "a kernel of even size 4 needs an explicit padding"),
        (3, {"up": 4}, "up=4 and down=1, each must be 1 or 2, and not both 2"),
        (3, {"padding": 3, "up": 2}, "padding is 3, must be 0 to 2"),
    ],
)
def test_a_layer_that_no_image_fits_is_not_made(kernel_size, options, message):
    with pytest.raises(ValueError, match=f"^EqualizedConv2d: {message}$"):
        EqualizedConv2d(3, 4, kernel_size, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EqualizedConv2d(0, 8, 3), "EqualizedConv2d: in_channels is 0, must be a whole number from 1"),
        (lambda: EqualizedConv2d(8, -8, 3), "EqualizedConv2d: out_channels is -8, must be a whole number from 1"),
        (lambda: EqualizedConv2d("8", 8, 3), "EqualizedConv2d: in_channels is '8', must be a whole number from 1"),
        (
            lambda: EqualizedConv2d(8, 8, 3, act="lrleu"),
            "EqualizedConv2d: act is 'lrleu', allowed: linear, relu, lrelu",
        ),
        (lambda: EqualizedLinear(0, 3), "EqualizedLinear: in_features is 0, must be a whole number from 1"),
        (lambda: EqualizedLinear(8, 3, act="foo"), "EqualizedLinear: act is 'foo', allowed: linear, relu, lrelu"),
        (lambda: MinibatchStdDev(0), "MinibatchStdDev: group_size is 0, must be a whole number from 1"),
    ],
)
def test_layers_refuse_where_they_are_made(make, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_counts_may_be_numbers_of_numpy():
    channels = np.int64(4)
    y = EqualizedConv2d(channels, channels, np.int32(3))(torch.ones(1, 4, 8, 8))
    assert EqualizedLinear(channels, channels)(y.mean((2, 3))).shape == (1, 4)
