"""State dicts in pytorch_GAN_zoo's naming, against its arithmetic written out in plain PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F

from pggan_fast import Discriminator, Generator
from pggan_fast.interop import from_gan_zoo, to_gan_zoo

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}  # float32, another order of summing through eight layers


def tensors(shapes):
    """Weights N(0, 1) and biases N(0, 1) by their names."""
    generator = torch.Generator().manual_seed(0)
    result = {}
    for name, shape in shapes.items():
        result[f"{name}.module.weight"] = torch.randn(shape, generator=generator)
        biases = shape[0]
        result[f"{name}.module.bias"] = torch.randn(biases, generator=generator)
    return result


def g_weights(latents=6):
    return tensors(
        {
            "formatLayer": (8 * 16, latents),
            "groupScale0.0": (8, 8, 3, 3),
            "toRGBLayers.0": (3, 8, 1, 1),
            "scaleLayers.0.0": (8, 8, 3, 3),
            "scaleLayers.0.1": (8, 8, 3, 3),
            "toRGBLayers.1": (3, 8, 1, 1),
            "scaleLayers.1.0": (4, 8, 3, 3),
            "scaleLayers.1.1": (4, 4, 3, 3),
            "toRGBLayers.2": (3, 4, 1, 1),
        }
    )


def d_weights(statistics=0, scores=1):
    return tensors(
        {
            "decisionLayer": (scores, 8),
            "groupScaleZero.0": (8, 8 + statistics, 3, 3),
            "groupScaleZero.1": (8, 8 * 16),
            "fromRGBLayers.0": (8, 3, 1, 1),
            "scaleLayers.0.0": (4, 4, 3, 3),
            "scaleLayers.0.1": (8, 4, 3, 3),
            "fromRGBLayers.1": (4, 3, 1, 1),
        }
    )


def layer(weights, name, x, equalized):
    """Their ConstrainedLayer: the sum with the bias is scaled."""
    weight, bias = weights[f"{name}.module.weight"], weights[f"{name}.module.bias"]
    y = F.linear(x, weight, bias) if weight.ndim == 2 else F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)
    return y * math.sqrt(2 / weight[0].numel()) if equalized else y


def norm(x):
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def their_g(w, z, alpha, equalized):
    """alpha is the weight of the old path."""

    def step(name, x):
        return F.leaky_relu(layer(w, name, x, equalized), 0.2)

    x = norm(step("formatLayer", norm(z)).view(len(z), -1, 4, 4))
    x = norm(step("groupScale0.0", x))
    for scale in range(2):
        before = x
        x = F.interpolate(x, scale_factor=2)
        for i in range(2):
            x = norm(step(f"scaleLayers.{scale}.{i}", x))
    old = F.interpolate(layer(w, "toRGBLayers.1", before, equalized), scale_factor=2)
    return alpha * old + (1 - alpha) * layer(w, "toRGBLayers.2", x, equalized)


def their_d(w, images, equalized):
    def step(name, x):
        return F.leaky_relu(layer(w, name, x, equalized), 0.2)

    x = step("fromRGBLayers.1", images)
    x = F.avg_pool2d(step("scaleLayers.0.1", step("scaleLayers.0.0", x)), 2)
    if w["groupScaleZero.0.module.weight"].shape[1] == 9:  # groups of 4 neighbours, torch.var's default correction
        deviation = (x.view(-1, 4, 8, 4, 4).var(dim=1) + 1e-8).sqrt().mean(dim=(1, 2, 3))
        x = torch.cat([x, deviation.repeat_interleave(4).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)], dim=1)
    x = step("groupScaleZero.1", step("groupScaleZero.0", x).flatten(1))
    return layer(w, "decisionLayer", x, equalized)[:, 0]


@pytest.mark.parametrize("equalized", [True, False])
def test_generator(equalized):
    weights = g_weights()
    G = from_gan_zoo(weights, equalized=equalized)
    assert (G.resolution, G.latent_dim, G.options["input_bias"]) == (16, 6, "pixel")
    z = torch.randn(3, 6)
    for alpha in (0.0, 0.3):
        expected = their_g(weights, z, alpha, equalized)
        torch.testing.assert_close(G(z, alpha=1 - alpha), expected, **TOLERANCE)


@pytest.mark.parametrize("statistics", [0, 1])
@pytest.mark.parametrize("equalized", [True, False])
def test_discriminator(equalized, statistics):
    weights = d_weights(statistics)
    D = from_gan_zoo(weights, equalized=equalized)
    images = torch.randn(8, 3, 8, 8)
    expected = their_d(weights, images, equalized)
    torch.testing.assert_close(D(images)[0] / expected.std(), expected / expected.std(), **TOLERANCE)


@pytest.mark.parametrize("weights", [g_weights(), d_weights(), d_weights(statistics=1)])
def test_there_and_back(weights):
    back = to_gan_zoo(from_gan_zoo(weights))
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(back[name], value, atol=0, rtol=3e-7, msg=name)  # two roundings
    unprefixed = {name.replace(".module", ""): value for name, value in weights.items()}
    for ours, same in zip(from_gan_zoo(weights).parameters(), from_gan_zoo(unprefixed).parameters(), strict=True):
        assert torch.equal(ours, same)


def test_a_bias_per_channel_is_given_to_every_pixel():
    G = Generator(16, latent_dim=6, fmap_base=32, fmap_max=8)
    torch.nn.init.normal_(G.input_bias)
    z = torch.randn(2, 6)
    torch.testing.assert_close(their_g(to_gan_zoo(G), z, 0.0, True), G(z), **TOLERANCE)


def test_what_cannot_be_represented():
    with pytest.raises(ValueError, match="4 outputs"):
        from_gan_zoo(d_weights(scores=4))
    with pytest.raises(ValueError, match="missing .*formatLayer.bias"):
        from_gan_zoo({k: v for k, v in g_weights().items() if k != "formatLayer.module.bias"})
    with pytest.raises(ValueError, match="mbstd_grouping=strided, pytorch_GAN_zoo only mbstd_grouping=consecutive"):
        to_gan_zoo(Discriminator(8, fmap_base=32, fused_scale=False))
