"""The formulas of bias_act and its gradients in plain PyTorch, for devices that have no kernels of their own.

The formulas themselves stand in ops/bias_act.py. Arguments and results are those of the ops defined there.
"""

import torch
from torch import Tensor

from pggan_fast import reference
from pggan_fast.ops.registry import fake_like
from pggan_fast.reference import accumulation_dtype, effective_slope


def forward_composite(x, bias, scale, act, slope, gain, pixel_norm, eps):
    dtype = accumulation_dtype(x.dtype)
    u = reference.bias_act(x.to(dtype), bias, scale=scale, act=act, slope=slope, gain=gain)
    if not pixel_norm:
        return torch.empty_like(x).copy_(with_its_sign(u, x.dtype)), x.new_empty(0, dtype=dtype)
    r = torch.rsqrt(u.square().mean(dim=1, keepdim=True) + eps)
    return torch.empty_like(x).copy_(with_its_sign(u * r, x.dtype)), r.contiguous()


def inplace_composite(x, bias, *options):
    y, r = forward_composite(x, bias, *options)
    x.copy_(y)
    return r


def with_its_sign(y: Tensor, dtype: torch.dtype) -> Tensor:
    """Return y, values above zero that fp16 would round to zero as its smallest: backward reads the sign off y."""
    least = 2.0**-24
    return torch.where((y > 0) & (y < least), least, y) if dtype == torch.float16 else y


def through_activation(v: Tensor, y: Tensor, act: str, slope: float, gain: float) -> Tensor:
    """Return `v * gain * act'`, the derivative read off the sign of y: k / scale of the formulas above."""
    negative_slope = effective_slope(act, slope)
    if negative_slope == 0:
        # A product with 0 would make NaN of infinity.
        return torch.where(y <= 0, v.new_zeros(()), v * gain)
    return torch.where(y > 0, v * gain, v * (gain * negative_slope))


def backward_composite(dy, dr, y, r, scale, act, slope, gain, pixel_norm, needs_bias_grad):
    dtype = accumulation_dtype(y.dtype)
    du, y_wide = dy.to(dtype), y.to(dtype)
    if pixel_norm:
        du = r * (du - y_wide * (du * y_wide).mean(dim=1, keepdim=True))
        if dr is not None:
            du = du - r.square() * y_wide * dr / y.shape[1]
    d_biased = through_activation(du, y_wide, act, slope, gain)
    dx = torch.empty_like(y).copy_(scale * d_biased)
    dims = [0, *range(2, y.ndim)]
    return dx, d_biased.sum(dim=dims) if needs_bias_grad else dx.new_empty(0, dtype=dtype)


# Forward mode: the product rule in plain PyTorch, so that derivatives of what it gives are torch's own, of any order.


def forward_tangents(y, r, t_x, t_bias, scale, act, slope, gain, pixel_norm):
    """Return the tangents of (y, r) from those of x and the bias, None for zero."""
    narrow, y = y.dtype, y.to(accumulation_dtype(y.dtype))
    h = torch.zeros_like(y) if t_x is None else scale * t_x.to(y.dtype)
    if t_bias is not None:
        h = h + t_bias.to(y.dtype).reshape(1, -1, *[1] * (y.ndim - 2))
    h = through_activation(h, y, act, slope, gain)
    if not pixel_norm:
        return h.to(narrow), None
    q = (h * y).mean(dim=1, keepdim=True)
    return (r * (h - y * q)).to(narrow), -r.square() * q


def backward_tangents(dy, dr, y, r, t_dy, t_dr, t_y, t_r, scale, act, slope, gain, pixel_norm):
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
    t_biased = through_activation(t_du, y, act, slope, gain)
    return (scale * t_biased).to(narrow), t_biased.sum(dim=[0, *range(2, y.ndim)])


def double_backward_composite(g, g_bias, dy, dr, y, r, scale, act, slope, gain, pixel_norm):
    dtype = accumulation_dtype(y.dtype)
    y_wide, dy_wide = y.to(dtype), dy.to(dtype)
    h = torch.zeros_like(y_wide) if g is None else scale * g.to(dtype)
    if g_bias is not None:
        h = h + g_bias.to(dtype).reshape(1, -1, *[1] * (y.ndim - 2))
    h = through_activation(h, y_wide, act, slope, gain)
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


def forward_fake(x, bias, scale, act, slope, gain, pixel_norm, eps):
    return fake_like(x), *_factors(x, pixel_norm, 1)


def inplace_fake(x, bias, scale, act, slope, gain, pixel_norm, eps):
    return _factors(x, pixel_norm, 1)[0]


def backward_fake(dy, dr, y, r, scale, act, slope, gain, pixel_norm, needs_bias_grad):
    db = y.new_empty(y.shape[1] if needs_bias_grad else 0, dtype=accumulation_dtype(y.dtype))
    return fake_like(y), db


def double_backward_fake(g, g_bias, dy, dr, y, r, scale, act, slope, gain, pixel_norm):
    if not pixel_norm:
        return fake_like(y), *_factors(y, False, 3)
    return fake_like(y), fake_like(y), *_factors(y, True, 2)
