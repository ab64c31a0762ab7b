"""The networks that are accelerated: how to make each, what goes in, and whether something in it is replaced."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import spectral_norm as parametrized_spectral_norm

from tests.dropin.classic import (
    BigGANGenerator,
    NICEDiscriminator,
    SAGANDiscriminator,
    SAGANGenerator,
    SPADEGenerator,
    UNet,
    cyclegan_generator,
    dcgan_discriminator,
    dcgan_generator,
    lsgan_critic,
    wgan_gp_critic,
)
from tests.dropin.progressive import (
    BatchDeviation,
    EqualConv,
    GroupedDeviation,
    ProgressiveDiscriminator,
    ProgressiveGenerator,
    ScaledInputConv,
    ScaledOutputConv,
    StyleGenerator,
    consecutive_deviation,
)
from tests.dropin.several import LAPGAN, VAEGAN, BiGAN, InfoGAN, SinGAN, StackGAN


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of the inputs, each filled with normal numbers; integers for a label are made in the network."""
    replaced: bool = True
    fast: bool = False
    """Whether it has nearest upsampling before a convolution, or pixel norm: where the time goes."""


def fill(module: nn.Module) -> nn.Module:
    """Parameters and running statistics that are not 0 or 1, so that a lost one shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            # conv and dense weights keep their size, so that activations neither vanish nor explode
            if p.ndim < 2:
                p.add_(0.2 * torch.randn(p.shape, generator=generator))
        for name, b in module.named_buffers():
            if name.endswith("running_mean"):
                b.add_(0.3 * torch.randn(b.shape, generator=generator))
            if name.endswith("running_var"):
                b.mul_(1 + torch.rand(b.shape, generator=generator))
    return module


LATENT, IMAGE = (4, 16), (4, 3, 32, 32)
ZOO: dict[str, Case] = {
    "pggan_generator": Case(
        lambda: ProgressiveGenerator(lambda i, o: EqualConv(i, o, 3, padding=1)), (LATENT,), fast=True
    ),
    "pggan_scaled_inputs": Case(lambda: ProgressiveGenerator(ScaledInputConv), (LATENT,), fast=True),
    "pggan_scaled_outputs": Case(lambda: ProgressiveGenerator(ScaledOutputConv), (LATENT,), fast=True),
    "pggan_discriminator": Case(lambda: ProgressiveDiscriminator(GroupedDeviation()), (IMAGE,)),
    "pggan_batch_deviation": Case(lambda: ProgressiveDiscriminator(BatchDeviation()), (IMAGE,)),
    "pggan_function_deviation": Case(lambda: ProgressiveDiscriminator(consecutive_deviation), (IMAGE,)),
    "dcgan_generator": Case(dcgan_generator, ((4, 16, 1, 1),), replaced=False),
    "dcgan_discriminator": Case(dcgan_discriminator, (IMAGE,)),
    "lsgan_critic": Case(lsgan_critic, (IMAGE,)),
    "wgan_gp_critic": Case(wgan_gp_critic, (IMAGE,)),
    "sagan_generator": Case(SAGANGenerator, (LATENT,), fast=True),
    "sagan_discriminator": Case(lambda: SAGANDiscriminator(spectral_norm), (IMAGE,)),
    "sagan_parametrized": Case(lambda: SAGANDiscriminator(parametrized_spectral_norm), (IMAGE,)),
    "biggan_generator": Case(BigGANGenerator, (LATENT, LATENT), fast=True),
    "cyclegan_generator": Case(cyclegan_generator, (IMAGE,)),
    "unet": Case(UNet, (IMAGE,), fast=True),
    "spade_generator": Case(SPADEGenerator, (IMAGE,)),
    "nice_discriminator": Case(NICEDiscriminator, (IMAGE,), replaced=False),
    "stylegan2": Case(StyleGenerator, (LATENT,)),
    "singan": Case(SinGAN, ((2, 3, 15, 17),)),
    "lapgan": Case(LAPGAN, (LATENT,)),
    "stackgan": Case(StackGAN, (LATENT,), fast=True),
    "infogan": Case(InfoGAN, (IMAGE,)),
    "vaegan": Case(VAEGAN, (IMAGE, LATENT), fast=True),
    "bigan": Case(BiGAN, (IMAGE, LATENT)),
}


# The same at widths where arithmetic and memory count: what is timed.
WIDE_LATENT, WIDE_IMAGE = (8, 16), (8, 3, 64, 64)
WIDE: dict[str, Case] = {
    "pggan_generator": Case(
        lambda: ProgressiveGenerator(lambda i, o: EqualConv(i, o, 3, padding=1), 64, 4), ((8, 64),), fast=True
    ),
    "pggan_scaled_inputs": Case(lambda: ProgressiveGenerator(ScaledInputConv, 64, 4), ((8, 64),), fast=True),
    "sagan_generator": Case(lambda: SAGANGenerator(128), (WIDE_LATENT,), fast=True),
    "biggan_generator": Case(lambda: BigGANGenerator(128), (WIDE_LATENT, WIDE_LATENT), fast=True),
    "stackgan": Case(lambda: StackGAN(96), (WIDE_LATENT,), fast=True),
    "spade_generator": Case(lambda: SPADEGenerator(64), (WIDE_IMAGE,)),
    "unet": Case(lambda: UNet(48), (WIDE_IMAGE,), fast=True),
    "vaegan": Case(lambda: VAEGAN(64), ((8, 3, 32, 32), WIDE_LATENT), fast=True),
    "dcgan_generator": Case(lambda: dcgan_generator(48), ((8, 16, 1, 1),), replaced=False),
    "dcgan_discriminator": Case(lambda: dcgan_discriminator(48), ((8, 3, 32, 32),)),
    "lsgan_critic": Case(lambda: lsgan_critic(48), ((8, 3, 32, 32),)),
    "wgan_gp_critic": Case(lambda: wgan_gp_critic(64), ((8, 3, 32, 32),)),
    "sagan_discriminator": Case(lambda: SAGANDiscriminator(spectral_norm, 64), ((8, 3, 32, 32),)),
    "pggan_discriminator": Case(lambda: ProgressiveDiscriminator(GroupedDeviation(), 64), (WIDE_IMAGE,)),
    "cyclegan_generator": Case(lambda: cyclegan_generator(32), (WIDE_IMAGE,)),
    "stylegan2": Case(lambda: StyleGenerator(64), (WIDE_LATENT,)),
    "singan": Case(SinGAN, ((2, 3, 65, 67),)),
    "infogan": Case(lambda: InfoGAN(48), ((8, 3, 32, 32),)),
}


def inputs_of(case: Case, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1 + seed)
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for shape in case.shapes)


def network(name: str, wide: bool = False) -> nn.Module:
    """The network of this name with the same weights at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return fill((WIDE if wide else ZOO)[name].make())
