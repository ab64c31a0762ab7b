"""The fused ops. Each is the fast implementation of its namesake in `pggan_fast.reference`."""

from pggan_fast.ops.activations import bias_act
from pggan_fast.ops.attention import attention
from pggan_fast.ops.bias_act import pixel_norm
from pggan_fast.ops.conv import equalized_conv2d
from pggan_fast.ops.dispatch import implementations, use_impl
from pggan_fast.ops.fade import fade_in, fade_reals
from pggan_fast.ops.filtered_lrelu import filtered_lrelu
from pggan_fast.ops.fold_cache import cache_folded_weights
from pggan_fast.ops.grid_sample import grid_sample
from pggan_fast.ops.grouped_conv import conv2d
from pggan_fast.ops.inductor_cache import tag_compiled_graphs
from pggan_fast.ops.linear import equalized_linear
from pggan_fast.ops.modulated_conv import conv2d_resample, modulated_conv2d, modulated_conv2d_stylegan3
from pggan_fast.ops.resample import downsample2x, upsample2x
from pggan_fast.ops.stddev import minibatch_stddev
from pggan_fast.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

tag_compiled_graphs()
kept_weights = cache_folded_weights  # its former name

__all__ = [
    "attention",
    "bias_act",
    "cache_folded_weights",
    "conv2d",
    "conv2d_resample",
    "downsample2d",
    "downsample2x",
    "equalized_conv2d",
    "equalized_linear",
    "fade_in",
    "fade_reals",
    "filter2d",
    "filtered_lrelu",
    "grid_sample",
    "implementations",
    "kept_weights",
    "minibatch_stddev",
    "modulated_conv2d",
    "modulated_conv2d_stylegan3",
    "pixel_norm",
    "setup_filter",
    "upfirdn2d",
    "upsample2d",
    "upsample2x",
    "use_impl",
]
