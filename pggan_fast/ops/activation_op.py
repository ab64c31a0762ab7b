"""The op behind `bias_act` with a clamp or a smooth activation: one pass over memory, forward and backward.

With u = scale * x + b, v = gain * act(u), y = v limited to -clamp and clamp, and m = 1 between the limits, 0 on them
and beyond:

    d  = m gain act'(u) dy,        dx = scale d,        db = sum(d)

and for the gradient (g, g_b) of (dx, db), with h = m (scale g + g_b):

    d(dy) = h gain act'(u),        d(x) = scale h dy gain act''(u),        d(b) = sum(d(x) / scale)

linear, relu and lrelu read act' and m off y, which the next layer keeps anyway, and their act'' is zero. So does the
sigmoid in fp32 and fp64, where gain act'(u) is y (1 - y / gain): backward is a function of (dy, y), and the gradient
of y,

    d(y) = h dy (1 - 2 y / gain),

goes through the op once more. Like torch's, this derivative has the absolute error of y: near the gain it loses digits.
Half precision, where y has few, and the other smooth activations keep x and compute u anew. The op has CPU kernels;
elsewhere it is these formulas.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast.ops.batching import fold_into_samples
from pggan_fast.ops.bias_act import bias_zeros, is_zeros, keeps_zeros, zeros_like
from pggan_fast.ops.bias_act_formulas import with_its_sign
from pggan_fast.ops.registry import (
    OpFunction,
    batch_implementations,
    below_autograd,
    call_op,
    define,
    differentiate,
    fake_like,
    in_forward_mode,
    no_third_derivative,
    refuse_derivatives,
    tangent_rule,
    through_dispatcher,
)
from pggan_fast.reference import accumulation_dtype, effective_slope

PIECEWISE = ("linear", "relu", "lrelu")
"""Those whose derivative is read off the output's sign."""

ALPHA, SELU = 1.6732632423543772, 1.0507009873554805


def value_at(u: Tensor, act: str, slope: float) -> Tensor:
    """act(u), in plain PyTorch."""
    if act in PIECEWISE:
        slope = effective_slope(act, slope)
        return u.relu() if slope == 0 else torch.where(u > 0, u, u * slope)
    smooth = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "elu": F.elu, "selu": F.selu, "softplus": F.softplus}
    return u * u.sigmoid() if act == "swish" else smooth[act](u)


def _reads_output(act: str, dtype: torch.dtype) -> bool:
    """Whether backward takes y in the place of x and the bias."""
    return act in PIECEWISE or _reads_sigmoid(act, dtype)


def _reads_sigmoid(act: str, dtype: torch.dtype) -> bool:
    return act == "sigmoid" and dtype == accumulation_dtype(dtype)


def derivatives_at(u: Tensor, act: str) -> tuple[Tensor, Tensor]:
    """(act'(u), act''(u)) of a smooth activation, in plain PyTorch; softplus is the identity above 20, as in torch."""
    if act in ("elu", "selu"):
        slope, decaying = (SELU, SELU * ALPHA) if act == "selu" else (1.0, 1.0)
        left = decaying * u.clamp(max=0).exp()
        return torch.where(u > 0, slope, left), torch.where(u >= 0, 0.0, left)
    if act == "tanh":
        t = u.tanh()
        return 1 - t * t, -2 * t * (1 - t * t)
    s = u.sigmoid()
    ds = s * (1 - s)
    if act == "sigmoid":
        return ds, ds * (1 - 2 * s)
    if act == "softplus":
        return torch.where(u > 20, 1.0, s), torch.where(u > 20, 0.0, ds)
    return s + u * ds, ds * (2 + u * (1 - 2 * s))


# The formulas in plain PyTorch


def _wide(t: Tensor | None, like: Tensor) -> Tensor | None:
    return None if t is None else t.to(accumulation_dtype(like.dtype))


def _per_channel(values: Tensor | None, like: Tensor) -> Tensor | float:
    return 0.0 if values is None else _wide(values, like).reshape(1, -1, *[1] * (like.ndim - 2))


def _pass(v: Tensor, limit: float | None, gradient: Tensor) -> Tensor:
    """`gradient`, zero where v is on the limits or beyond."""
    return gradient if limit is None else torch.where((v >= limit) | (v <= -limit), 0.0, gradient)


def _factors(source: Tensor, bias: Tensor | None, scale, act, slope, gain, clamp) -> tuple[Tensor, Tensor | None]:
    """(m gain act', the derivative of that by `source` over scale or, where it is y, by y; None where it is zero)."""
    v = _wide(source, source)
    # Rounded as y is, so that what was limited is still seen to be.
    limit = None if clamp is None else torch.tensor(clamp, dtype=source.dtype).item()
    if act in PIECEWISE:
        slope = effective_slope(act, slope)
        return _pass(v, limit, torch.where(v > 0, v.new_tensor(gain), v.new_tensor(gain * slope))), None
    if _reads_sigmoid(act, source.dtype):
        share = v * (0.0 if gain < torch.finfo(v.dtype).tiny else 1 / gain)
        return _pass(v, limit, v * (1 - share)), _pass(v, limit, 1 - 2 * share)
    u = scale * v + _per_channel(bias, source)
    first, second = derivatives_at(u, act)
    v = gain * value_at(u, act, slope)
    return _pass(v, clamp, gain * first), _pass(v, clamp, gain * second)


def _sum(t: Tensor) -> Tensor:
    return t.sum(dim=[0, *range(2, t.ndim)])


def _forward_composite(x, bias, scale, act, slope, gain, clamp):
    u = scale * _wide(x, x) + _per_channel(bias, x)
    v = gain * value_at(u, act, slope)
    v = v if clamp is None else F.hardtanh(v, -clamp, clamp)
    return torch.empty_like(x).copy_(with_its_sign(v, x.dtype) if act in PIECEWISE else v)


def _backward_composite(dy, source, bias, scale, act, slope, gain, clamp, needs_bias_grad):
    first, _ = _factors(source, bias, scale, act, slope, gain, clamp)
    d = _times(first, _wide(dy, source))
    return torch.empty_like(source).copy_(scale * d), _sum(d) if needs_bias_grad else _no_sums(source)


def _double_backward_composite(g, g_bias, dy, source, bias, scale, act, slope, gain, clamp, needs_bias_grad):
    first, second = _factors(source, bias, scale, act, slope, gain, clamp)
    h = (0.0 if g is None else scale * _wide(g, source)) + _per_channel(g_bias, source)
    h = h if isinstance(h, Tensor) else torch.zeros_like(first)
    d_dy = torch.empty_like(source).copy_(_times(first, h))
    if second is None:
        return d_dy, source.new_empty(0), _no_sums(source)
    d = h * _wide(dy, source) * second
    from_output = _reads_output(act, source.dtype)
    d_source = torch.empty_like(source).copy_(d if from_output else scale * d)
    if not needs_bias_grad:
        return d_dy, d_source, _no_sums(source)
    return d_dy, d_source, _sum(torch.zeros_like(d) if from_output else d)


def _times(factor: Tensor, gradient: Tensor) -> Tensor:
    """The product, where a factor of 0 makes no NaN of infinity."""
    return torch.where(factor == 0, 0.0, factor * gradient)


def _no_sums(x: Tensor, count: int = 0) -> Tensor:
    return x.new_empty(count, dtype=accumulation_dtype(x.dtype))


# Shapes and strides


def _forward_fake(x, bias, scale, act, slope, gain, clamp):
    return fake_like(x)


def _backward_fake(dy, source, bias, scale, act, slope, gain, clamp, needs_bias_grad):
    return fake_like(source), _no_sums(source, source.shape[1] if needs_bias_grad else 0)


def _double_backward_fake(g, g_bias, dy, source, bias, scale, act, slope, gain, clamp, needs_bias_grad):
    if act in PIECEWISE:
        return fake_like(source), source.new_empty(0), _no_sums(source)
    return fake_like(source), fake_like(source), _no_sums(source, source.shape[1] if needs_bias_grad else 0)


# The ops and their derivatives

_SCHEMA = "float scale=1.0, str act='lrelu', float slope=0.2, float gain=1.0, float? clamp=None"
_forward = define(
    f"activation(Tensor x, Tensor? bias=None, {_SCHEMA}) -> Tensor", composite=_forward_composite, fake=_forward_fake
)
_backward = define(
    f"activation_backward(Tensor dy, Tensor source, Tensor? bias=None, {_SCHEMA}, bool needs_bias_grad=False) "
    "-> (Tensor dx, Tensor db)",
    composite=_backward_composite,
    fake=_backward_fake,
)
_double_backward = define(
    "activation_double_backward(Tensor? g, Tensor? g_bias, Tensor dy, Tensor source, Tensor? bias=None, "
    f"{_SCHEMA}, bool needs_bias_grad=False) -> (Tensor d_dy, Tensor d_x, Tensor d_bias)",
    composite=_double_backward_composite,
    fake=_double_backward_fake,
)


def activation(x, bias, scale, act, slope, gain, clamp) -> Tensor:
    """`gain * act(scale * x + bias)` between -clamp and clamp. x [N, C, *spatial], bias [C] or None."""
    call = _forward if through_dispatcher() else Activation.apply
    return call(x, bias, scale, act, slope, gain, clamp)


class Activation(OpFunction):
    """(x, bias, scale, act, slope, gain, clamp) -> y"""

    @staticmethod
    def forward(ctx, x, bias, *options):
        y = below_autograd(_forward, x, bias, *options)
        ctx.options, ctx.keeps_zeros = options, keeps_zeros()
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.set_materialize_grads(False)
        saved = (y, None) if _reads_output(options[1], x.dtype) else (x, bias)
        ctx.save_for_backward(*saved)
        if in_forward_mode():
            ctx.save_for_forward(*saved)
        return y

    @staticmethod
    @tangent_rule
    def jvp(ctx, saved, t_x, t_bias, *_):
        source, bias = saved
        first, _ = _factors(source, bias, *ctx.options)
        return _times(first, _tangent(t_x, t_bias, source, ctx.options[0])).to(source.dtype)

    @staticmethod
    def backward(ctx, dy):
        if dy is None:
            return (None,) * 7
        if is_zeros(dy):
            return zeros_like(dy), bias_zeros(ctx, dy), *[None] * 5
        needs_bias_grad = ctx.needs_input_grad[1]
        arguments = (dy, *ctx.saved_tensors, *ctx.options, needs_bias_grad)
        if through_dispatcher():
            dx, db = _backward(*arguments)
        elif torch.is_grad_enabled():
            ctx.gets_zeros = ctx.keeps_zeros and ctx.options[1] in ("relu", "lrelu")
            dx, db = ActivationBackward.apply(*arguments, ctx.keeps_zeros)
        else:
            dx, db = below_autograd(_backward, *arguments)
        return dx, db.to(ctx.bias_dtype) if needs_bias_grad else None, *[None] * 5


class ActivationBackward(OpFunction):
    """(dy, source, bias, scale, act, slope, gain, clamp, needs_bias_grad, keeps_zeros) -> (dx, db)"""

    @staticmethod
    def forward(ctx, dy, source, bias, *options):
        *ctx.options, ctx.needs_bias_grad, ctx.keeps_zeros = options
        dx, db = below_autograd(_backward, dy, source, bias, *ctx.options, ctx.needs_bias_grad)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(dy, source, bias)
        ctx.set_materialize_grads(False)
        if not ctx.needs_bias_grad:
            ctx.mark_non_differentiable(db)
        if in_forward_mode():
            ctx.save_for_forward(dy, source, bias)
        return dx, db

    @staticmethod
    @tangent_rule
    def jvp(ctx, saved, t_dy, t_source, t_bias, *_):
        dy, source, bias = saved
        first, second = _factors(source, bias, *ctx.options)
        t_d = torch.zeros_like(first) if t_dy is None else _times(first, _wide(t_dy, source))
        if second is not None and (t_source is not None or t_bias is not None):
            if _reads_output(ctx.options[1], source.dtype):
                t_source = _tangent(t_source, None, source, 1.0)
            else:
                t_source = _tangent(t_source, t_bias, source, ctx.options[0])
            t_d = t_d + _wide(dy, source) * second * t_source
        return (ctx.options[0] * t_d).to(source.dtype), _sum(t_d) if ctx.needs_bias_grad else None

    @staticmethod
    @no_third_derivative
    def backward(ctx, g, g_bias):
        dy, source, bias = ctx.saved_tensors
        needs_bias_grad = ctx.needs_input_grad[2]
        arguments = (g, g_bias, dy, source, bias, *ctx.options, needs_bias_grad)
        d_dy, d_source, d_bias = call_op(_double_backward, *arguments)
        if ctx.options[1] in PIECEWISE:
            # As torch's own activations: they are zero, and an optimizer tells that from absent. A clamp has none.
            zeros = ctx.keeps_zeros and ctx.options[1] != "linear" and ctx.needs_input_grad[1]
            d_source = zeros_like(source) if zeros else None
        d_bias = d_bias.to(ctx.bias_dtype) if needs_bias_grad else None
        return d_dy, d_source, d_bias, *[None] * 7


def _tangent(t_x: Tensor | None, t_bias: Tensor | None, x: Tensor, scale: float) -> Tensor:
    """The tangent of scale * x + bias."""
    t = torch.zeros_like(_wide(x, x)) if t_x is None else scale * _wide(t_x, x)
    return t + _per_channel(t_bias, x)


differentiate(_forward, Activation.apply)
differentiate(_backward, lambda *args: ActivationBackward.apply(*args, True))
refuse_derivatives({"native": _double_backward})
batch_implementations({"native": _forward}, fold_into_samples(0))
batch_implementations({"native": _backward}, fold_into_samples(0, 1, sums=lambda *args: args[-1]))
batch_implementations({"native": _double_backward}, fold_into_samples(0, 2, 3, sums=lambda *args: args[-1]))
