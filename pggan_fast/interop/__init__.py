"""Weights from and to other implementations of progressive GANs, one file per format."""

from pggan_fast.interop.official import from_official
from pggan_fast.interop.pickles import load_official_pickle, read_official_pickle

__all__ = ["from_official", "load_official_pickle", "read_official_pickle"]
