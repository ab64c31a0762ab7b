"""Whole networks."""

from pggan_fast.networks.autoencoder import AutoencoderDiscriminator
from pggan_fast.networks.discriminator import Discriminator
from pggan_fast.networks.generator import Generator

__all__ = ["AutoencoderDiscriminator", "Discriminator", "Generator"]
