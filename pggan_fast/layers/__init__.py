"""The layers: of the paper, and beyond it."""

from pggan_fast.layers.extra import (
    MinibatchDiscrimination,
    ResidualBlock,
    SelfAttention2d,
    normalize_spectra,
    spectral_norm,
    unscale_weights,
)
from pggan_fast.layers.pggan import (
    Downsample2x,
    EqualizedConv2d,
    EqualizedLinear,
    FadeIn,
    MinibatchStdDev,
    PixelNorm,
    Upsample2x,
)
from pggan_fast.layers.stylegan import Blur, FusedLeakyReLU, ModulatedConv2d, StyledConv2d

__all__ = [
    "Blur",
    "Downsample2x",
    "EqualizedConv2d",
    "EqualizedLinear",
    "FadeIn",
    "FusedLeakyReLU",
    "MinibatchDiscrimination",
    "MinibatchStdDev",
    "ModulatedConv2d",
    "PixelNorm",
    "ResidualBlock",
    "SelfAttention2d",
    "StyledConv2d",
    "Upsample2x",
    "normalize_spectra",
    "unscale_weights",
    "spectral_norm",
]
