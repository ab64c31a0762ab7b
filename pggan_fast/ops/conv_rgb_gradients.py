"""equalized_conv2d from and to images, on large channels_last tensors, by the passes of csrc/cuda/conv_rgb.cu.

What forward and backward read and write, in tensors of the output's size: sign bits are a 16th of one, and images with
their 3 channels less than a fifth where the output has 16.

| launch | reads | writes |
|---|---|---|
| forward | image | y, and for a later backward its sign bits |
| input gradient | dy, sign bits | image's gradient |
| weight and bias gradient | dy, sign bits, image | |
| second order: gradient of dy | gradient's gradient, sign bits | d(dy) |

To images, without an activation, in tensors of the input's size:

| launch | reads | writes |
|---|---|---|
| forward | x | image |
| input gradient | image's gradient | dx |
| weight and bias gradient | x, image's gradient | |

These are linear, so that gradients of any order are the same launches: `ops/closed_conv.py`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pggan_fast.ops.bias_act import bias_zeros, input_zeros, is_zeros, zeros_like
from pggan_fast.ops.closed_conv import conv_gradients
from pggan_fast.ops.conv_halo_gradients import differentiable_gradients
from pggan_fast.ops.conv_rgb import IMAGE_CHANNELS, conv_rgb_expand, conv_rgb_reduce, conv_rgb_weight_gradient
from pggan_fast.ops.registry import OpFunction, below_autograd, no_third_derivative, will_need_grad
from pggan_fast.ops.sign_bits import are_enough, has_passes, slopes_of
from pggan_fast.reference import accumulation_dtype


def takes(x: Tensor, weight: Tensor, geometry: tuple, options: tuple, impl: str) -> bool:
    """Whether these kernels compute equalized_conv2d and all its gradients here."""
    if impl != "native" or x.shape[1] not in IMAGE_CHANNELS or weight.shape[-1] != 1 or geometry != (0, 1, 1):
        return False
    if weight.dtype != torch.float32 or not are_enough(options) or not has_passes(x, weight.shape[0]):
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def _as_rows(t: Tensor) -> Tensor:
    """Return t, or a copy of it, as the kernels read wide tensors: channels_last at an address that 16 divides."""
    t = t.contiguous(memory_format=torch.channels_last)
    # Tensors without memory, which graphs are traced with, have no address.
    return t.clone() if type(t) is Tensor and t.data_ptr() % 16 else t


def _input_gradient(dy: Tensor, weight: Tensor, sign_bits: Tensor, options: tuple) -> Tensor:
    arguments = (_as_rows(dy), weight.transpose(0, 1), None, sign_bits, options[0], *slopes_of(options))
    return below_autograd(conv_rgb_reduce, *arguments)


def _weight_gradient(dy: Tensor, x: Tensor, weight: Tensor, sign_bits: Tensor, options: tuple) -> tuple[Tensor, Tensor]:
    """Return (dw, db)."""
    flat = below_autograd(conv_rgb_weight_gradient, _as_rows(dy), x, sign_bits, options[0], *slopes_of(options))
    c_out, c_in = weight.shape[:2]
    return flat[: c_in * c_out].view(c_in, c_out).t().reshape(weight.shape), flat[c_in * c_out :]


class RGBConv2d(OpFunction):
    """(x, weight, bias, epilogue's options, whether gradients are recorded) -> (y, r), r being empty."""

    @staticmethod
    def forward(ctx, x, weight, bias, options, recorded):
        ctx.options = options
        keep_signs = recorded and any(ctx.needs_input_grad)
        arguments = (x, weight, bias, None, options[0], *slopes_of(options), keep_signs)
        y, sign_bits = below_autograd(conv_rgb_expand, *arguments)
        r = x.new_empty(0, dtype=torch.float32)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(r)
        ctx.save_for_backward(x, weight, bias, sign_bits)
        return y, r

    @staticmethod
    def backward(ctx, dy, dr):
        if dy is None:
            return (None,) * 5
        x, weight, bias, sign_bits = ctx.saved_tensors
        needs = [will_need_grad(ctx, 0), will_need_grad(ctx, 1), bias is not None and will_need_grad(ctx, 2)]
        options = ctx.options
        if torch.is_grad_enabled():
            if needs == [True, False, False]:
                return _MaskedInputGradient.apply(dy, sign_bits, weight, options), *(None,) * 4
            return *differentiable_gradients(dy, None, x, weight, bias, (0, 1, 1), options, needs), None, None
        dx = _input_gradient(dy, weight, sign_bits, options) if needs[0] else None
        dw = db = None
        if needs[1] or needs[2]:
            dw, db = _weight_gradient(dy, x, weight, sign_bits, options)
        return dx, dw if needs[1] else None, db.to(bias.dtype) if needs[2] else None, None, None


class _MaskedInputGradient(OpFunction):
    """(dy, sign bits, weight, epilogue's options) -> dx."""

    @staticmethod
    def forward(ctx, dy, sign_bits, weight, options):
        ctx.save_for_backward(dy, sign_bits, weight)
        ctx.options = options
        return _input_gradient(dy, weight, sign_bits, options)

    @staticmethod
    @no_third_derivative
    def backward(ctx, g):
        dy, sign_bits, weight = ctx.saved_tensors
        options, d_dy, dw = ctx.options, None, None
        g = g.contiguous(memory_format=torch.channels_last)
        if ctx.needs_input_grad[0]:
            arguments = (g, weight, None, sign_bits, options[0], *slopes_of(options), False)
            d_dy = below_autograd(conv_rgb_expand, *arguments)[0]
        if will_need_grad(ctx, 2):
            dw = _weight_gradient(dy, g, weight, sign_bits, options)[0]
        return d_dy, None, dw, None


def takes_to_image(x: Tensor, weight: Tensor, geometry: tuple, options: tuple, impl: str) -> bool:
    """Whether these kernels compute equalized_conv2d to images and all its gradients here."""
    _, act, _, gain, pixel_norm, _ = options
    if impl != "native" or weight.shape[0] not in IMAGE_CHANNELS or weight.shape[-1] != 1 or geometry != (0, 1, 1):
        return False
    # The kernels take no gain that is 0 or less.
    if weight.dtype != torch.float32 or act != "linear" or gain <= 0 or pixel_norm or not has_passes(x, x.shape[1]):
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and x.data_ptr() % 16 == 0


class ToImage(NamedTuple):
    """A `closed_conv.BareConvolution`: 1 x 1 to 1 or 3 channels, with weights times `scale` and `gain`."""

    scale: float
    gain: float = 1.0

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return below_autograd(conv_rgb_reduce, _as_rows(x), weight, None, None, self.scale, self.gain, self.gain)

    def gradients(
        self, dz: Tensor, x: Tensor, weight: Tensor, output_mask: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        return self.all_gradients(dz, x, weight, (*output_mask, False))[:2]

    def all_gradients(
        self, dz: Tensor, x: Tensor, weight: Tensor, output_mask: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return also the gradient of a bias times `gain`, from the launch that computes the weight's."""
        needs_dx, needs_dw, needs_db = output_mask
        dx = dw = db = None
        if needs_dx:
            arguments = (dz, weight.transpose(0, 1), None, None, self.scale, self.gain, self.gain, False)
            dx = below_autograd(conv_rgb_expand, *arguments)[0]
        if needs_dw:
            arguments = (_as_rows(x), dz, None, self.scale, self.gain, self.gain, True)
            flat = below_autograd(conv_rgb_weight_gradient, *arguments)
            dw, db = flat[: weight.numel()].view(weight.shape), flat[weight.numel() :]
        elif needs_db:
            db = self.bias_gradient(dz)
        return dx, dw, db if needs_db else None

    def bias_gradient(self, dz: Tensor) -> Tensor:
        """Return the gradient of a bias times `gain`, by torch, in fp32 (fp64 for fp64)."""
        return self.gain * dz.sum((0, 2, 3), dtype=accumulation_dtype(dz.dtype))


class ToImageConv2d(OpFunction):
    """(x, weight, bias, epilogue's options) -> (y, r), r being empty."""

    @staticmethod
    def forward(ctx, x, weight, bias, options):
        ctx.options, ctx.bias_dtype = options, None if bias is None else bias.dtype
        y = below_autograd(conv_rgb_reduce, x, weight, bias, None, options[0], *slopes_of(options))
        r = x.new_empty(0, dtype=torch.float32)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(r)
        ctx.save_for_backward(x, weight)
        return y, r

    @staticmethod
    def backward(ctx, dy, dr):
        if dy is None:
            return (None,) * 4
        x, weight = ctx.saved_tensors
        if is_zeros(dy):
            return input_zeros(x), zeros_like(weight), bias_zeros(ctx, dy), None
        conv = ToImage(ctx.options[0], slopes_of(ctx.options)[0])
        dy = dy.contiguous(memory_format=torch.channels_last)
        *others, needs_db = (will_need_grad(ctx, i) for i in range(3))
        needs_db = needs_db and ctx.bias_dtype is not None
        if torch.is_grad_enabled():
            dx, dw = conv_gradients(dy, x, weight, others, conv)
            db = conv.bias_gradient(dy) if needs_db else None
        else:
            dx, dw, db = conv.all_gradients(dy, x, weight, (*others, needs_db))
        return dx, dw, db if db is None else db.to(ctx.bias_dtype), None
