"""equalized_conv2d from images, on large channels_last tensors, by the passes of csrc/cuda/conv_rgb.cu.

What forward and backward read and write, in tensors of the output's size: sign bits are a 16th of one, and images with
their 3 channels less than a fifth where the output has 16.

| launch | reads | writes |
|---|---|---|
| forward | image | y, and for a later backward its sign bits |
| input gradient | dy, sign bits | image's gradient |
| weight and bias gradient | dy, sign bits, image | |
| second order: gradient of dy | gradient's gradient, sign bits | d(dy) |
"""

import torch
from torch import Tensor

from pggan_fast.ops.conv_halo_gradients import differentiable_gradients
from pggan_fast.ops.conv_rgb import IMAGE_CHANNELS, conv_rgb_expand, conv_rgb_reduce, conv_rgb_weight_gradient
from pggan_fast.ops.registry import OpFunction, below_autograd, no_third_derivative, will_need_grad
from pggan_fast.ops.sign_bits import are_enough, has_passes, slopes_of


def takes(x: Tensor, weight: Tensor, geometry: tuple, options: tuple, impl: str) -> bool:
    """Whether these kernels compute equalized_conv2d and all its gradients here."""
    if impl != "native" or x.shape[1] not in IMAGE_CHANNELS or weight.shape[-1] != 1 or geometry != (0, 1, 1):
        return False
    if weight.dtype != torch.float32 or not are_enough(options) or not has_passes(x, weight.shape[0]):
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def _input_gradient(dy: Tensor, weight: Tensor, sign_bits: Tensor, options: tuple) -> Tensor:
    arguments = (dy, weight.transpose(0, 1), None, sign_bits, options[0], *slopes_of(options))
    return below_autograd(conv_rgb_reduce, *arguments)


def _weight_gradient(dy: Tensor, x: Tensor, weight: Tensor, sign_bits: Tensor, options: tuple) -> tuple[Tensor, Tensor]:
    """Return (dw, db)."""
    flat = below_autograd(conv_rgb_weight_gradient, dy, x, sign_bits, options[0], *slopes_of(options))
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
