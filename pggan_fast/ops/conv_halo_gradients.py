"""equalized_conv2d of 16 and 32 channels on large channels_last images, by the halo-tile kernels of csrc/cuda.

What forward and backward read and write, in tensors of the output's size; sign bits are a 16th of one or less:

| launch | reads | writes |
|---|---|---|
| forward | x | y, and for a later backward without pixel norm the sign bits of y |
| input gradient | dy, sign bits | dx |
| weight and bias gradient | dy, sign bits, x | |
| second order: gradient of dy | g, sign bits | d(dy) |

Each value is taken back through the activation once, in shared memory. With pixel norm, and after upsampling, a launch
of bias_act's backward writes the gradient of the convolution's output first, and the others read that.
"""

import torch
from torch import Tensor

from pggan_fast.ops.conv_halo import (
    conv_halo,
    conv_halo_weight_gradient,
    exists,
    has_weight_gradient,
    needs_more_memory,
)
from pggan_fast.ops.fold import fold_weight, unfold_gradient
from pggan_fast.ops.registry import OpFunction, below_autograd, no_third_derivative, will_need_grad
from pggan_fast.ops.sign_bits import has_gpu_kernels, slopes_of

# Rows and columns of the larger image from which on a launch fills a GPU with tiles.
SMALLEST = 256


def takes(x: Tensor, weight: Tensor, geometry: tuple, options: tuple, impl: str) -> bool:
    """Whether these kernels compute equalized_conv2d and all its gradients here; where not, cuDNN or Triton do."""
    padding, up, down = geometry
    (c_out, c_in, k, _), stride = weight.shape, max(up, down)
    if impl != "native" or type(x) is not Tensor or (k, padding) != (3, 1) or min(x.shape[2:]) * up < SMALLEST:
        return False
    if not _may_multiply(x.dtype) or not _has_kernels(x, needs_more_memory(x.dtype, c_in, c_out, stride)):
        return False
    if not x.is_contiguous(memory_format=torch.channels_last) or x.data_ptr() % 16:
        return False
    act, slope = options[1:3]
    # relu sets values to 0, which a slope of 0 does not do to infinity.
    if act == "relu" or (act == "lrelu" and slope == 0) or options[3] <= 0:
        return False
    # Pixel norm undoes the weight's scale if it is positive, and the kernel leaves it out.
    if options[4] and options[0] <= 0:
        return False
    both_ways = exists(x.dtype, c_in, c_out, up == 2, stride) and exists(x.dtype, c_out, c_in, up == 1, stride)
    return both_ways and has_weight_gradient(x.dtype, *((c_in, c_out) if up == 2 else (c_out, c_in)), stride)


def _may_multiply(dtype: torch.dtype) -> bool:
    """Whether tensor cores may multiply values of this dtype: fp32 as tf32 where cuDNN's convolutions may."""
    return dtype.itemsize == 2 or (dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32")


def _has_kernels(x: Tensor, more_memory: bool) -> bool:
    if not has_gpu_kernels(x):
        return False
    gpu = torch.cuda.get_device_properties(x.device)
    return gpu.major >= 8 and (not more_memory or gpu.shared_memory_per_multiprocessor >= 160 << 10)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple, options: tuple, keep_signs: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (y, r, sign bits) of equalized_conv2d; r is empty without pixel norm, sign bits unless `keep_signs`."""
    scale, _, _, _, pixel_norm, eps = options
    _, up, down = geometry
    size = [length * up // down for length in x.shape[2:]]
    fused = "pixel_norm" if pixel_norm else "epilogue"
    return _convolve(x, weight, bias, None, geometry, size, fused, scale, *slopes_of(options), eps, keep_signs)


def _convolve(x, weight, bias, mask, geometry, size, fused, scale, positive, negative, eps=0.0, keep_signs=False):
    _, up, down = geometry
    filters = fold_weight(weight, x.dtype, True, up, down)
    epilogue = (fused, scale, positive, negative, eps, keep_signs)
    return below_autograd(conv_halo, x, filters, bias, mask, up == 2, max(up, down), *size, *epilogue)


def _input_gradient(dy, weight, mask, geometry, size, scale, slopes) -> Tensor:
    """Return dx of the given size: dy is taken back through the activation by `mask`, unless that is None."""
    _, up, down = geometry
    filters = fold_weight(weight, dy.dtype, True, up, down)
    fused, slopes = ("epilogue", (1.0, 1.0)) if mask is None else ("in_mask", slopes)
    epilogue = (fused, scale, *slopes, 0.0, False)
    return below_autograd(conv_halo, dy, filters, None, mask, up == 1, max(up, down), *size, *epilogue)[0]


def _weight_gradient(dy, x, weight, mask, geometry, scale, slopes) -> tuple[Tensor, Tensor]:
    """Return (dw, the sums of what dy becomes over all but channels, in fp32)."""
    _, up, down = geometry
    a, b = (x, dy) if up == 2 else (dy, x)
    slopes = (1.0, 1.0) if mask is None else slopes
    flat = below_autograd(conv_halo_weight_gradient, a, b, mask, max(up, down), scale, *slopes)
    channels, k = a.shape[1], 3 if max(up, down) == 1 else 4
    filters = flat[:-channels].view(channels, k, k, b.shape[1]).permute(0, 3, 1, 2)
    return unfold_gradient(filters, weight, up, down), flat[-channels:]


class HaloConv2d(OpFunction):
    """(x, weight, bias, geometry, epilogue's options, whether gradients are recorded) -> (y, r)."""

    @staticmethod
    def forward(ctx, x, weight, bias, geometry, options, recorded):
        ctx.geometry, ctx.options = geometry, options
        recorded = recorded and any(ctx.needs_input_grad)
        ctx.by_signs = not options[4] and geometry[1] == 1
        keep_signs = recorded and ctx.by_signs
        y, r, signs = forward(x, weight, bias, geometry, options, keep_signs)
        ctx.save_for_backward(x, weight, bias, *((signs, None) if ctx.by_signs else (y, r)))
        return y, r

    @staticmethod
    def backward(ctx, dy, dr):
        if dy is None and dr is None:
            return (None,) * 6
        x, weight, bias, kept, r = ctx.saved_tensors
        needs = [will_need_grad(ctx, 0), will_need_grad(ctx, 1), bias is not None and will_need_grad(ctx, 2)]
        geometry, options = ctx.geometry, ctx.options
        dy = torch.zeros_like(kept) if dy is None else dy
        dy = dy.contiguous(memory_format=torch.channels_last)
        if torch.is_grad_enabled():
            if needs == [True, False, False] and ctx.by_signs:
                dx = _MaskedInputGradient.apply(dy, kept, weight, x.detach(), geometry, options)
                return dx, *(None,) * 5
            return *differentiable_gradients(dy, dr, x, weight, bias, geometry, options, needs), None, None, None
        scale, slopes, mask, db = options[0], slopes_of(options), kept, None
        if not ctx.by_signs:
            pixel_norm = options[4]
            arguments = (dy, dr if pixel_norm else None, kept, r if pixel_norm else None, *options[:5], needs[2])
            dy, db = below_autograd(torch.ops.pggan_fast.bias_act_backward.default, *arguments)
            scale, mask = 1.0, None
        dx = _input_gradient(dy, weight, mask, geometry, x.shape[2:], scale, slopes) if needs[0] else None
        dw = None
        if needs[1] or (needs[2] and ctx.by_signs):
            dw, sums = _weight_gradient(dy, x, weight, mask, geometry, scale, slopes)
            db = sums if ctx.by_signs else db
        dw = dw if needs[1] else None
        return dx, dw, db.to(bias.dtype) if needs[2] else None, None, None, None


def differentiable_gradients(dy, dr, x, weight, bias, geometry, options, needs) -> list[Tensor | None]:
    """Return equalized_conv2d's gradients with a graph of their own, by way of the general formula. dr may be None."""
    from pggan_fast.ops.conv import EqualizedConv2d

    outputs = EqualizedConv2d.apply(x, weight, bias, geometry, options, "native", True)
    pairs = [(o, g) for o, g in zip(outputs, (dy, dr), strict=True) if g is not None and o.requires_grad]
    inputs = [t for t, needed in zip((x, weight, bias), needs, strict=True) if needed]
    values, upstream = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(values, inputs, upstream, create_graph=True, allow_unused=True))
    return [next(found) if needed else None for needed in needs]


class _MaskedInputGradient(OpFunction):
    """(dy, sign bits, weight, like x, geometry, epilogue's options) -> dx."""

    @staticmethod
    def forward(ctx, dy, signs, weight, like, geometry, options):
        ctx.save_for_backward(dy, signs, weight)
        ctx.geometry, ctx.options = geometry, options
        return _input_gradient(dy, weight, signs, geometry, like.shape[2:], options[0], slopes_of(options))

    @staticmethod
    @no_third_derivative
    def backward(ctx, g):
        dy, signs, weight = ctx.saved_tensors
        geometry, options = ctx.geometry, ctx.options
        g, d_dy, dw = g.contiguous(memory_format=torch.channels_last), None, None
        if ctx.needs_input_grad[0]:
            arguments = (geometry, dy.shape[2:], "out_mask", options[0], *slopes_of(options))
            d_dy = _convolve(g, weight, None, signs, *arguments)[0]
        if will_need_grad(ctx, 2):
            dw = _weight_gradient(dy, g, weight, signs, geometry, options[0], slopes_of(options))[0]
        return d_dy, None, dw, None, None, None
