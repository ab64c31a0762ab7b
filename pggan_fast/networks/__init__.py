"""Whole networks."""

from pggan_fast.networks.discriminator import Discriminator
from pggan_fast.networks.generator import Generator

__all__ = ["Discriminator", "Generator"]
