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
THIRD_PARTY = {
    # Its equalized first layer does not run with today's torch: the later blocks, and the generator without.
    "progan_equalized_blocks": ThirdParty(
        PROGAN,
        lambda m: (
            nn.Sequential(*(m.GenGeneralConvBlock(i, o, True) for i, o in ((64, 64), (64, 32)))),
            (torch.randn(4, 64, 8, 8),),
        ),
        fast=True,
    ),
    "progan_generator": ThirdParty(
        PROGAN,
        lambda m: (m.Generator(depth=3, latent_size=64, use_eql=False), (torch.randn(2, 64), 3, 0.3)),
        fast=True,
    ),
    "progan_discriminator": ThirdParty(
        PROGAN, lambda m: (m.Discriminator(depth=3, latent_size=64), (images(4, 8), 3, 0.3))
    ),
    "progan_conditional_discriminator": ThirdParty(
        PROGAN,
        lambda m: (
            m.Discriminator(depth=3, latent_size=64, num_classes=5),
            (images(4, 8), 3, 0.7, torch.tensor([0, 4, 2, 2])),
        ),
    ),
    "torchgan_dcgan_generator": ThirdParty(
        TORCHGAN, lambda m: (m.DCGANGenerator(step_channels=16), (torch.randn(4, 100),)), replaced=False
    ),
    "torchgan_dcgan_discriminator": ThirdParty(
        TORCHGAN, lambda m: (m.DCGANDiscriminator(step_channels=16), (images(4, 32),))
    ),
    "torchgan_plain_discriminator": ThirdParty(
        TORCHGAN, lambda m: (m.DCGANDiscriminator(step_channels=16, batchnorm=False), (images(4, 32),))
    ),
    "torchgan_autoencoder": ThirdParty(
        TORCHGAN,
        lambda m: (m.AutoEncodingGenerator(step_channels=16, nonlinearity=nn.ReLU()), (torch.randn(4, 100),)),
    ),
    "torchgan_energy_discriminator": ThirdParty(
        TORCHGAN, lambda m: (m.AutoEncodingDiscriminator(step_channels=16), (images(4, 32),))
    ),
    "torchgan_infogan_discriminator": ThirdParty(
        TORCHGAN, lambda m: (m.InfoGANDiscriminator(2, 3, step_channels=16), (images(4, 32),))
    ),
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
    "progan_equalized_blocks": ThirdParty(
        PROGAN,
        lambda m: (
            nn.Sequential(*(m.GenGeneralConvBlock(i, o, True) for i, o in ((256, 128), (128, 64)))),
            (torch.randn(4, 256, 16, 16),),
        ),
        fast=True,
    ),
    "progan_generator": ThirdParty(
        PROGAN,
        lambda m: (m.Generator(depth=5, latent_size=128, use_eql=False), (torch.randn(4, 128), 5, 0.3)),
        fast=True,
    ),
    "progan_discriminator": ThirdParty(
        PROGAN, lambda m: (m.Discriminator(depth=5, latent_size=128), (images(4, 32), 5, 0.3))
    ),
    "torchgan_dcgan_generator": ThirdParty(
        TORCHGAN, lambda m: (m.DCGANGenerator(), (torch.randn(16, 100),)), replaced=False
    ),
    "torchgan_dcgan_discriminator": ThirdParty(TORCHGAN, lambda m: (m.DCGANDiscriminator(), (images(16, 32),))),
    "torchgan_autoencoder": ThirdParty(
        TORCHGAN, lambda m: (m.AutoEncodingGenerator(nonlinearity=nn.ReLU()), (torch.randn(16, 100),))
    ),
    "torchgan_energy_discriminator": ThirdParty(TORCHGAN, lambda m: (m.AutoEncodingDiscriminator(), (images(16, 32),))),
}
