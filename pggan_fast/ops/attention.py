"""Attention whose derivatives of first and second order keep no matrix of all pairs of pixels.

With S = scale * q k^T, P = softmax(S) over keys and o = P v, for a gradient do of o, sums over keys:

    dP = do v^T     dS = P * (dP - sum(P * dP))
    dq = scale * dS k     dk = scale * dS^T q     dv = P^T do

and for gradients gq, gk, gv of those three:

    A = scale * (gq k^T + q gk^T)     E = P * (A - sum(P * A))
    H = A * (dP - sum(P * dP)) - sum(P * A) * dP + do gv^T     T = P * (H - sum(P * H))
    d(do) = P gv + E v     d(v) = E^T do     d(q) = scale * (dS gk + T k)     d(k) = scale * (dS^T gq + T^T q)

Each row of P belongs to one query: all is computed for a block of queries at a time, from q, k and v, and dropped.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pggan_fast import reference
from pggan_fast.ops.batching import fold_into_samples
from pggan_fast.ops.dispatch import requested_impl
from pggan_fast.ops.registry import (
    OpFunction,
    batch_implementations,
    below_autograd,
    call_op,
    define,
    differentiate,
    in_forward_mode,
    no_third_derivative,
    refuse_derivatives,
    tangent_rule,
    through_dispatcher,
)
from pggan_fast.reference import accumulation_dtype

BLOCK = 1 << 17  # scores at once: 512 KiB in fp32, a core's cache (docs/ops.md)
FEW = 1 << 12  # scores of a sample up to which keeping them all is quicker: 8 x 8 pixels


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """softmax(scale * q k^T) v, for q [N, P, d], k [N, M, d] and v [N, M, e]: [N, P, e] (Vaswani et al. 2017).

    scale: 1 / sqrt(d) by default. fp64, fp32, bf16 or fp16, computed in fp32 (fp64 for fp64); the result has v's dtype.
    Twice differentiable. Above 64 x 64 queries and keys, only q, k and v are kept for that, and memory is that of a
    block of queries, whatever P and M are; below, it is the plain formula.
    """
    if q.ndim != 3 or k.ndim != 3 or v.ndim != 3 or q.shape[2] != k.shape[2] or k.shape[1] != v.shape[1]:
        raise ValueError(f"attention: {_shapes(q, k, v)} must be [N, P, d], [N, M, d] and [N, M, e]")
    if not q.shape[0] == k.shape[0] == v.shape[0] or 0 in k.shape[1:]:
        raise ValueError(f"attention: {_shapes(q, k, v)} must have one batch, at least one key and one channel")
    scale = q.shape[2] ** -0.5 if scale is None else float(scale)
    if q.shape[1] * k.shape[1] <= FEW or requested_impl("auto") == "reference":
        return reference.attention(q, k, v, scale=scale)
    if through_dispatcher():
        return _attention(q, k, v, scale)
    return Attention.apply(q, k, v, scale)


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(f"{name} {list(t.shape)}" for name, t in zip("qkv", tensors, strict=True))


class Attention(OpFunction):
    """(q, k, v, scale) -> o."""

    @staticmethod
    def forward(ctx, q, k, v, scale):
        ctx.scale = scale
        ctx.save_for_backward(q, k, v)
        if in_forward_mode():
            ctx.save_for_forward(q, k, v)
        return below_autograd(_attention, q, k, v, scale)

    @staticmethod
    def backward(ctx, do):
        if through_dispatcher():
            return *_backward(do, *ctx.saved_tensors, ctx.scale), None
        if torch.is_grad_enabled():
            return *AttentionBackward.apply(do, *ctx.saved_tensors, ctx.scale), None
        return *below_autograd(_backward, do, *ctx.saved_tensors, ctx.scale), None

    @staticmethod
    @tangent_rule
    def jvp(ctx, saved, tq, tk, tv, *_):
        q, k, v = _widened(*saved)
        p = torch.softmax(ctx.scale * (q @ k.mT), dim=-1)
        total = torch.zeros_like(p)
        total = total if tq is None else total + ctx.scale * (tq.to(q.dtype) @ k.mT)
        total = total if tk is None else total + ctx.scale * (q @ tk.to(k.dtype).mT)
        t = (p * (total - (p * total).sum(-1, keepdim=True))) @ v
        t = t if tv is None else t + p @ tv.to(v.dtype)
        return t.to(saved[2].dtype)


class AttentionBackward(OpFunction):
    """(do, q, k, v, scale) -> (dq, dk, dv)."""

    @staticmethod
    def forward(ctx, do, q, k, v, scale):
        ctx.scale = scale
        ctx.save_for_backward(do, q, k, v)
        if in_forward_mode():
            ctx.save_for_forward(do, q, k, v)
        return below_autograd(_backward, do, q, k, v, scale)

    @staticmethod
    @no_third_derivative
    def backward(ctx, gq, gk, gv):
        return *call_op(_double_backward, gq, gk, gv, *ctx.saved_tensors, ctx.scale), None

    @staticmethod
    @tangent_rule
    def jvp(ctx, saved, t_do, tq, tk, tv, *_):
        do, *inputs = saved
        t_do = torch.zeros_like(do) if t_do is None else t_do
        found = call_op(_backward, t_do, *inputs, ctx.scale)
        directions = [torch.zeros_like(x) if t is None else t for t, x in zip((tq, tk, tv), inputs, strict=True)]
        # dq, dk and dv are the gradient of one number, whose second derivatives are symmetric.
        _, *others = call_op(_double_backward, *directions, do, *inputs, ctx.scale)
        return tuple(a + b for a, b in zip(found, others, strict=True))


def _blocks(samples: int, queries: int, keys: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of samples and of queries whose scores with all keys are about BLOCK numbers, at most."""
    at_once = max(1, BLOCK // max(1, queries * keys))
    rows = queries if at_once > 1 or queries * keys <= BLOCK else max(1, BLOCK // keys)
    for sample in range(0, samples, at_once):
        for row in range(0, queries, rows):
            yield slice(sample, sample + at_once), slice(row, row + rows)


def _widened(*tensors: Tensor) -> list[Tensor]:
    return [t.to(accumulation_dtype(t.dtype)) for t in tensors]


def _softmax(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return torch.softmax(_product(q, k.mT, scale), dim=-1)


def _product(a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """scale * a @ b, in one pass."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)


def _less_mean(x: Tensor, p: Tensor) -> Tensor:
    """Return p * (x - sum(p * x)), the derivative of a softmax p applied to x, [.., keys]."""
    return torch.addcmul(p * x, p, (p * x).sum(-1, keepdim=True), value=-1)


def _attention_composite(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    o = _attention_fake(q, k, v, scale)
    q, k, v = _widened(q, k, v)
    for b, r in _blocks(*q.shape[:2], k.shape[1]):
        o[b, r] = _softmax(q[b, r], k[b], scale) @ v[b]
    return o


def _backward_composite(do: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    dtypes = [t.dtype for t in (q, k, v)]
    do, q, k, v = _widened(do, q, k, v)
    dq, dk, dv = q.new_empty(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    for b, r in _blocks(*q.shape[:2], k.shape[1]):
        p = _softmax(q[b, r], k[b], scale)
        dv[b].baddbmm_(p.mT, do[b, r])
        ds = _less_mean(_product(do[b, r], v[b].mT), p)
        dq[b, r] = _product(ds, k[b], scale)
        dk[b].baddbmm_(ds.mT, q[b, r], alpha=scale)
    return tuple(t.to(dtype) for t, dtype in zip((dq, dk, dv), dtypes, strict=True))


def _double_backward_composite(
    gq: Tensor, gk: Tensor, gv: Tensor, do: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtypes = [t.dtype for t in (do, q, k, v)]
    gq, gk, gv, do, q, k, v = _widened(gq, gk, gv, do, q, k, v)
    d_do, d_q = do.new_empty(do.shape), q.new_empty(q.shape)
    d_k, d_v = k.new_zeros(k.shape), v.new_zeros(v.shape)
    for b, r in _blocks(*q.shape[:2], k.shape[1]):
        p = _softmax(q[b, r], k[b], scale)
        dp = _product(do[b, r], v[b].mT)
        a = _product(gq[b, r], k[b].mT, scale).baddbmm_(q[b, r], gk[b].mT, alpha=scale)
        mean_a = (p * a).sum(-1, keepdim=True)
        centred = dp - (p * dp).sum(-1, keepdim=True)
        h = (a * centred).addcmul_(dp, mean_a, value=-1).baddbmm_(do[b, r], gv[b].mT)
        e, t, ds = (a - mean_a).mul_(p), _less_mean(h, p), centred.mul_(p)
        d_do[b, r] = _product(p, gv[b]).baddbmm_(e, v[b])
        d_v[b].baddbmm_(e.mT, do[b, r])
        d_q[b, r] = _product(ds, gk[b], scale).baddbmm_(t, k[b], alpha=scale)
        d_k[b].baddbmm_(ds.mT, gq[b, r], alpha=scale).baddbmm_(t.mT, q[b, r], alpha=scale)
    return tuple(t.to(dtype) for t, dtype in zip((d_do, d_q, d_k, d_v), dtypes, strict=True))


def _attention_fake(q, k, v, scale):
    return v.new_empty(*q.shape[:2], v.shape[2])


def _like(*tensors):
    return tuple(t.new_empty(t.shape) for t in tensors)


_attention = define(
    "attention(Tensor q, Tensor k, Tensor v, float scale) -> Tensor",
    composite=_attention_composite,
    fake=_attention_fake,
)
_backward = define(
    "attention_backward(Tensor do, Tensor q, Tensor k, Tensor v, float scale) -> (Tensor dq, Tensor dk, Tensor dv)",
    composite=_backward_composite,
    fake=lambda do, q, k, v, scale: _like(q, k, v),
)
_double_backward = define(
    "attention_double_backward(Tensor gq, Tensor gk, Tensor gv, Tensor do, Tensor q, Tensor k, Tensor v, float scale) "
    "-> (Tensor d_do, Tensor d_q, Tensor d_k, Tensor d_v)",
    composite=_double_backward_composite,
    fake=lambda gq, gk, gv, do, q, k, v, scale: _like(do, q, k, v),
)
differentiate(_attention, Attention.apply)
differentiate(_backward, AttentionBackward.apply)
refuse_derivatives({"native": _double_backward})
batch_implementations({"native": _attention}, fold_into_samples(0, 1, 2))
batch_implementations({"native": _backward}, fold_into_samples(0, 1, 2, 3))
batch_implementations({"native": _double_backward}, fold_into_samples(0, 1, 2, 3, 4, 5, 6))
