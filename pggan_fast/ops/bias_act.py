"""bias_act: scale, bias, activation, gain and pixel norm in one pass over memory.

With u = gain * act(scale * x + b), r = rsqrt(mean_c(u^2) + eps) (1 without pixel norm), y = u * r and
k = scale * gain * act'(sign of y), means and sums over channels:

    dx = k r (dy - y mean(dy y)) - k r^2 y dr / C,        db = sum(dx / scale)

and for the gradient (g, g_b) of (dx, db), with h = k (g + g_b / scale):

    d(dy) = r (h - y mean(h y))
    d(y)  = -r (h mean(dy y) + dy mean(h y)) - r^2 h dr / C
    d(r)  = sum(h (dy - y mean(dy y))) - 2 r dr sum(h y) / C
    d(dr) = -r^2 sum(h y) / C

Only y and r are kept for backward, and y is what the next layer keeps anyway.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pggan_fast import reference
from pggan_fast.ops.batching import fold_into_samples
from pggan_fast.ops.dispatch import choose
from pggan_fast.ops.registry import (
    OpFunction,
    batch_forms,
    below_autograd,
    call_op,
    define_forms,
    differentiate_forms,
    fake_like,
    in_forward_mode,
    no_third_derivative,
    refuse_derivatives,
    through_dispatcher,
)
from pggan_fast.reference import accumulation_dtype, effective_slope

EPILOGUE_SCHEMA = "float scale=1.0, str act='lrelu', float slope=0.2, float gain=1.0, bool pixel_norm=False"


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    act: str = "lrelu",
    slope: float = 0.2,
    gain: float = 1.0,
    pixel_norm: bool = False,
    eps: float = 1e-8,
    impl: str = "auto",
) -> Tensor:
    """Computes, in this order and in one pass over memory:

    1. `scale * x + bias`, the bias broadcast over everything but channels;
    2. the activation: "linear", "relu", or "lrelu" with `slope` below zero;
    3. `* gain`;
    4. if `pixel_norm`, division by `sqrt(mean over channels of its square + eps)` (paper, section 4.2).

    x: [N, C, *spatial], any strides; fp64, fp32, bf16 or fp16, accumulated in fp32 (fp64 for fp64).
    bias: [C] of any floating dtype, or None; it stays in fp32 under mixed precision.
    Returns a tensor like x, in x's layout. Twice differentiable in x and bias.
    Raises ValueError for an unknown act, a slope or gain below 0 (backward reads the
    activation's sign off the output), or a bias that does not have C values.
    """
    options = (scale, act, slope, gain, pixel_norm, eps)
    check_epilogue("bias_act", x.shape[1:2], bias, options)
    impl = choose("bias_act", x, impl)
    if impl == "reference":
        return reference.bias_act(x, bias, scale=scale, act=act, slope=slope, gain=gain, pixel_norm=pixel_norm, eps=eps)
    if through_dispatcher():
        return _forward[impl](x, bias, *options)[0]
    return BiasAct.apply(x, bias, options, impl)[0]


def pixel_norm(x: Tensor, eps: float = 1e-8, *, impl: str = "auto") -> Tensor:
    """`x * rsqrt(mean over channels of x**2 + eps)` (paper, section 4.2; the official epsilon is 1e-4 under fp16).

    x: [N, C, *spatial]; dtypes, layouts and gradients as `bias_act`.
    """
    check_epilogue("pixel_norm", x.shape[1:2], None, (1.0, "linear", 0.0, 1.0, True, eps))
    return bias_act(x, act="linear", pixel_norm=True, eps=eps, impl=choose("pixel_norm", x, impl))


def check_epilogue(op: str, channels: torch.Size, bias: Tensor | None, options: tuple) -> None:
    """Refuses what `bias_act` cannot compute, for every op that ends in it. `channels` is [C]."""
    _, act, slope, gain, _, _ = options
    if act not in ("linear", "relu", "lrelu"):
        raise ValueError(f"{op}: act is {act!r}, allowed: linear, relu, lrelu")
    if slope < 0 or gain < 0:
        raise ValueError(f"{op}: slope is {slope} and gain is {gain}, both must be at least 0")
    if not channels or not channels[0]:
        raise ValueError(f"{op}: x must be [N, C, ...] with at least one channel")
    if bias is not None and bias.shape != channels:
        raise ValueError(f"{op}: bias has shape {list(bias.shape)}, must be {list(channels)}")


class BiasAct(OpFunction):
    """(x, bias, (scale, act, slope, gain, pixel_norm, eps), impl) -> (y, r); r is empty without pixel norm."""

    @staticmethod
    def forward(ctx, x, bias, options, impl):
        y, r = below_autograd(_forward[impl], x, bias, *options)
        remember_epilogue(ctx, y, r, bias, options, impl)
        if in_forward_mode():
            ctx.save_for_forward(y, r)
        return y, r

    @staticmethod
    def jvp(ctx, t_x, t_bias, *_):
        return _forward_tangents(*ctx.saved_tensors, t_x, t_bias, *ctx.epilogue)

    @staticmethod
    def backward(ctx, dy, dr):
        if dy is None and dr is None:
            return None, None, None, None
        if dr is None and is_zeros(dy):
            return zeros_like(dy), bias_zeros(ctx, dy), None, None
        dx, db = epilogue_backward(ctx, dy, dr, *ctx.saved_tensors, ctx.needs_input_grad[1])
        return dx, db, None, None


def remember_epilogue(
    ctx: Any, y: Tensor, r: Tensor, bias: Tensor | None, options: tuple, impl: str, *also: Tensor
) -> None:
    """Saves the choice that backward repeats, `also`, then y and r where backward reads them.

    An affine map's gradient does not.
    """
    _, act, _, _, pixel_norm, _ = options
    ctx.epilogue, ctx.impl, ctx.keeps_zeros = options[:-1], impl, not getattr(_this_thread, "omits_zeros", False)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.set_materialize_grads(False)
    if pixel_norm:
        ctx.save_for_backward(*also, y, r)
        return
    ctx.save_for_backward(*also, y if act != "linear" else None, None)
    ctx.mark_non_differentiable(r)


def epilogue_backward(
    ctx: Any, dy: Tensor | None, dr: Tensor | None, y: Tensor | None, r: Tensor | None, needs_bias_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of (x, bias), themselves differentiable; y and r as `remember_epilogue` saved them.

    At least one of dy and dr must be a tensor.
    """
    affine = y is None
    if affine:
        # The kernel reads no value of y for an affine map, only its layout.
        y = dy.detach()
    elif dy is None:
        dy = torch.zeros_like(y)
    arguments = (dy, dr, y, r, *ctx.epilogue, needs_bias_grad)
    if through_dispatcher():
        dx, db = _backward[ctx.impl](*arguments)
    elif torch.is_grad_enabled():
        ctx.gets_zeros = ctx.keeps_zeros and not affine
        dx, db = BiasActBackward.apply(*arguments, ctx.impl, ctx.keeps_zeros)
    else:
        dx, db = below_autograd(_backward[ctx.impl], *arguments)
    if not needs_bias_grad:
        return dx, None
    return dx, db if db.dtype == ctx.bias_dtype else db.to(ctx.bias_dtype)


class BiasActBackward(OpFunction):
    """(dy, dr, y, r, *epilogue, needs_bias_grad, impl, keeps_zeros) -> (dx, db).

    r is None without pixel norm, db empty unless needed.
    """

    @staticmethod
    def forward(ctx, dy, dr, y, r, *options):
        *ctx.epilogue, needs_bias_grad, ctx.impl, ctx.keeps_zeros = options
        dx, db = below_autograd(_backward[ctx.impl], dy, dr, y, r, *ctx.epilogue, needs_bias_grad)
        ctx.save_for_backward(dy, dr, y, r)
        ctx.set_materialize_grads(False)
        if not needs_bias_grad:
            ctx.mark_non_differentiable(db)
        ctx.needs_bias_grad = needs_bias_grad
        if in_forward_mode():
            ctx.save_for_forward(dy, dr, y, r)
        return dx, db

    @staticmethod
    def jvp(ctx, t_dy, t_dr, t_y, t_r, *_):
        tangents = _backward_tangents(*ctx.saved_tensors, t_dy, t_dr, t_y, t_r, *ctx.epilogue)
        return tangents if ctx.needs_bias_grad else (tangents[0], None)

    @staticmethod
    @no_third_derivative
    def backward(ctx, g, g_bias):
        _, dr, y, _ = ctx.saved_tensors
        _, act, _, _, pixel_norm = ctx.epilogue
        d_dy, d_y, d_r, d_dr = call_op(_double_backward[ctx.impl], g, g_bias, *ctx.saved_tensors, *ctx.epilogue)
        if not pixel_norm:
            # As torch's own activations: they are zero, and an optimizer tells that from absent.
            d_y = zeros_like(y) if ctx.keeps_zeros and act != "linear" and ctx.needs_input_grad[2] else None
            d_r = d_dr = None
        return d_dy, d_dr if dr is not None else None, d_y, d_r, *[None] * 8


# Zeros that flow through a second backward are never computed with: each is one value, expanded and marked.
_this_thread = threading.local()


@contextmanager
def omit_zeros() -> Iterator[None]:
    """Inside, this thread's calls leave out second derivatives that are known to be zero, instead of giving zeros.

    An optimizer that gets every parameter's gradient from elsewhere saves the launches that write and add them.
    """
    before = getattr(_this_thread, "omits_zeros", False)
    _this_thread.omits_zeros = True
    try:
        yield
    finally:
        _this_thread.omits_zeros = before


def zeros_like(t: Tensor) -> Tensor:
    """The gradient of t where it is known to be zero."""
    zeros = t.new_zeros(()).expand(t.shape)
    zeros.are_zeros = True
    return zeros


def is_zeros(gradient: Tensor | None) -> bool:
    return getattr(gradient, "are_zeros", False)


# What hands a gradient on in another shape or dtype, without the mark.
RESHAPED = {"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "CloneBackward0", "ToCopyBackward0"}


def input_zeros(t: Tensor) -> Tensor | None:
    """Zeros for the input of an op; None where its maker gets some anyway: the engine's sum would be computed with."""
    maker = t.grad_fn
    while maker is not None and maker.name() in RESHAPED:
        maker = maker.next_functions[0][0]
    return None if getattr(maker, "gets_zeros", False) else zeros_like(t)


def bias_zeros(ctx: Any, dy: Tensor) -> Tensor | None:
    return None if ctx.bias_dtype is None else dy.new_zeros(dy.shape[1], dtype=ctx.bias_dtype)


# The formulas in plain PyTorch, for devices that have no kernels of their own.


def _forward_fallback(x, bias, scale, act, slope, gain, pixel_norm, eps):
    dtype = accumulation_dtype(x.dtype)
    u = reference.bias_act(x.to(dtype), bias, scale=scale, act=act, slope=slope, gain=gain)
    if not pixel_norm:
        return torch.empty_like(x).copy_(u), x.new_empty(0, dtype=dtype)
    r = torch.rsqrt(u.square().mean(dim=1, keepdim=True) + eps)
    return torch.empty_like(x).copy_(u * r), r.contiguous()


def _inplace_fallback(x, bias, *options):
    y, r = _forward_fallback(x, bias, *options)
    x.copy_(y)
    return r


def _through_activation(v: Tensor, y: Tensor, act: str, slope: float, gain: float) -> Tensor:
    """Return `v * gain * act'`, the derivative read off the sign of y: k / scale of the formulas above."""
    negative_slope = effective_slope(act, slope)
    if negative_slope == 0:
        # A product with 0 would make NaN of infinity.
        return torch.where(y <= 0, v.new_zeros(()), v * gain)
    return torch.where(y > 0, v * gain, v * (gain * negative_slope))


def _backward_fallback(dy, dr, y, r, scale, act, slope, gain, pixel_norm, needs_bias_grad):
    dtype = accumulation_dtype(y.dtype)
    du, y_wide = dy.to(dtype), y.to(dtype)
    if pixel_norm:
        du = r * (du - y_wide * (du * y_wide).mean(dim=1, keepdim=True))
        if dr is not None:
            du = du - r.square() * y_wide * dr / y.shape[1]
    d_biased = _through_activation(du, y_wide, act, slope, gain)
    dx = torch.empty_like(y).copy_(scale * d_biased)
    dims = [0, *range(2, y.ndim)]
    return dx, d_biased.sum(dim=dims) if needs_bias_grad else dx.new_empty(0, dtype=dtype)


# Forward mode: the product rule in plain PyTorch, so that derivatives of what it gives are torch's own, of any order.


def _forward_tangents(y, r, t_x, t_bias, scale, act, slope, gain, pixel_norm):
    """Return the tangents of (y, r) from those of x and the bias, None for zero."""
    narrow, y = y.dtype, y.to(accumulation_dtype(y.dtype))
    h = torch.zeros_like(y) if t_x is None else scale * t_x.to(y.dtype)
    if t_bias is not None:
        h = h + t_bias.to(y.dtype).reshape(1, -1, *[1] * (y.ndim - 2))
    h = _through_activation(h, y, act, slope, gain)
    if not pixel_norm:
        return h.to(narrow), None
    q = (h * y).mean(dim=1, keepdim=True)
    return (r * (h - y * q)).to(narrow), -r.square() * q


def _backward_tangents(dy, dr, y, r, t_dy, t_dr, t_y, t_r, scale, act, slope, gain, pixel_norm):
    """Return the tangents of (dx, db) from those of dy, dr, y and r, None for zero."""
    narrow, dtype = y.dtype, accumulation_dtype(y.dtype)
    dy, y, t_dy, t_y = (None if t is None else t.to(dtype) for t in (dy, y, t_dy, t_y))
    t_dy, t_y = (torch.zeros_like(y) if t is None else t for t in (t_dy, t_y))
    t_du = t_dy
    if pixel_norm:

        def mean(t: Tensor) -> Tensor:
            return t.mean(dim=1, keepdim=True)

        m = mean(dy * y)
        t_m = mean(t_dy * y + dy * t_y)
        t_du = r * (t_dy - t_y * m - y * t_m)
        if t_r is not None:
            t_du = t_du + t_r * (dy - y * m)
        for factor, moved in ((t_dr, r.square() * y), (dr, None if t_r is None else 2 * r * t_r * y)):
            if factor is not None and moved is not None:
                t_du = t_du - factor * moved / y.shape[1]
        if dr is not None:
            t_du = t_du - dr * r.square() * t_y / y.shape[1]
    t_biased = _through_activation(t_du, y, act, slope, gain)
    return (scale * t_biased).to(narrow), t_biased.sum(dim=[0, *range(2, y.ndim)])


def _double_backward_fallback(g, g_bias, dy, dr, y, r, scale, act, slope, gain, pixel_norm):
    dtype = accumulation_dtype(y.dtype)
    y_wide, dy_wide = y.to(dtype), dy.to(dtype)
    h = torch.zeros_like(y_wide) if g is None else scale * g.to(dtype)
    if g_bias is not None:
        h = h + g_bias.to(dtype).reshape(1, -1, *[1] * (y.ndim - 2))
    h = _through_activation(h, y_wide, act, slope, gain)
    if not pixel_norm:
        return torch.empty_like(y).copy_(h), *_factors(y, False, 3)
    m = (dy_wide * y_wide).mean(dim=1, keepdim=True)
    q = (h * y_wide).mean(dim=1, keepdim=True)
    d_dy = r * (h - y_wide * q)
    d_y = -r * (h * m + dy_wide * q)
    d_r = (h * (dy_wide - y_wide * m)).sum(dim=1, keepdim=True)
    if dr is not None:
        d_y = d_y - r.square() * dr * h / y.shape[1]
        d_r = d_r - 2 * r * dr * q
    like_y = (torch.empty_like(y).copy_(d) for d in (d_dy, d_y))
    return *like_y, d_r.contiguous(), (-r.square() * q).contiguous()


# Fake kernels: shapes, dtypes and strides alone.


def _factors(x: Tensor, pixel_norm: bool, count: int) -> list[Tensor]:
    """Empty tensors like r."""
    shape = [x.shape[0], 1, *x.shape[2:]] if pixel_norm else [0]
    return [x.new_empty(shape, dtype=accumulation_dtype(x.dtype)) for _ in range(count)]


def _forward_fake(x, bias, scale, act, slope, gain, pixel_norm, eps):
    return fake_like(x), *_factors(x, pixel_norm, 1)


def _inplace_fake(x, bias, scale, act, slope, gain, pixel_norm, eps):
    return _factors(x, pixel_norm, 1)[0]


def _backward_fake(dy, dr, y, r, scale, act, slope, gain, pixel_norm, needs_bias_grad):
    db = y.new_empty(y.shape[1] if needs_bias_grad else 0, dtype=accumulation_dtype(y.dtype))
    return fake_like(y), db


def _double_backward_fake(g, g_bias, dy, dr, y, r, scale, act, slope, gain, pixel_norm):
    if not pixel_norm:
        return fake_like(y), *_factors(y, False, 3)
    return fake_like(y), fake_like(y), *_factors(y, True, 2)


_forward = define_forms(
    f"bias_act(Tensor x, Tensor? bias=None, {EPILOGUE_SCHEMA}, float eps=1e-8) -> (Tensor y, Tensor r)",
    fallback=_forward_fallback,
    fake=_forward_fake,
    triton="bias_act.forward",
)
bias_act_op = _forward
bias_act_inplace = define_forms(
    f"bias_act_(Tensor(a!) x, Tensor? bias=None, {EPILOGUE_SCHEMA}, float eps=1e-8) -> Tensor r",
    fallback=_inplace_fallback,
    fake=_inplace_fake,
    triton="bias_act.forward_in_place",
)
_backward = define_forms(
    f"bias_act_backward(Tensor dy, Tensor? dr, Tensor y, Tensor? r, {EPILOGUE_SCHEMA}, "
    "bool needs_bias_grad=False) -> (Tensor dx, Tensor db)",
    fallback=_backward_fallback,
    fake=_backward_fake,
    triton="bias_act.backward",
)
_double_backward = define_forms(
    "bias_act_double_backward(Tensor? g, Tensor? g_bias, Tensor dy, Tensor? dr, Tensor y, Tensor? r, "
    f"{EPILOGUE_SCHEMA}) -> (Tensor d_dy, Tensor d_y, Tensor d_r, Tensor d_dr)",
    fallback=_double_backward_fallback,
    fake=_double_backward_fake,
    triton="bias_act.double_backward",
)
differentiate_forms(_forward, lambda x, bias, *rest: BiasAct.apply(x, bias, rest[:-1], rest[-1]))
differentiate_forms(_backward, lambda *args: BiasActBackward.apply(*args, True))
refuse_derivatives(_double_backward)


def _sums_bias(*arguments) -> bool:
    """Whether bias_act_backward sums over the samples."""
    return arguments[-1]


batch_forms(_forward, fold_into_samples(0))
batch_forms(_backward, fold_into_samples(0, 1, 2, 3, sums=_sums_bias))
batch_forms(_double_backward, fold_into_samples(0, 2, 3, 4, 5))
