"""Fused kernels that make progressive GANs fast: torch ops, layers, whole networks and a trainer."""

# ruff: noqa: E402
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pggan_fast import _startup

if _startup.is_command_line():  # before torch is imported
    _startup.prepare()

from pggan_fast import _moved, compat, interop
from pggan_fast.layers import (
    Blur,
    Downsample2x,
    EqualizedConv2d,
    EqualizedLinear,
    FadeIn,
    FusedLeakyReLU,
    MinibatchDiscrimination,
    MinibatchStdDev,
    ModulatedConv2d,
    PixelNorm,
    ResidualBlock,
    SelfAttention2d,
    StyledConv2d,
    Upsample2x,
)
from pggan_fast.networks import Discriminator, Generator
from pggan_fast.ops import (
    attention,
    bias_act,
    cache_folded_weights,
    conv2d,
    conv2d_resample,
    downsample2d,
    downsample2x,
    equalized_conv2d,
    equalized_linear,
    fade_in,
    fade_reals,
    filter2d,
    filtered_lrelu,
    grid_sample,
    kept_weights,
    minibatch_stddev,
    modulated_conv2d,
    modulated_conv2d_stylegan3,
    pixel_norm,
    setup_filter,
    upfirdn2d,
    upsample2d,
    upsample2x,
    use_impl,
)

if TYPE_CHECKING:
    from pggan_fast.dropin import accelerate, explain, restore

_moved.install()


def __getattr__(name: str) -> Any:
    """Import what needs TorchDynamo at its first use: that takes as long as torch itself."""
    if name in ("accelerate", "explain", "restore"):
        from pggan_fast import dropin

        return getattr(dropin, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names of the module, those that are not imported yet too, for completion."""
    return sorted({*globals(), *__all__})


try:
    __version__ = version("pggan-fast")
except PackageNotFoundError:
    __version__ = "0+uninstalled"

__all__ = [
    "Blur",
    "Discriminator",
    "Downsample2x",
    "EqualizedConv2d",
    "EqualizedLinear",
    "FadeIn",
    "FusedLeakyReLU",
    "Generator",
    "MinibatchDiscrimination",
    "MinibatchStdDev",
    "ModulatedConv2d",
    "PixelNorm",
    "ResidualBlock",
    "SelfAttention2d",
    "StyledConv2d",
    "Upsample2x",
    "accelerate",
    "attention",
    "bias_act",
    "cache_folded_weights",
    "compat",
    "conv2d",
    "conv2d_resample",
    "downsample2d",
    "downsample2x",
    "equalized_conv2d",
    "equalized_linear",
    "explain",
    "fade_in",
    "fade_reals",
    "filter2d",
    "filtered_lrelu",
    "grid_sample",
    "interop",
    "kept_weights",
    "minibatch_stddev",
    "modulated_conv2d",
    "modulated_conv2d_stylegan3",
    "pixel_norm",
    "restore",
    "setup_filter",
    "upfirdn2d",
    "upsample2d",
    "upsample2x",
    "use_impl",
]
