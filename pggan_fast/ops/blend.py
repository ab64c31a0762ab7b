"""The blend of two paths of one size, which D makes while a resolution fades in, with its gradient in one launch.

torch takes lerp's gradient by two products, which read it twice. The op takes alpha as a 0-d fp32 tensor or, where that
is None, as the number after it; a tensor is rounded to the paths' dtype, as torch.lerp wants it.
"""

import torch
from torch import Tensor

from pggan_fast import reference
from pggan_fast.ops import sign_bits
from pggan_fast.ops.batching import fold_into_samples
from pggan_fast.ops.dispatch import choose
from pggan_fast.ops.fade import alpha_gradient, moved, or_zeros, split_alpha
from pggan_fast.ops.registry import (
    OpFunction,
    batch_implementations,
    below_autograd,
    call_op,
    define_implementations,
    differentiate_implementations,
    in_forward_mode,
    is_transformed,
    tangent_rule,
    through_dispatcher,
)


def blend_paths(old: Tensor, new: Tensor, alpha: float | Tensor) -> Tensor:
    """Return `lerp(old, new, alpha)` of tensors [N, C, H, W] of one dtype; alpha is the weight of the new path.

    alpha: a float, or a 0-d fp32 tensor on their device. Twice differentiable.
    """
    tensor, number = split_alpha("blend_paths", alpha)
    impl = choose("blend_paths", new, "auto")
    has_kernel = impl == "triton" or (impl == "native" and sign_bits.has_gpu_kernels(new))
    needs_alpha = tensor is not None and tensor.requires_grad
    if not has_kernel or needs_alpha or through_dispatcher() or is_transformed():
        return _lerp(old, new, tensor, number)
    return BlendPaths.apply(old, new, tensor, number, impl)


def _weight(like: Tensor, alpha: Tensor | None, number: float) -> Tensor | float:
    return number if alpha is None else alpha.to(like.dtype)


def _lerp(old: Tensor, new: Tensor, alpha: Tensor | None, number: float) -> Tensor:
    return torch.lerp(old, new, _weight(old, alpha, number))


class BlendPaths(OpFunction):
    """(old, new, alpha tensor, alpha number, impl) -> the blend; of alpha there is no gradient."""

    @staticmethod
    def forward(ctx, old, new, alpha, number, impl):
        ctx.number, ctx.impl = number, impl
        ctx.save_for_backward(alpha)
        return _lerp(old, new, alpha, number)

    @staticmethod
    def backward(ctx, dy):
        (alpha,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            d_old, d_new = BlendPathsBackward.apply(dy, alpha, ctx.number, ctx.impl)
        else:
            d_old, d_new = below_autograd(_blend_backward[ctx.impl], dy, alpha, ctx.number)
        return d_old, d_new, None, None, None


class BlendPathsBackward(OpFunction):
    """(dy, alpha tensor, alpha number, impl) -> (d_old, d_new): ((1 - alpha) * dy, alpha * dy)."""

    @staticmethod
    def forward(ctx, dy, alpha, number, impl):
        ctx.number, ctx.impl = number, impl
        ctx.save_for_backward(alpha, *((dy,) if ctx.needs_input_grad[1] else ()))
        if in_forward_mode():
            ctx.save_for_forward(alpha, dy)
        return below_autograd(_blend_backward[impl], dy, alpha, number)

    @staticmethod
    def backward(ctx, g_old, g_new):
        alpha, *dy = ctx.saved_tensors
        d_alpha = alpha_gradient(dy[0], g_new, g_old) if dy else None
        return _lerp(g_old, g_new, alpha, ctx.number), d_alpha, None, None

    @staticmethod
    @tangent_rule
    def jvp(ctx, saved, t_dy, t_alpha, *_):
        alpha, dy = saved
        t_old, t_new = call_op(_blend_backward[ctx.impl], or_zeros(t_dy, dy), alpha, ctx.number)
        if t_alpha is None:
            return t_old, t_new
        return moved(t_old, t_alpha, 0, dy), moved(t_new, t_alpha, dy, 0)


def _fake(dy, alpha, number):
    return torch.empty_like(dy), torch.empty_like(dy)


def _composite(dy, alpha, number):
    d_old, d_new = _fake(dy, alpha, number)
    wide, weight = dy.to(reference.accumulation_dtype(dy.dtype)), _weight(dy, alpha, number)
    weight = weight.to(wide.dtype) if isinstance(weight, Tensor) else weight
    return d_old.copy_(wide * (1 - weight)), d_new.copy_(wide * weight)


_blend_backward = define_implementations(
    "blend_backward(Tensor dy, Tensor? alpha, float number=1.0) -> (Tensor d_old, Tensor d_new)",
    composite=_composite,
    fake=_fake,
    triton="fade.blend_backward",
)
differentiate_implementations(_blend_backward, BlendPathsBackward.apply)
batch_implementations(_blend_backward, fold_into_samples(0))
