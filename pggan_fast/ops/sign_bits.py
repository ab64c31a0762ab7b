"""The sign bits of a tensor, and bias_act with its gradient by them: a bit for each value in the place of the value.

Sign bits of y [N, C, H, W] are int32 [N, H, W, ceil(C / 32)]: bit c % 32 of word c / 32 is whether channel c is
positive. The gradient of leaky ReLU needs nothing else of y. Backward then reads dy and a sixteenth of y in half
precision, where it would read both.
"""

import torch
from torch import Tensor

from pggan_fast import _native, reference
from pggan_fast.ops.bias_act_formulas import through_activation
from pggan_fast.ops.registry import below_autograd, define
from pggan_fast.reference import accumulation_dtype


def empty_sign_bits(y: Tensor) -> Tensor:
    """Return an empty tensor for the sign bits of y."""
    n, c, *size = y.shape
    return y.new_empty((n, *size, -(-c // 32)), dtype=torch.int32)


def pack_signs(y: Tensor) -> Tensor:
    """Return the sign bits of y, in plain PyTorch."""
    n, c, h, w = y.shape
    bits = torch.zeros(n, h, w, -(-c // 32) * 32, dtype=torch.int64, device=y.device)
    bits[..., :c] = (y > 0).movedim(1, -1)
    return (bits.unflatten(-1, (-1, 32)) << torch.arange(32, device=y.device)).sum(-1).to(torch.int32)


def unpack_signs(sign_bits: Tensor, like: Tensor) -> Tensor:
    """Return 1 or -1 for each bit, in the shape, dtype and layout of `like`."""
    bits = sign_bits.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=sign_bits.device) & 1
    channels = bits.flatten(3)[..., : like.shape[1]].movedim(3, 1)
    return torch.empty_like(like).copy_(2 * channels - 1)


def slopes_by_signs(sign_bits: Tensor, like: Tensor, positive: float, negative: float) -> Tensor:
    """Return `positive` or `negative` for each bit, in the shape, dtype and layout of `like`."""
    return torch.where(unpack_signs(sign_bits, like) > 0, positive, negative).to(like.dtype)


def slopes_of(options: tuple) -> tuple[float, float]:
    """(positive, negative) slopes of an epilogue's options: its activation's, times gain."""
    _, act, slope, gain, *_ = options
    return gain, gain * reference.effective_slope(act, slope)


def has_gpu_kernels(t: Tensor) -> bool:
    """Whether the CUDA kernels are there for a tensor on this device."""
    return t.is_cuda and _native.cuda_available


def has_passes(t: Tensor, channels: int) -> bool:
    """Whether csrc/cuda/sign_bits.cuh has passes over channels_last tensors of so many channels in t's dtype."""
    if type(t) is not Tensor or not has_gpu_kernels(t) or t.dtype == torch.float64:
        return False
    return channels >= 16 and channels & (channels - 1) == 0 and channels * t.dtype.itemsize <= 16 * 256


def are_enough(options: tuple) -> bool:
    """Whether backward needs no more of y than its signs, and knows them: leaky ReLU without pixel norm."""
    _, act, slope, gain, pixel_norm, _ = options
    # relu sets values to 0, which a slope of 0 does not do to infinity.
    return act == "lrelu" and slope > 0 and gain > 0 and not pixel_norm


def activation_backward(
    dy: Tensor, sign_bits: Tensor, epilogue: tuple, needs_bias_grad: bool, impl: str
) -> tuple[Tensor, Tensor]:
    """Return (dz, db) of the epilogue without pixel norm; db is empty unless needed. Linear in dy, and self-adjoint."""
    scale, act, slope, gain, _ = epilogue
    if impl == "native" and are_enough((*epilogue, None)) and has_passes(dy, dy.shape[1]):
        return below_autograd(bias_act_backward_by_sign_bits, dy, sign_bits, scale, slope, gain, needs_bias_grad)
    from pggan_fast.kernels.bias_act import backward_by_signs

    return backward_by_signs(dy, sign_bits, scale, act, slope, gain, needs_bias_grad)


def _forward(x: Tensor, bias: Tensor | None, scale: float, slope: float, gain: float) -> Tensor:
    """Compute the op in plain PyTorch: write bias_act of x [N, C, H, W] over x and return the sign bits."""
    wide = x.to(accumulation_dtype(x.dtype))
    u = reference.bias_act(wide, bias, scale=scale, act="lrelu", slope=slope, gain=gain)
    x.copy_(u)
    return pack_signs(u)


def _backward(
    dy: Tensor, sign_bits: Tensor, scale: float, slope: float, gain: float, needs_bias_grad: bool
) -> tuple[Tensor, Tensor]:
    """Compute the op in plain PyTorch: (dx, the bias's gradient or nothing) from dy [N, C, H, W]."""
    wide = dy.to(accumulation_dtype(dy.dtype))
    du = through_activation(wide, unpack_signs(sign_bits, wide), "lrelu", slope, gain)
    dx = (scale * du).to(dy.dtype).contiguous(memory_format=torch.channels_last)
    return dx, du.sum((0, 2, 3)) if needs_bias_grad else dx.new_empty(0, dtype=wide.dtype)


def _backward_fake(dy, sign_bits, scale, slope, gain, needs_bias_grad):
    db = dy.new_empty(dy.shape[1] if needs_bias_grad else 0, dtype=accumulation_dtype(dy.dtype))
    return dy.new_empty(dy.shape).contiguous(memory_format=torch.channels_last), db


bias_act_with_sign_bits_inplace = define(
    "bias_act_with_sign_bits_(Tensor(a!) x, Tensor? bias, float scale, float slope, float gain) -> Tensor sign_bits",
    composite=_forward,
    fake=lambda x, *rest: empty_sign_bits(x),
)
bias_act_backward_by_sign_bits = define(
    "bias_act_backward_by_sign_bits(Tensor dy, Tensor sign_bits, float scale, float slope, float gain, "
    "bool needs_bias_grad) -> (Tensor dx, Tensor db)",
    composite=_backward,
    fake=_backward_fake,
)
