"""fade_in and fade_reals: the two blends of a transition, without the upsampled copies.

Ops take alpha as a 0-d fp32 tensor or, where that is None, as the number after it.
"""

import torch
from torch import Tensor

from pggan_fast import reference
from pggan_fast.ops.batching import fold_into_samples
from pggan_fast.ops.dispatch import choose
from pggan_fast.ops.geometry import FLOATING, check_floating
from pggan_fast.ops.registry import (
    OpFunction,
    batch_implementations,
    below_autograd,
    call_op,
    define_implementations,
    differentiate_implementations,
    in_forward_mode,
    tangent_rule,
    through_dispatcher,
)
from pggan_fast.ops.resample import check_image, like_layout, repeat, sum_blocks


def fade_in(low: Tensor, high: Tensor, alpha: float | Tensor, *, impl: str = "auto") -> Tensor:
    """`lerp(upsample2x(low), high, alpha)`; alpha is the weight of the new path (paper, figure 2).

    low: [N, C, H, W]; high: [N, C, 2H, 2W] of the same dtype; alpha: a float, or a 0-d fp32 tensor
    on their device, which gets a gradient if it requires one.
    Computed in fp32 (fp64 for fp64); the result has high's dtype and layout. Twice differentiable.
    Raises ValueError for sizes or dtypes that do not match.
    """
    if low.ndim != 4 or high.ndim != 4 or high.shape != _doubled(low):
        raise ValueError(
            f"fade_in: low must be [N, C, H, W] and high [N, C, 2H, 2W], got {list(low.shape)} and {list(high.shape)}"
        )
    if low.dtype != high.dtype:
        raise ValueError(f"fade_in: low is {low.dtype} and high is {high.dtype}, must be the same")
    check_floating("fade_in", low, name="low")
    tensor, number = split_alpha("fade_in", alpha)
    impl = choose("fade_in", high, impl)
    if impl == "reference":
        return reference.fade_in(low, high, alpha)
    if through_dispatcher():
        return _fade_in[impl](low, high, tensor, number)
    return FadeIn.apply(low, high, tensor, number, impl)


def fade_reals(
    images: Tensor, alpha: float | Tensor, *, dtype: torch.dtype | None = None, impl: str = "auto"
) -> Tensor:
    """`lerp(upsample2x(downsample2x(x)), x, alpha)`: real images fade in as the networks do.

    images: [N, C, H, W] with H and W even; floating, or uint8 0..255, which becomes -1..1 in the same pass.
    alpha: as in `fade_in`. dtype: of the result, by default fp32 for uint8 and else images' own.
    Computed in fp32 (fp64 for fp64); the result has images' layout. Twice differentiable in floating images.
    Raises ValueError for odd sizes and for integer images other than uint8.
    """
    check_image("fade_reals", images, torch.uint8, name="images")
    if images.shape[2] % 2 or images.shape[3] % 2:
        raise ValueError(f"fade_reals: images are {images.shape[2]} x {images.shape[3]}, height and width must be even")
    if dtype is None:
        dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
    elif dtype not in FLOATING:
        allowed = ", ".join(str(each).removeprefix("torch.") for each in FLOATING)
        raise ValueError(f"fade_reals: dtype is {dtype}, allowed: {allowed}")
    tensor, number = split_alpha("fade_reals", alpha)
    impl = choose("fade_reals", images, impl)
    if impl == "reference":
        return reference.fade_reals(images, alpha, dtype=dtype)
    if through_dispatcher():
        return _fade_reals[impl](images, tensor, number, dtype)
    return FadeReals.apply(images, tensor, number, dtype, impl)


def split_alpha(op: str, alpha: float | Tensor) -> tuple[Tensor | None, float]:
    """(tensor, number) as the ops take it: exactly one of them counts."""
    if not isinstance(alpha, Tensor):
        return None, float(alpha)
    if alpha.ndim != 0 or alpha.dtype != torch.float32:
        raise ValueError(f"{op}: alpha must be a float or a 0-d fp32 tensor, got {list(alpha.shape)} {alpha.dtype}")
    return alpha, 0.0


def _doubled(low: Tensor) -> tuple:
    n, c, h, w = low.shape
    return (n, c, 2 * h, 2 * w)


def alpha_gradient(dy: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """d(alpha) = sum(dy (new - old)). Nobody trains alpha, so plain ops do."""
    wide = torch.promote_types(dy.dtype, torch.float32)
    return (dy.to(wide) * (new.to(wide) - old.to(wide))).sum().to(torch.float32)


class FadeIn(OpFunction):
    """(low, high, alpha tensor, alpha number, impl) -> the blend."""

    @staticmethod
    def forward(ctx, low, high, alpha, number, impl):
        ctx.number, ctx.impl = number, impl
        wants_alpha = ctx.needs_input_grad[2]
        ctx.save_for_backward(alpha, *((low, high) if wants_alpha else ()))
        if in_forward_mode():
            ctx.save_for_forward(alpha, low, high)
        return below_autograd(_fade_in[impl], low, high, alpha, number)

    @staticmethod
    def backward(ctx, dy):
        alpha, *inputs = ctx.saved_tensors
        if through_dispatcher():
            d_low, d_high = _fade_in_backward[ctx.impl](dy, alpha, ctx.number)
        elif torch.is_grad_enabled():
            d_low, d_high = FadeInBackward.apply(dy, alpha, ctx.number, ctx.impl)
        else:
            d_low, d_high = below_autograd(_fade_in_backward[ctx.impl], dy, alpha, ctx.number)
        d_alpha = alpha_gradient(dy, inputs[1], repeat(inputs[0], 1.0, 0, 0, ctx.impl)) if inputs else None
        return d_low, d_high, d_alpha, None, None

    @staticmethod
    @tangent_rule
    def jvp(ctx, saved, t_low, t_high, t_alpha, *_):
        alpha, low, high = saved
        t = blend(or_zeros(t_low, low), or_zeros(t_high, high), alpha, ctx.number, ctx.impl)
        return t if t_alpha is None else moved(t, t_alpha, high, repeat(low, 1.0, 0, 0, ctx.impl))


class FadeInBackward(OpFunction):
    """(dy, alpha tensor, alpha number, impl) -> (d_low, d_high): ((1 - alpha) * 2x2 sums of dy, alpha * dy)."""

    @staticmethod
    def forward(ctx, dy, alpha, number, impl):
        ctx.number, ctx.impl = number, impl
        ctx.save_for_backward(alpha, *((dy,) if ctx.needs_input_grad[1] else ()))
        if in_forward_mode():
            ctx.save_for_forward(alpha, dy)
        return below_autograd(_fade_in_backward[impl], dy, alpha, number)

    @staticmethod
    def backward(ctx, g_low, g_high):
        alpha, *dy = ctx.saved_tensors
        d_dy = blend(g_low, g_high, alpha, ctx.number, ctx.impl)
        d_alpha = alpha_gradient(dy[0], g_high, repeat(g_low, 1.0, 0, 0, ctx.impl)) if dy else None
        return d_dy, d_alpha, None, None

    @staticmethod
    @tangent_rule
    def jvp(ctx, saved, t_dy, t_alpha, *_):
        alpha, dy = saved
        t_low, t_high = call_op(_fade_in_backward[ctx.impl], or_zeros(t_dy, dy), alpha, ctx.number)
        if t_alpha is None:
            return t_low, t_high
        sums = sum_blocks(dy, 1.0, ctx.impl)
        return moved(t_low, t_alpha, 0, sums), moved(t_high, t_alpha, dy, 0)


class FadeReals(OpFunction):
    """(images, alpha tensor, alpha number, dtype, impl) -> the blend. Linear and symmetric: its own backward."""

    @staticmethod
    def forward(ctx, images, alpha, number, dtype, impl):
        ctx.number, ctx.dtype, ctx.out_dtype, ctx.impl = number, images.dtype, dtype, impl
        ctx.save_for_backward(alpha, *((images,) if ctx.needs_input_grad[1] else ()))
        if in_forward_mode():
            ctx.save_for_forward(alpha, images)
        return below_autograd(_fade_reals[impl], images, alpha, number, dtype)

    @staticmethod
    def backward(ctx, dy):
        alpha, *images = ctx.saved_tensors
        dx = blend_reals(dy, alpha, ctx.number, ctx.dtype, ctx.impl) if ctx.needs_input_grad[0] else None
        if not images:
            return dx, None, None, None, None
        # In the accumulation dtype, since the sum's terms cancel.
        wide = reference.accumulation_dtype(dy.dtype)
        x = blend_reals(images[0], None, 1.0, wide, ctx.impl)
        return dx, alpha_gradient(dy, x, blend_reals(x, None, 0.0, wide, ctx.impl)), None, None, None

    @staticmethod
    @tangent_rule
    def jvp(ctx, saved, t, t_alpha, *_):
        alpha, images = saved
        floating = images if images.is_floating_point() else images.new_zeros(images.shape, dtype=ctx.out_dtype)
        t = blend_reals(or_zeros(t, floating), alpha, ctx.number, ctx.out_dtype, ctx.impl)
        if t_alpha is None:
            return t
        wide = reference.accumulation_dtype(ctx.out_dtype)
        x, coarse = (blend_reals(images, None, number, wide, ctx.impl) for number in (1.0, 0.0))
        return moved(t, t_alpha, x, coarse)


def blend(low: Tensor, high: Tensor, alpha: Tensor | None, number: float, impl: str) -> Tensor:
    """Return FadeIn of these arguments, under any transform."""
    if through_dispatcher():
        return _fade_in[impl](low, high, alpha, number)
    return FadeIn.apply(low, high, alpha, number, impl)


def blend_reals(images: Tensor, alpha: Tensor | None, number: float, dtype: torch.dtype, impl: str) -> Tensor:
    """Return FadeReals of these arguments, under any transform."""
    if through_dispatcher():
        return _fade_reals[impl](images, alpha, number, dtype)
    return FadeReals.apply(images, alpha, number, dtype, impl)


def or_zeros(tangent: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tangent is None else tangent


def moved(tangent: Tensor, t_alpha: Tensor, new: Tensor | float, old: Tensor | float) -> Tensor:
    """Return a blend's tangent with that of alpha added."""
    return (tangent + t_alpha * (new - old)).to(tangent.dtype)


def _alpha(alpha: Tensor | None, number: float) -> Tensor | float:
    return number if alpha is None else alpha


def _fade_in_fake(low, high, alpha, number):
    return like_layout(high, high.shape)


def _fade_in_composite(low, high, alpha, number):
    return _fade_in_fake(low, high, alpha, number).copy_(reference.fade_in(low, high, _alpha(alpha, number)))


def _fade_in_backward_fake(dy, alpha, number):
    n, c, h, w = dy.shape
    return like_layout(dy, [n, c, h // 2, w // 2]), like_layout(dy, dy.shape)


def _fade_in_backward_composite(dy, alpha, number):
    d_low, d_high = _fade_in_backward_fake(dy, alpha, number)
    wide, alpha = dy.to(reference.accumulation_dtype(dy.dtype)), _alpha(alpha, number)
    # Scaled first: the sum of what 1 - alpha leaves nothing of may be no number.
    return d_low.copy_(reference.downsample2x(wide * (1 - alpha)) * 4), d_high.copy_(wide * alpha)


def _fade_reals_fake(images, alpha, number, dtype):
    return like_layout(images, images.shape).to(dtype)


def _fade_reals_composite(images, alpha, number, dtype):
    y = reference.fade_reals(images, _alpha(alpha, number), dtype=dtype)
    return _fade_reals_fake(images, alpha, number, dtype).copy_(y)


_fade_in = define_implementations(
    "fade_in(Tensor low, Tensor high, Tensor? alpha, float number=1.0) -> Tensor",
    composite=_fade_in_composite,
    fake=_fade_in_fake,
    triton="fade.fade_in",
)
_fade_in_backward = define_implementations(
    "fade_in_backward(Tensor dy, Tensor? alpha, float number=1.0) -> (Tensor d_low, Tensor d_high)",
    composite=_fade_in_backward_composite,
    fake=_fade_in_backward_fake,
    triton="fade.fade_in_backward",
)
_fade_reals = define_implementations(
    "fade_reals(Tensor images, Tensor? alpha, float number, ScalarType dtype) -> Tensor",
    composite=_fade_reals_composite,
    fake=_fade_reals_fake,
    triton="fade.fade_reals",
)
differentiate_implementations(_fade_in, FadeIn.apply)
differentiate_implementations(_fade_in_backward, FadeInBackward.apply)
differentiate_implementations(_fade_reals, FadeReals.apply)
batch_implementations(_fade_in, fold_into_samples(0, 1))
batch_implementations(_fade_in_backward, fold_into_samples(0))
batch_implementations(_fade_reals, fold_into_samples(0))
