"""pro-gan-pth's own networks against ours with their weights, and back."""

import pytest
import torch

from pggan_fast import Discriminator, Generator
from pggan_fast.interop import from_pro_gan_pth, to_pro_gan_pth

custom_layers = pytest.importorskip("pro_gan_pytorch.custom_layers", reason="pro-gan-pth is not installed")
networks = pytest.importorskip("pro_gan_pytorch.networks", reason="pro-gan-pth is not installed")

# float32, another order of summing through eight layers of up to 4,608 products, outputs of order 1 to 10
TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Their channel counts are fixed, but by this function's defaults."""
    torch.manual_seed(0)
    monkeypatch.setattr(networks.nf, "__defaults__", (64, 1.0, 1, 24))
    # Their call of this torch method is of an older torch; without output_size it gives output_padding.
    transposed = custom_layers.EqualizedConvTranspose2d
    monkeypatch.setattr(transposed, "_output_padding", lambda self, *_: self.output_padding)


def perturbed(network):
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize("use_eql", [True, False])
def test_generator(use_eql):
    theirs = perturbed(networks.Generator(depth=4, num_channels=1, latent_size=10, use_eql=use_eql))
    ours = from_pro_gan_pth(theirs.state_dict(), use_eql=use_eql)
    assert (ours.resolution, ours.latent_dim, ours.image_channels) == (16, 10, 1)
    z = torch.randn(3, 10)
    for depth, alpha in ((2, 1.0), (3, 0.3), (4, 1.0), (4, 0.75)):
        expected = theirs(z, depth=depth, alpha=alpha)
        torch.testing.assert_close(ours(z, resolution=2**depth, alpha=alpha), expected, **TOLERANCE)


@pytest.mark.parametrize("use_eql", [True, False])
def test_discriminator(use_eql):
    theirs = perturbed(networks.Discriminator(depth=4, num_channels=3, latent_size=24, use_eql=use_eql))
    ours = from_pro_gan_pth(theirs.state_dict(), use_eql=use_eql)
    for depth, alpha in ((2, 1.0), (3, 0.3), (4, 1.0), (4, 0.75)):
        images = torch.randn(8, 3, 2**depth, 2**depth)
        torch.testing.assert_close(ours(images, alpha=alpha)[0], theirs(images, depth, alpha), **TOLERANCE)


@pytest.mark.parametrize("kind", ["Generator", "Discriminator"])
def test_there_and_back(kind):
    theirs = perturbed(getattr(networks, kind)(depth=3, latent_size=24))
    back = to_pro_gan_pth(from_pro_gan_pth(theirs.state_dict()))
    assert back.keys() == theirs.state_dict().keys()
    for name, value in theirs.state_dict().items():
        # Scaled once and back: two roundings.
        torch.testing.assert_close(back[name], value, atol=0, rtol=3e-7, msg=name)


def test_ours_run_as_theirs():
    G = perturbed(Generator(8, latent_dim=5, fmap_base=64, fmap_max=24, input_norm=False))
    theirs = networks.Generator(depth=3, latent_size=5)
    theirs.load_state_dict(to_pro_gan_pth(G))
    z = torch.randn(2, 5)
    torch.testing.assert_close(theirs(z), G(z), **TOLERANCE)


def test_what_cannot_be_represented():
    conditional = networks.Discriminator(depth=3, latent_size=24, num_classes=2)
    with pytest.raises(ValueError, match="conditional"):
        from_pro_gan_pth(conditional.state_dict())
    weights = networks.Generator(depth=3).state_dict()
    weights["extra.weight"] = weights.pop("layers.1.conv_2.bias")
    with pytest.raises(ValueError, match="missing layers.1.conv_2.bias; unknown extra.weight"):
        from_pro_gan_pth(weights)
    with pytest.raises(ValueError, match="input_norm=True, pro-gan-pth only input_norm=False"):
        to_pro_gan_pth(Generator(8, fmap_base=32))
    with pytest.raises(ValueError, match="fused_scale=True, pro-gan-pth only fused_scale=False"):
        to_pro_gan_pth(Discriminator(8, fmap_base=32))
