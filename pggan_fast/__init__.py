"""Fused kernels that make progressive GANs fast: torch ops, layers, whole networks and a trainer."""

# ruff: noqa: E402
from importlib.metadata import PackageNotFoundError, version

from pggan_fast import _startup

if _startup.is_command_line():  # before torch is imported
    _startup.prepare()

from pggan_fast import _moved
from pggan_fast.dropin import accelerate, explain, restore
from pggan_fast.layers import (
    Downsample2x,
    EqualizedConv2d,
    EqualizedLinear,
    FadeIn,
    MinibatchDiscrimination,
    MinibatchStdDev,
    PixelNorm,
    ResidualBlock,
    SelfAttention2d,
    Upsample2x,
)
from pggan_fast.networks import Discriminator, Generator
from pggan_fast.ops import (
    bias_act,
    downsample2x,
    equalized_conv2d,
    equalized_linear,
    fade_in,
    fade_reals,
    kept_weights,
    minibatch_stddev,
    pixel_norm,
    upsample2x,
    use_impl,
)

_moved.install()

try:
    __version__ = version("pggan-fast")
except PackageNotFoundError:
    __version__ = "0+uninstalled"

__all__ = [
    "Discriminator",
    "Downsample2x",
    "EqualizedConv2d",
    "EqualizedLinear",
    "FadeIn",
    "Generator",
    "MinibatchDiscrimination",
    "MinibatchStdDev",
    "PixelNorm",
    "ResidualBlock",
    "SelfAttention2d",
    "Upsample2x",
    "accelerate",
    "bias_act",
    "downsample2x",
    "equalized_conv2d",
    "equalized_linear",
    "explain",
    "fade_in",
    "fade_reals",
    "kept_weights",
    "minibatch_stddev",
    "pixel_norm",
    "restore",
    "upsample2x",
    "use_impl",
]
