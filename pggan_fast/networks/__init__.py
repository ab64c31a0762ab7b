"""Whole networks."""

from typing import NamedTuple

from pggan_fast.networks.autoencoder import AutoencoderDiscriminator
from pggan_fast.networks.base import BaseDiscriminator, BaseGenerator
from pggan_fast.networks.discriminator import Discriminator
from pggan_fast.networks.generator import Generator
from pggan_fast.networks.r3gan import R3ganDiscriminator, R3ganGenerator

__all__ = [
    "NETWORKS",
    "AutoencoderDiscriminator",
    "BaseDiscriminator",
    "BaseGenerator",
    "Discriminator",
    "Generator",
    "NetworkPair",
    "R3ganDiscriminator",
    "R3ganGenerator",
]


class NetworkPair(NamedTuple):
    """A generator and the discriminator that it is trained with."""

    generator: type[BaseGenerator]
    discriminator: type[BaseDiscriminator]


NETWORKS = {
    "pggan": NetworkPair(Generator, Discriminator),
    "r3gan": NetworkPair(R3ganGenerator, R3ganDiscriminator),
}
"""Networks by the name that `train --network` and the options in a file give them."""
