"""equalized_linear: a dense layer with the bias_act epilogue on its fresh output in place."""

from functools import partial

import torch
from torch import Tensor

from pggan_fast import reference
from pggan_fast.ops import small
from pggan_fast.ops.bias_act import (
    EPILOGUE_SCHEMA,
    bias_act,
    bias_act_inplace,
    bias_act_op,
    bias_zeros,
    check_epilogue,
    epilogue_backward,
    input_zeros,
    is_zeros,
    remember_epilogue,
    zeros_like,
)
from pggan_fast.ops.closed_conv import as_nonleaf_view
from pggan_fast.ops.conv import autocast_input
from pggan_fast.ops.dispatch import choose
from pggan_fast.ops.fold import fold_weight
from pggan_fast.ops.geometry import check_floating
from pggan_fast.ops.narrow_cpu import is_widened, product
from pggan_fast.ops.registry import (
    OpFunction,
    composite_below_autograd,
    decompose_implementations,
    define_implementations,
    differentiate_implementations,
    is_transformed,
    through_dispatcher,
    will_need_grad,
)
from pggan_fast.reference import weight_factor


def equalized_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    weight_scale: float | None = None,
    act: str = "linear",
    slope: float = 0.2,
    gain: float = 1.0,
    pixel_norm: bool = False,
    eps: float = 1e-8,
    impl: str = "auto",
) -> Tensor:
    """Dense layer with an equalized learning rate (paper, section 4.1): `bias_act(x @ weight.T, bias)`.

    `weight_scale` (default sqrt(2 / fan_in)) is the epilogue's scale, so the weight is never scaled.

    x: [N, C_in]. weight: [C_out, C_in]. bias: [C_out] or None.
    Computes in x's dtype (autocast's where that is on) with the weight cast to it, the epilogue in fp32.
    Returns [N, C_out] in x's dtype. Twice differentiable in x, weight and bias.
    Raises ValueError for shapes that do not match and what `bias_act` refuses.
    """
    if x.ndim != 2 or weight.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            "equalized_linear: x must be [N, C_in] and weight [C_out, C_in], "
            f"got {list(x.shape)} and {list(weight.shape)}"
        )
    check_floating("equalized_linear", x)
    weight_scale = reference.default_weight_scale(weight) if weight_scale is None else weight_scale
    options = (weight_scale, act, slope, gain, pixel_norm, eps)
    check_epilogue("equalized_linear", weight.shape[:1], bias, options)
    x = autocast_input(x)
    if small.is_eager(x, impl) and small.takes_products(x, weight) and _is_small(x, weight, bias):
        return _small(x, weight, bias, *options)
    weight = as_nonleaf_view(weight)
    impl = choose("equalized_linear", x, impl)
    if impl == "reference":
        return reference.equalized_linear(
            x,
            weight,
            bias,
            weight_scale=weight_scale,
            act=act,
            slope=slope,
            gain=gain,
            pixel_norm=pixel_norm,
            eps=eps,
        )
    if through_dispatcher():
        return _forward[impl](x, weight, bias, *options)[0]
    return _differentiable(x, weight, bias, options, impl)[0]


def _is_small(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether torch's product computes bias and scale too, and is not one of plain loops."""
    if weight.shape[0] == 1:  # the gradient of D's last bias is a sum that cancels, which the kernel adds in fp64
        return False
    return bias is not None and bias.dtype is x.dtype in (torch.float32, torch.bfloat16) and not is_widened(x)


def _small(x, weight, bias, scale, act, slope, gain, pixel_norm, eps) -> Tensor:
    """Return the whole by torch's own product, where that is faster."""
    # gain * act(u) is act(gain * u).
    z = torch.addmm(bias, x, weight.t(), beta=gain, alpha=scale * gain)
    y = small.activation(z, act, slope)
    return bias_act(y, act="linear", pixel_norm=True, eps=eps) if pixel_norm else y


def _differentiable(x, weight, bias, options, impl) -> tuple[Tensor, Tensor]:
    if is_transformed():
        return _composite(x, weight, bias, *options, impl)
    return EqualizedLinear.apply(x, weight, bias, options, impl)


def _composite(x, weight, bias, *rest) -> tuple[Tensor, Tensor]:
    """Return (y, r) by torch's own product, which knows every transform, and the fused epilogue, which does too."""
    (scale, *options), impl = rest[:-1], rest[-1]
    factor = weight_factor(x.dtype, scale)
    return bias_act_op[impl](x @ (weight * factor).to(x.dtype).T, bias, scale / factor, *options)


class EqualizedLinear(OpFunction):
    """(x, weight, bias, epilogue's options, impl) -> (y, r)."""

    @staticmethod
    def forward(ctx, x, weight, bias, options, impl):
        y, r = composite_below_autograd(_forward, _forward_kernel, impl, x, weight, bias, *options)
        ctx.factor = weight_factor(x.dtype, options[0])
        remember_epilogue(ctx, y, r, bias, (options[0] / ctx.factor, *options[1:]), impl, x, weight)
        return y, r

    @staticmethod
    def backward(ctx, dy, dr):
        if dy is None and dr is None:
            return None, None, None, None, None
        x, weight, y, r = ctx.saved_tensors
        if dr is None and is_zeros(dy):
            return input_zeros(x), zeros_like(weight), bias_zeros(ctx, dy), None, None
        dz, db = epilogue_backward(ctx, dy, dr, y, r, ctx.needs_input_grad[2])
        dx = product(dz, _times(weight, ctx.factor).to(dz.dtype)) if ctx.needs_input_grad[0] else None
        dw = _times(product(dz.T, x).to(weight.dtype), ctx.factor) if will_need_grad(ctx, 1) else None
        return dx, dw, db, None, None


def _times(t: Tensor, factor: float) -> Tensor:
    return t if factor == 1 else t * factor


def _forward_kernel(impl, x, weight, bias, scale, *options):
    factor = weight_factor(x.dtype, scale)
    y = x.new_empty(x.shape[0], weight.shape[0])
    with torch._C._AutoDispatchBelowAutograd():
        if is_widened(x):
            y.copy_(product(x, fold_weight(weight, torch.float32, factor=factor).T))
        else:
            # The form with `out` computes in x's dtype under autocast too: what backward keeps is x.
            torch.mm(x, fold_weight(weight, x.dtype, factor=factor).T, out=y)
    return y, bias_act_inplace[impl](y, bias, scale / factor, *options)


_forward = define_implementations(
    f"equalized_linear(Tensor x, Tensor weight, Tensor? bias, {EPILOGUE_SCHEMA}, float eps=1e-8)"
    " -> (Tensor y, Tensor r)",
    composite=partial(_forward_kernel, "native"),
    fake=partial(_forward_kernel, "native"),
    triton=partial(_forward_kernel, "triton"),
)
differentiate_implementations(
    _forward, lambda x, weight, bias, *rest: _differentiable(x, weight, bias, rest[:-1], rest[-1])
)
decompose_implementations(_forward, _composite)
