"""Weights from and to other implementations of progressive GANs, one file per format."""

from pggan_fast.interop.official import from_official

__all__ = ["from_official"]
