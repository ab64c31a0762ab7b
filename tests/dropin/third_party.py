"""Networks of packages from PyPI, as they are there.

`pip install --no-deps pro-gan-pth torchgan`, and for `make test-third-party` also lightweight-gan and
stylegan2-pytorch. The latter two refuse to be imported without a GPU, and stylegan2-pytorch without a tracker of
experiments: their networks need neither, so while they are imported torch says that there is one, and the tracker is
an empty module.
"""

import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, tuple]


@dataclass(frozen=True)
class ThirdParty:
    module: str
    build: Callable[[object], Made]
    fast: bool = False
    """Whether it has nearest upsampling before a convolution, or pixel norm."""
    replaced: bool = True

    def missing(self) -> str | None:
        """Why its package cannot be used here, if it cannot."""
        try:
            self.imported()
        except Exception as error:  # an old package fails beside new libraries in any way
            return f"{self.module}: {type(error).__name__}: {error}"
        return None

    def imported(self) -> types.ModuleType:
        if not self.module.startswith(WANT_A_GPU) or self.module in sys.modules:
            return importlib.import_module(self.module)
        stub = types.ModuleType("aim")
        sys.modules.setdefault("aim", stub)
        try:
            with mock.patch("torch.cuda.is_available", lambda: True):
                return importlib.import_module(self.module)
        finally:
            if sys.modules["aim"] is stub:
                del sys.modules["aim"]

    def make(self, seed: int = 0) -> Made:
        """(the network, its arguments), the same at each call."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model, arguments = self.build(self.imported())
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:  # biases that are zero hide a lost one
                        parameter.add_(0.1 * torch.randn_like(parameter))
        return model, arguments


def images(n: int, size: int) -> Tensor:
    return torch.randn(n, 3, size, size)


PROGAN, TORCHGAN = "pro_gan_pytorch.networks", "torchgan.models"
LIGHTWEIGHT, STYLEGAN2 = "lightweight_gan.lightweight_gan", "stylegan2_pytorch.stylegan2_pytorch"
WANT_A_GPU = ("lightweight_gan", "stylegan2_pytorch")


def equalized_blocks(first: int, middle: int, last: int, size: int) -> ThirdParty:
    """Its equalized first layer does not run with today's torch: the later blocks."""

    def build(m: types.ModuleType) -> Made:
        blocks = nn.Sequential(*(m.GenGeneralConvBlock(i, o, True) for i, o in ((first, middle), (middle, last))))
        return blocks, (torch.randn(4, first, size, size),)

    return ThirdParty(PROGAN, build, fast=True)


def progan_generator(depth: int, latent: int, n: int) -> ThirdParty:
    """The whole generator, without equalized layers."""
    return ThirdParty(
        PROGAN,
        lambda m: (m.Generator(depth=depth, latent_size=latent, use_eql=False), (torch.randn(n, latent), depth, 0.3)),
        fast=True,
    )


def progan_discriminator(depth: int, latent: int, size: int) -> ThirdParty:
    return ThirdParty(
        PROGAN, lambda m: (m.Discriminator(depth=depth, latent_size=latent), (images(4, size), depth, 0.3))
    )


def torchgan(network: str, inputs: Callable[[], Tensor], replaced: bool = True, **options: object) -> ThirdParty:
    return ThirdParty(TORCHGAN, lambda m: (getattr(m, network)(**options), (inputs(),)), replaced=replaced)


def latents(n: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(n, 100)


def images_of(n: int) -> Callable[[], Tensor]:
    return lambda: images(n, 32)


SMALL = {"step_channels": 16}
THIRD_PARTY = {
    "progan_equalized_blocks": equalized_blocks(64, 64, 32, 8),
    "progan_generator": progan_generator(3, 64, 2),
    "progan_discriminator": progan_discriminator(3, 64, 8),
    "progan_conditional_discriminator": ThirdParty(
        PROGAN,
        lambda m: (
            m.Discriminator(depth=3, latent_size=64, num_classes=5),
            (images(4, 8), 3, 0.7, torch.tensor([0, 4, 2, 2])),
        ),
    ),
    "torchgan_dcgan_generator": torchgan("DCGANGenerator", latents(4), replaced=False, **SMALL),
    "torchgan_dcgan_discriminator": torchgan("DCGANDiscriminator", images_of(4), **SMALL),
    "torchgan_plain_discriminator": torchgan("DCGANDiscriminator", images_of(4), batchnorm=False, **SMALL),
    "torchgan_autoencoder": torchgan("AutoEncodingGenerator", latents(4), nonlinearity=nn.ReLU(), **SMALL),
    "torchgan_energy_discriminator": torchgan("AutoEncodingDiscriminator", images_of(4), **SMALL),
    "torchgan_infogan_discriminator": torchgan("InfoGANDiscriminator", images_of(4), dim_dis=2, dim_cont=3, **SMALL),
    "lightweight_generator": ThirdParty(
        LIGHTWEIGHT,
        lambda m: (m.Generator(image_size=32, latent_dim=32, fmap_max=32), (torch.randn(2, 32),)),
        replaced=False,
    ),
    "lightweight_discriminator": ThirdParty(
        LIGHTWEIGHT,
        lambda m: (m.Discriminator(image_size=32, fmap_max=8, disc_output_size=1), (images(2, 32),)),
    ),
    "stylegan2_generator": ThirdParty(
        STYLEGAN2,
        lambda m: (m.Generator(32, 16, network_capacity=2), (torch.randn(2, 4, 16), torch.rand(2, 32, 32, 1))),
        replaced=False,
    ),
    "stylegan2_discriminator": ThirdParty(
        STYLEGAN2, lambda m: (m.Discriminator(32, network_capacity=2), (images(2, 32),))
    ),
}

# At the sizes of use: what is timed.
WIDE = {
    "progan_equalized_blocks": equalized_blocks(256, 128, 64, 16),
    "progan_generator": progan_generator(5, 128, 4),
    "progan_discriminator": progan_discriminator(5, 128, 32),
    "torchgan_dcgan_generator": torchgan("DCGANGenerator", latents(16), replaced=False),
    "torchgan_dcgan_discriminator": torchgan("DCGANDiscriminator", images_of(16)),
    "torchgan_autoencoder": torchgan("AutoEncodingGenerator", latents(16), nonlinearity=nn.ReLU()),
    "torchgan_energy_discriminator": torchgan("AutoEncodingDiscriminator", images_of(16)),
}
