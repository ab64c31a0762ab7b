"""The fused ops. Each is the fast form of its namesake in `pggan_fast.reference`."""

from pggan_fast.ops.bias_act import bias_act, pixel_norm
from pggan_fast.ops.conv import equalized_conv2d
from pggan_fast.ops.dispatch import implementations, use_impl
from pggan_fast.ops.fade import fade_in, fade_reals
from pggan_fast.ops.fold import kept_weights
from pggan_fast.ops.linear import equalized_linear
from pggan_fast.ops.resample import downsample2x, upsample2x
from pggan_fast.ops.stddev import minibatch_stddev
from pggan_fast.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

__all__ = [
    "bias_act",
    "downsample2d",
    "downsample2x",
    "equalized_conv2d",
    "equalized_linear",
    "fade_in",
    "fade_reals",
    "filter2d",
    "implementations",
    "kept_weights",
    "minibatch_stddev",
    "pixel_norm",
    "setup_filter",
    "upfirdn2d",
    "upsample2d",
    "upsample2x",
    "use_impl",
]
