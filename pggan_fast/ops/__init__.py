"""The fused ops. Each is the fast form of its namesake in `pggan_fast.reference`."""

from pggan_fast.ops.bias_act import bias_act, pixel_norm
from pggan_fast.ops.conv import equalized_conv2d
from pggan_fast.ops.dispatch import implementations, use_impl
from pggan_fast.ops.fade import fade_in, fade_reals
from pggan_fast.ops.fold_cache import cache_folded_weights
from pggan_fast.ops.linear import equalized_linear
from pggan_fast.ops.resample import downsample2x, upsample2x
from pggan_fast.ops.stddev import minibatch_stddev

kept_weights = cache_folded_weights  # its former name

__all__ = [
    "bias_act",
    "cache_folded_weights",
    "downsample2x",
    "equalized_conv2d",
    "equalized_linear",
    "fade_in",
    "fade_reals",
    "implementations",
    "kept_weights",
    "minibatch_stddev",
    "pixel_norm",
    "upsample2x",
    "use_impl",
]
