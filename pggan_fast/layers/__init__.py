"""The layers: of the paper, and beyond it."""

from pggan_fast.layers.extra import MinibatchDiscrimination, ResidualBlock, SelfAttention2d, spectral_norm
from pggan_fast.layers.pggan import (
    Downsample2x,
    EqualizedConv2d,
    EqualizedLinear,
    FadeIn,
    MinibatchStdDev,
    PixelNorm,
    Upsample2x,
)

__all__ = [
    "Downsample2x",
    "EqualizedConv2d",
    "EqualizedLinear",
    "FadeIn",
    "MinibatchDiscrimination",
    "MinibatchStdDev",
    "PixelNorm",
    "ResidualBlock",
    "SelfAttention2d",
    "Upsample2x",
    "spectral_norm",
]
