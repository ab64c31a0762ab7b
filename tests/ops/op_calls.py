"""Arguments for every op of torch.ops.pggan_fast, the gradients' own ops included, as the dispatcher takes them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pggan_fast.ops import wasserstein  # noqa: F401 - which defines an op that the package does not need
from tests.ops.samples import laid_out

# scale, act, slope, gain, pixel_norm
NORM = (0.7, "lrelu", 0.2, 1.3, True)
PLAIN = (0.7, "lrelu", 0.2, 1.3, False)
LINEAR = (0.7, "linear", 0.2, 1.3, False)
EPS = 1e-8

IMAGE, FACTORS = (2, 5, 3, 4), (2, 1, 3, 4)

HALO = ("pixel_norm", 0.7, 1.3, 0.2, EPS, False)
# scale, the slopes of positive and of other values
SLOPES = (0.7, 0.2, 1.3)
HALO_SIGNS = ("epilogue", 0.7, 1.3, 0.2, EPS, True)


class Make:
    """Draws the tensors of a call in one dtype and layout."""

    def __init__(self, dtype: torch.dtype, layout: str = "contiguous", requires_grad: bool = False):
        self.dtype, self.layout, self.requires_grad = dtype, layout, requires_grad
        self.random = torch.Generator().manual_seed(5)

    def __call__(self, *shape: int) -> Tensor:
        return self._finish(laid_out(self._draw(shape).to(self.dtype), self.layout))

    def wide(self, *shape: int) -> Tensor:
        """In the accumulation dtype, as biases' gradients and r are: positive, contiguous."""
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        return self._finish(self._draw(shape).abs().to(dtype) + 0.1)

    def alpha(self) -> Tensor:
        """0-d and fp32; a gradient check in fp64 cannot have its gradient."""
        alpha = torch.tensor(0.3)
        return alpha if self.dtype == torch.float64 else self._finish(alpha)

    def filter(self, *shape: int) -> Tensor:
        """A constant in fp32."""
        return self._draw(shape).float()

    def _draw(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=self.random)

    def _finish(self, t: Tensor) -> Tensor:
        return t.requires_grad_(self.requires_grad)


class Call(NamedTuple):
    op: str
    label: str
    arguments: Callable[[Make], tuple]
    differentiable: bool = True

    def __str__(self) -> str:
        return f"{self.op}-{self.label}"

    @property
    def has_gpu_kernel(self) -> bool:
        """Convolutions, matrix products and attention are torch's own; only those on the CPU change a layout first.

        `activation` is a composite of torch's functions on a GPU, and so is `wasserstein_1d`.
        """
        # Those of halo tiles, of images and by sign bits are for few dtypes and channels: files of their own in
        # tests/cuda_on_cpu run them.
        for_few = ("conv_halo", "conv_rgb", "bias_act_with_sign_bits", "bias_act_backward_by_sign_bits")
        torchs = ("equalized_conv2d", "equalized_linear", "to_layout", "attention", "activation", "wasserstein")
        return not self.op.startswith((*torchs, *for_few))

    @property
    def overload(self) -> torch._ops.OpOverload:
        return getattr(torch.ops.pggan_fast, self.op).default

    @property
    def triton(self) -> torch._ops.OpOverload | None:
        """The op's Triton implementation, where it has one."""
        packet = getattr(torch.ops.pggan_fast_triton, self.op, None)
        return None if packet is None else packet.default


def bits(*shape: int) -> Tensor:
    return torch.arange(math.prod(shape), dtype=torch.int32).view(shape) * 0x1234567


def channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


CALLS = [
    Call("bias_act", "norm", lambda t: (t(*IMAGE), t(5), *NORM, EPS)),
    Call("bias_act", "plain", lambda t: (t(*IMAGE), t(5), *PLAIN, EPS)),
    Call("bias_act", "no_bias", lambda t: (t(*IMAGE),)),
    Call("bias_act", "linear", lambda t: (t(*IMAGE), t(5), *LINEAR)),
    Call("bias_act", "dense", lambda t: (t(3, 7), t(7), *NORM)),
    Call("bias_act_", "norm", lambda t: (t(*IMAGE), t(5), *NORM, EPS), False),
    Call("bias_act_", "plain", lambda t: (t(*IMAGE),), False),
    Call(
        "bias_act_backward", "norm", lambda t: (t(*IMAGE), t.wide(*FACTORS), t(*IMAGE), t.wide(*FACTORS), *NORM, True)
    ),
    Call("bias_act_backward", "no_dr", lambda t: (t(*IMAGE), None, t(*IMAGE), t.wide(*FACTORS), *NORM, False)),
    Call("bias_act_backward", "plain", lambda t: (t(*IMAGE), None, t(*IMAGE), None, *PLAIN, True)),
    Call(
        "bias_act_double_backward",
        "norm",
        lambda t: (
            *(t(*IMAGE), t.wide(5), t(*IMAGE), t.wide(*FACTORS), t(*IMAGE), t.wide(*FACTORS)),
            *NORM,
        ),
        False,
    ),
    Call(
        "bias_act_double_backward",
        "bias_only",
        lambda t: (None, t.wide(5), t(*IMAGE), None, t(*IMAGE), t.wide(*FACTORS), *NORM),
        False,
    ),
    Call(
        "bias_act_double_backward",
        "plain",
        lambda t: (t(*IMAGE), None, t(*IMAGE), None, t(*IMAGE), None, *PLAIN),
        False,
    ),
    Call("activation", "lrelu", lambda t: (t(*IMAGE), t(5), 0.7, "lrelu", 0.2, 1.3, 0.9)),
    Call("activation", "swish", lambda t: (t(*IMAGE), t(5), 0.7, "swish", 0.2, 1.3, 0.9)),
    Call("activation", "tanh", lambda t: (t(*IMAGE), None, 0.7, "tanh")),
    Call("activation", "sigmoid", lambda t: (t(*IMAGE), t(5), 0.7, "sigmoid", 0.2, 1.3, 0.9)),
    Call("activation_backward", "sigmoid", lambda t: (t(*IMAGE), t(*IMAGE), None, 0.7, "sigmoid", 0.2, 1.3, 0.9, True)),
    Call("activation_backward", "lrelu", lambda t: (t(*IMAGE), t(*IMAGE), None, 0.7, "lrelu", 0.2, 1.3, 0.9, True)),
    Call("activation_backward", "swish", lambda t: (t(*IMAGE), t(*IMAGE), t(5), 0.7, "swish", 0.2, 1.3, 0.9, True)),
    Call("activation_backward", "selu", lambda t: (t(*IMAGE), t(*IMAGE), t(5), 0.7, "selu")),
    Call(
        "activation_double_backward",
        "lrelu",
        lambda t: (t(*IMAGE), t.wide(5), t(*IMAGE), t(*IMAGE), None, 0.7, "lrelu", 0.2, 1.3, 0.9, True),
        False,
    ),
    Call(
        "activation_double_backward",
        "sigmoid",
        lambda t: (t(*IMAGE), t.wide(5), t(*IMAGE), t(*IMAGE), t(5), 0.7, "sigmoid", 0.2, 1.3, 0.9, True),
        False,
    ),
    Call(
        "activation_double_backward",
        "softplus",
        lambda t: (t(*IMAGE), None, t(*IMAGE), t(*IMAGE), t(5), 0.7, "softplus", 0.2, 1.3, 0.9, True),
        False,
    ),
    Call("attention", "square", lambda t: (t(2, 5, 3), t(2, 5, 3), t(2, 5, 4), 0.7)),
    Call("attention", "other_keys", lambda t: (t(2, 5, 3), t(2, 6, 3), t(2, 6, 1), 0.7)),
    Call("attention_backward", "square", lambda t: (t(2, 5, 4), t(2, 5, 3), t(2, 6, 3), t(2, 6, 4), 0.7)),
    Call(
        "attention_double_backward",
        "square",
        lambda t: (t(2, 5, 3), t(2, 6, 3), t(2, 6, 4), t(2, 5, 4), t(2, 5, 3), t(2, 6, 3), t(2, 6, 4), 0.7),
        False,
    ),
    Call("equalized_conv2d", "norm", lambda t: (t(2, 3, 5, 4), t(4, 3, 3, 3), t(4), 1, 1, 1, *NORM, EPS)),
    Call("equalized_conv2d", "up", lambda t: (t(2, 3, 3, 4), t(4, 3, 3, 3), t(4), 1, 2, 1, *NORM)),
    Call("equalized_conv2d", "down", lambda t: (t(2, 3, 5, 6), t(4, 3, 3, 3), t(4), 1, 1, 2, *PLAIN)),
    Call("equalized_conv2d", "no_bias", lambda t: (t(2, 3, 3, 4), t(4, 3, 1, 1), None, 0, 1, 1, *LINEAR)),
    Call(
        "equalized_conv2d_with_sign_bits",
        "lrelu",
        lambda t: (t(2, 3, 5, 4), t(40, 3, 3, 3), t(40), 1, 1, 1, *PLAIN, EPS),
        False,
    ),
    Call("equalized_linear", "norm", lambda t: (t(3, 5), t(4, 5), t(4), *NORM)),
    Call("equalized_linear", "no_bias", lambda t: (t(3, 5), t(4, 5), None, *PLAIN)),
    Call("fold_weight", "up", lambda t: (t(4, 3, 3, 3), 1.0, True, t.dtype, True), False),
    Call("fold_weight", "down", lambda t: (t(4, 3, 3, 3), 0.25, False, t.dtype, False), False),
    Call("unfold_weight", "up", lambda t: (t(3, 4, 4, 4), 1.0, True, t.dtype, True), False),
    Call("unfold_weight", "down", lambda t: (t(4, 3, 4, 4), 0.25, False, t.dtype, False), False),
    Call("to_layout", "channels_last", lambda t: (t(2, 3, 4, 5), True), False),
    Call("to_layout", "contiguous", lambda t: (t(2, 3, 4, 5), False), False),
    Call("conv_halo", "norm", lambda t: (t(2, 3, 5, 4), t(4, 3, 3, 3), t(4), None, False, 1, 5, 4, *HALO), False),
    Call("conv_halo", "signs", lambda t: (t(2, 3, 3, 4), t(3, 4, 4, 4), t(4), None, True, 2, 6, 8, *HALO_SIGNS), False),
    Call("conv_halo_weight_gradient", "down", lambda t: (t(2, 4, 3, 4), t(2, 3, 6, 8), None, 2, 0.7, 1.3, 0.2), False),
    Call("bias_act_with_sign_bits_", "lrelu", lambda t: (t(*IMAGE), t(5), 0.7, 0.2, 1.3), False),
    Call("bias_act_backward_by_sign_bits", "bias", lambda t: (t(2, 37, 3, 4), bits(2, 3, 4, 2), *SLOPES, True), False),
    Call("bias_act_backward_by_sign_bits", "none", lambda t: (t(*IMAGE), bits(2, 3, 4, 1), *SLOPES, False), False),
    Call("conv_rgb_expand", "signs", lambda t: (t(2, 3, 3, 4), t(37, 3, 1, 1), t(37), None, *SLOPES, True), False),
    Call(
        "conv_rgb_expand",
        "mask",
        lambda t: (t(2, 1, 3, 4), t(5, 1, 1, 1), None, bits(2, 3, 4, 1), *SLOPES, True),
        False,
    ),
    Call("conv_rgb_reduce", "bias", lambda t: (t(*IMAGE), t(3, 5, 1, 1), t(3), None, *SLOPES), False),
    Call("conv_rgb_reduce", "mask", lambda t: (t(*IMAGE), t(3, 5, 1, 1), None, bits(2, 3, 4, 1), *SLOPES), False),
    Call("conv_rgb_weight_gradient", "mask", lambda t: (t(*IMAGE), t(2, 3, 3, 4), bits(2, 3, 4, 1), *SLOPES), False),
    Call("conv_rgb_weight_gradient", "narrow", lambda t: (t(*IMAGE), t(2, 3, 3, 4), None, *SLOPES, True), False),
    Call("upsample2x", "even", lambda t: (t(2, 3, 3, 4),)),
    Call("upsample2x", "extra", lambda t: (t(2, 3, 3, 4), 0.25, 1, 1)),
    Call("downsample2x", "even", lambda t: (t(2, 3, 4, 6),)),
    Call("downsample2x", "odd", lambda t: (t(2, 3, 5, 7), 1.0)),
    Call("fade_in", "tensor", lambda t: (t(2, 3, 3, 4), t(2, 3, 6, 8), t.alpha())),
    Call("fade_in", "number", lambda t: (t(2, 3, 3, 4), t(2, 3, 6, 8), None, 0.3)),
    Call("fade_in_backward", "tensor", lambda t: (t(2, 3, 6, 8), t.alpha())),
    Call("fade_in_backward", "number", lambda t: (t(2, 3, 6, 8), None, 0.3)),
    Call("blend_backward", "tensor", lambda t: (t(2, 3, 6, 8), t.alpha())),
    Call("blend_backward", "number", lambda t: (t(2, 3, 6, 8), None, 0.3)),
    Call("fade_reals", "tensor", lambda t: (t(2, 3, 4, 6), t.alpha(), 0.0, t.dtype)),
    Call("fade_reals", "number", lambda t: (t(2, 3, 4, 6), None, 0.3, t.dtype)),
    Call("fade_reals", "uint8", lambda t: (torch.arange(144, dtype=torch.uint8).view(2, 3, 4, 6), None, 0.3, t.dtype)),
    Call("wasserstein_1d", "rows", lambda t: (t.filter(3, 20), t.filter(3, 20), t.filter(3)), False),
    Call("upfirdn2d", "up", lambda t: (t(2, 3, 3, 4), t.filter(4), 2, 2, 1, 1, 2, 1, 2, 1, False, 4.0)),
    Call("upfirdn2d", "down", lambda t: (t(2, 3, 6, 5), t.filter(4, 3), 1, 1, 2, 2, 1, 1, 1, 1, True)),
    Call("upfirdn2d", "apart", lambda t: (t(2, 3, 4, 5), t.filter(10), 3, 2, 1, 3, 9, 8, -1, 9)),
    Call(
        "filtered_lrelu",
        "up",
        lambda t: (t(2, 3, 3, 4), t(3), t.filter(6), t.filter(4), 2, 1, 4, 3, 5, 3, False, 1.3, 0.2, 0.9),
    ),
    Call(
        "filtered_lrelu",
        "down",
        lambda t: (t(2, 3, 6, 5), None, t.filter(1), t.filter(5), 1, 2, 1, 2, -1, 1, True, 1.0, 0.0, None, True),
    ),
    Call(
        "filtered_lrelu_masked",
        "down",
        lambda t: (
            *(t(2, 3, 4, 5), torch.arange(144, dtype=torch.uint8).view(2, 3, 3, 2, 4), t.filter(4), t.filter(6)),
            *(1, 2, -1, 3, 4, 1, 9, 8, 5, 4, False, 1.3, 0.2),
        ),
    ),
    Call("minibatch_stddev", "strided", lambda t: (t(4, 6, 2, 3), 2, 2, EPS, True, 0)),
    Call("minibatch_stddev", "consecutive", lambda t: (t(6, 4, 2, 3), 3, 1, EPS, False, 1)),
    Call("minibatch_stddev_backward", "strided", lambda t: (t(4, 8, 2, 3), t(4, 6, 2, 3), 4, 2, EPS, True, 0)),
    Call("minibatch_stddev_backward", "consecutive", lambda t: (t(6, 5, 2, 3), t(6, 4, 2, 3), 3, 1, EPS, False, 1)),
    Call(
        "minibatch_stddev_double_backward",
        "strided",
        lambda t: (t(4, 6, 2, 3), t(4, 8, 2, 3), t(4, 6, 2, 3), 4, 2, EPS, True, 0),
        False,
    ),
    Call(
        "minibatch_stddev_double_backward",
        "consecutive",
        lambda t: (t(6, 4, 2, 3), t(6, 5, 2, 3), t(6, 4, 2, 3), 3, 1, EPS, False, 1),
        False,
    ),
]

# Large enough for `auto` to take a fused launch on a GPU, in the layout that it is made for.
FUSED_CALLS = [
    Call(
        "equalized_conv2d",
        "fused_norm",
        lambda t: (channels_last(t(1, 16, 256, 256)), t(16, 16, 3, 3), t(16), 1, 1, 1, *NORM, EPS),
    ),
    Call(
        "equalized_conv2d",
        "fused_up",
        lambda t: (channels_last(t(1, 32, 128, 128)), t(16, 32, 3, 3), t(16), 1, 2, 1, *NORM, EPS),
    ),
    Call(
        "equalized_conv2d_with_sign_bits",
        "fused_down",
        lambda t: (channels_last(t(1, 16, 256, 256)), t(32, 16, 3, 3), t(32), 1, 1, 2, *PLAIN, EPS),
    ),
]
