"""Weights from and to other implementations of progressive GANs, one file per format."""

from pggan_fast.interop import hub
from pggan_fast.interop.gan_zoo import from_gan_zoo, to_gan_zoo
from pggan_fast.interop.official import from_official
from pggan_fast.interop.pickles import load_official_pickle, read_official_pickle
from pggan_fast.interop.pro_gan_pth import from_pro_gan_pth, to_pro_gan_pth

__all__ = [
    "from_gan_zoo",
    "from_official",
    "from_pro_gan_pth",
    "hub",
    "load_official_pickle",
    "read_official_pickle",
    "to_gan_zoo",
    "to_pro_gan_pth",
]
