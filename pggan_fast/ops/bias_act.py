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
from pggan_fast.ops import bias_act_formulas as formulas
from pggan_fast.ops.batching import fold_into_samples
from pggan_fast.ops.dispatch import choose
from pggan_fast.ops.geometry import check_floating
from pggan_fast.ops.registry import (
    OpFunction,
    batch_implementations,
    below_autograd,
    call_op,
    define_implementations,
    differentiate_implementations,
    in_forward_mode,
    no_third_derivative,
    refuse_derivatives,
    tangent_rule,
    through_dispatcher,
)

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
    """Compute, in this order and in one pass over memory:

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
    check_floating("pixel_norm", x)
    check_epilogue("pixel_norm", x.shape[1:2], None, (1.0, "linear", 0.0, 1.0, True, eps))
    return bias_act(x, act="linear", pixel_norm=True, eps=eps, impl=choose("pixel_norm", x, impl))


def check_epilogue(op: str, channels: torch.Size, bias: Tensor | None, options: tuple) -> None:
    """Refuse what `bias_act` cannot compute, for every op that ends in it. `channels` is [C]."""
    _, act, slope, gain, _, _ = options
    if act not in ("linear", "relu", "lrelu"):
        raise ValueError(f"{op}: act is {act!r}, allowed: linear, relu, lrelu")
    if not (slope >= 0 and gain >= 0):
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
    @tangent_rule
    def jvp(ctx, saved, t_x, t_bias, *_):
        return formulas.forward_tangents(*saved, t_x, t_bias, *ctx.epilogue)

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
    """Save the choice that backward repeats, `also`, then y and r where backward reads them.

    An affine map's gradient does not.
    """
    _, act, _, _, pixel_norm, _ = options
    ctx.epilogue, ctx.impl, ctx.keeps_zeros = options[:-1], impl, not _this_thread.omits_zeros
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
    @tangent_rule
    def jvp(ctx, saved, t_dy, t_dr, t_y, t_r, *_):
        tangents = formulas.backward_tangents(*saved, t_dy, t_dr, t_y, t_r, *ctx.epilogue)
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


class _ThisThread(threading.local):
    omits_zeros = False  # whether `omit_zeros` is open


_this_thread = _ThisThread()


@contextmanager
def omit_zeros() -> Iterator[None]:
    """Inside, this thread's calls leave out second derivatives that are known to be zero, instead of giving zeros.

    An optimizer that gets every parameter's gradient from elsewhere saves the launches that write and add them.
    """
    before = _this_thread.omits_zeros
    _this_thread.omits_zeros = True
    try:
        yield
    finally:
        _this_thread.omits_zeros = before


def keeps_zeros() -> bool:
    """Whether second derivatives that are known to be zero are to be given as zeros."""
    return not _this_thread.omits_zeros


# Zeros that flow through a second backward are never computed with: each is one value, expanded and marked.


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


_forward = define_implementations(
    f"bias_act(Tensor x, Tensor? bias=None, {EPILOGUE_SCHEMA}, float eps=1e-8) -> (Tensor y, Tensor r)",
    composite=formulas.forward_composite,
    fake=formulas.forward_fake,
    triton="bias_act.forward",
)
bias_act_op = _forward
bias_act_inplace = define_implementations(
    f"bias_act_(Tensor(a!) x, Tensor? bias=None, {EPILOGUE_SCHEMA}, float eps=1e-8) -> Tensor r",
    composite=formulas.inplace_composite,
    fake=formulas.inplace_fake,
    triton="bias_act.forward_in_place",
)
_backward = define_implementations(
    f"bias_act_backward(Tensor dy, Tensor? dr, Tensor y, Tensor? r, {EPILOGUE_SCHEMA}, "
    "bool needs_bias_grad=False) -> (Tensor dx, Tensor db)",
    composite=formulas.backward_composite,
    fake=formulas.backward_fake,
    triton="bias_act.backward",
)
_double_backward = define_implementations(
    "bias_act_double_backward(Tensor? g, Tensor? g_bias, Tensor dy, Tensor? dr, Tensor y, Tensor? r, "
    f"{EPILOGUE_SCHEMA}) -> (Tensor d_dy, Tensor d_y, Tensor d_r, Tensor d_dr)",
    composite=formulas.double_backward_composite,
    fake=formulas.double_backward_fake,
    triton="bias_act.double_backward",
)
differentiate_implementations(_forward, lambda x, bias, *rest: BiasAct.apply(x, bias, rest[:-1], rest[-1]))
differentiate_implementations(_backward, lambda *args: BiasActBackward.apply(*args, True))
refuse_derivatives(_double_backward)


def _sums_bias(*arguments) -> bool:
    """Whether bias_act_backward sums over the samples."""
    return arguments[-1]


batch_implementations(_forward, fold_into_samples(0))
batch_implementations(_backward, fold_into_samples(0, 1, 2, 3, sums=_sums_bias))
batch_implementations(_double_backward, fold_into_samples(0, 2, 3, 4, 5))
