"""minibatch_stddev: the batch's standard deviation as extra feature maps, written straight into the output.

With mu and v the mean and variance over a group, D = max(group - correction, 1), s = sqrt(v + eps), E the number
of elements in a map's channels and pixels, and T the sum of a map's gradient over its group and pixels:

    dx = dy[:, :C] + T (x - mu) / (D E s)

and for the gradient g of dx, with a = sum over the group of g (x - mu):

    d(dy)[:, :C] = g,    d(dy)[:, C:] = sum over channels and pixels of a / (D E s)
    d(x) = T / (D E s) * (h - (x - mu) a / (D s^2)),    h = g - mean over the group of g

A rounded mean leaves distances that do not sum to zero: x - mu and h are both centred once more, or gradients would
lose the digits that the values of a group share. In a group of two h is a multiple of x - mu, and the difference in
brackets, which would be rounding alone, is eps h / s^2.
"""

import warnings

import torch
from torch import Tensor

from pggan_fast import reference
from pggan_fast.ops.batching import fold_into_samples
from pggan_fast.ops.dispatch import choose
from pggan_fast.ops.registry import (
    OpFunction,
    batch_implementations,
    below_autograd,
    call_op,
    define_implementations,
    differentiate_implementations,
    fake_like,
    in_forward_mode,
    no_third_derivative,
    refuse_derivatives,
    tangent_rule,
    through_dispatcher,
)
from pggan_fast.ops.resample import check_image, like_layout

_OPTIONS = "SymInt group, SymInt num_channels, float eps, bool strided, int correction"


def minibatch_stddev(
    x: Tensor,
    group_size: int = 4,
    num_channels: int = 1,
    eps: float = 1e-8,
    *,
    grouping: str = "strided",
    correction: int = 0,
    impl: str = "auto",
) -> Tensor:
    """x with `num_channels` maps of the minibatch's standard deviation appended (paper, section 3).

    1. The batch is cut into groups of the largest divisor of N not above `group_size`: "strided" puts sample n
       into group n mod M of M groups (the official code), "consecutive" puts neighbours together.
    2. Per group, channel and pixel: `sqrt(var + eps)`, the variance dividing by group - `correction` (0: biased).
    3. Its mean over pixels and over each of `num_channels` equal runs of channels.
    4. That number, constant over the group's samples and all pixels, is appended as the last channels.

    x: [N, C, H, W], any strides; statistics in fp32 (fp64 for fp64). Returns [N, C + num_channels, H, W]
    in x's dtype and layout. Twice differentiable. Other codebases use consecutive groups and correction 1.
    Warns when N > 1 and only groups of one sample divide it, whose deviation is 0.
    Raises ValueError for an unknown grouping and a num_channels that does not divide C.
    """
    check_image("minibatch_stddev", x)
    if grouping not in ("strided", "consecutive"):
        raise ValueError(f"minibatch_stddev: grouping is {grouping!r}, allowed: strided, consecutive")
    if group_size < 1 or num_channels < 1 or x.shape[1] % num_channels:
        raise ValueError(
            f"minibatch_stddev: group_size is {group_size} and num_channels {num_channels}, both must be "
            f"at least 1 and num_channels must divide the {x.shape[1]} channels"
        )
    group = reference.stddev_group(x.shape[0], group_size)
    if group == 1 and x.shape[0] > 1 and group_size > 1 and not torch.compiler.is_compiling():
        warnings.warn(
            f"minibatch_stddev: no group size from 2 to {group_size} divides the batch of {x.shape[0]}, "
            "so the statistics are constant",
            stacklevel=2,
        )
    impl = choose("minibatch_stddev", x, impl)
    if impl == "reference":
        return reference.minibatch_stddev(x, group_size, num_channels, eps, grouping=grouping, correction=correction)
    options = (group, num_channels, eps, grouping == "strided", correction)
    if through_dispatcher():
        return _forward[impl](x, *options)
    return MinibatchStddev.apply(x, options, impl)


class MinibatchStddev(OpFunction):
    """(x, (group, num_channels, eps, strided, correction), impl) -> y."""

    @staticmethod
    def forward(ctx, x, options, impl):
        ctx.options, ctx.impl = options, impl
        ctx.save_for_backward(x)
        if in_forward_mode():
            ctx.save_for_forward(x)
        return below_autograd(_forward[impl], x, *options)

    @staticmethod
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        if through_dispatcher():
            dx = _backward[ctx.impl](dy, x, *ctx.options)
        elif torch.is_grad_enabled():
            dx = MinibatchStddevBackward.apply(dy, x, ctx.options, ctx.impl)
        else:
            dx = below_autograd(_backward[ctx.impl], dy, x, *ctx.options)
        return dx, None, None

    @staticmethod
    @tangent_rule
    def jvp(ctx, saved, t, *_):
        return _forward_tangent(*saved, t, *ctx.options)


class MinibatchStddevBackward(OpFunction):
    """(dy, x, options, impl) -> dx."""

    @staticmethod
    def forward(ctx, dy, x, options, impl):
        ctx.options, ctx.impl = options, impl
        ctx.save_for_backward(dy, x)
        if in_forward_mode():
            ctx.save_for_forward(dy, x)
        return below_autograd(_backward[impl], dy, x, *options)

    @staticmethod
    @no_third_derivative
    def backward(ctx, g):
        d_dy, dx = call_op(_double_backward[ctx.impl], g, *ctx.saved_tensors, *ctx.options)
        return d_dy, dx, None, None

    @staticmethod
    @tangent_rule
    def jvp(ctx, saved, t_dy, t_x, *_):
        dy, x = saved
        t = torch.zeros_like(x) if t_dy is None else call_op(_backward[ctx.impl], t_dy, x, *ctx.options)
        # The second derivatives of a number are symmetric.
        return t if t_x is None else t + call_op(_double_backward[ctx.impl], t_x, dy, x, *ctx.options)[1]


# The formulas in plain PyTorch, for devices that have no kernels of their own.


def _grouped(x: Tensor, group: int, maps: int, strided: bool) -> Tensor:
    """x [N, C, H, W] as [group, M, maps, C / maps, H, W] in the accumulation dtype."""
    n, c, h, w = x.shape
    x = x.to(reference.accumulation_dtype(x.dtype))
    if strided:
        return x.reshape(group, n // group, maps, c // maps, h, w)
    return x.reshape(n // group, group, maps, c // maps, h, w).transpose(0, 1)


def _ungrouped(y: Tensor, strided: bool) -> Tensor:
    y = y if strided else y.transpose(0, 1)
    return y.reshape(y.shape[0] * y.shape[1], y.shape[2] * y.shape[3], *y.shape[4:])


def _centred(y: Tensor) -> Tensor:
    """Return y minus its mean over the group.

    The mean is rounded, so the distances from it do not sum to zero: their own mean is taken off as well. Gradients
    keep the digits that the values share.
    """
    for _ in range(2):
        y = y - y.mean(dim=0, keepdim=True)
    return y


def _statistics(x: Tensor, group: int, maps: int, eps: float, strided: bool, correction: int):
    """(x - mu, s, D, E) of the formulas above."""
    y = _grouped(x, group, maps, strided)
    centred = _centred(y)
    divisor = max(group - correction, 1)
    s = torch.sqrt(centred.square().sum(dim=0, keepdim=True) / divisor + eps)
    return centred, s, divisor, y[0, 0, 0].numel()


def _map_gradient(dy: Tensor, x: Tensor, group: int, maps: int, strided: bool) -> Tensor:
    """T of the formulas above, [1, M, maps, 1, 1, 1]."""
    return _grouped(dy[:, x.shape[1] :], group, maps, strided).sum(dim=(0, 3, 4, 5), keepdim=True)


def _forward_fake(x, group, num_channels, eps, strided, correction):
    n, c, h, w = x.shape
    return like_layout(x, [n, c + num_channels, h, w])


def _forward_composite(x, group, num_channels, eps, strided, correction):
    y = _forward_fake(x, group, num_channels, eps, strided, correction)
    if x.numel():
        grouping = "strided" if strided else "consecutive"
        options = dict(grouping=grouping, correction=correction)
        y.copy_(reference.minibatch_stddev(x, group, num_channels, eps, **options))
    return y


def _backward_composite(dy, x, group, num_channels, eps, strided, correction):
    dx = torch.empty_like(x).copy_(dy[:, : x.shape[1]])
    if x.numel():
        centred, s, divisor, elements = _statistics(x, group, num_channels, eps, strided, correction)
        t = _map_gradient(dy, x, group, num_channels, strided)
        wide = dy[:, : x.shape[1]] + _ungrouped(centred * (t / (s * (divisor * elements))), strided)
        dx.copy_(wide)
    return dx


def _double_backward_composite(g, dy, x, group, num_channels, eps, strided, correction):
    d_dy, dx = torch.empty_like(dy), torch.empty_like(x)
    if x.numel():
        centred, s, divisor, elements = _statistics(x, group, num_channels, eps, strided, correction)
        t = _map_gradient(dy, x, group, num_channels, strided) / (divisor * elements)
        h = _centred(_grouped(g, group, num_channels, strided))
        a = (h * centred).sum(dim=0, keepdim=True)
        maps = (a / s).sum(dim=(3, 4, 5), keepdim=True) / (divisor * elements)
        maps = maps.expand(group, -1, -1, 1, *x.shape[2:])
        d_dy.copy_(torch.cat([g.to(s.dtype), _ungrouped(maps, strided)], dim=1))
        # Of two samples, h is a multiple of x - mu: the difference is what eps leaves of it, less than rounding would.
        difference = h * (eps / s**2) if group == 2 else h - centred * (a / (divisor * s**2))
        dx.copy_(_ungrouped(difference * (t / s), strided))
    return d_dy, dx


def _forward_tangent(x, t, group, num_channels, eps, strided, correction):
    """Return the tangent of y from that of x, in plain PyTorch, so that its derivatives are torch's own."""
    n, _, h, w = x.shape
    if not x.numel():
        return _forward_fake(x, group, num_channels, eps, strided, correction)
    centred, s, divisor, elements = _statistics(x, group, num_channels, eps, strided, correction)
    a = (_grouped(t, group, num_channels, strided) * centred).sum(dim=0, keepdim=True)
    maps = (a / s).sum(dim=(3, 4, 5), keepdim=True) / (divisor * elements)
    maps = _ungrouped(maps.expand(group, -1, -1, 1, h, w), strided)
    return torch.cat([t, maps.to(t.dtype)], dim=1)


_forward = define_implementations(
    f"minibatch_stddev(Tensor x, {_OPTIONS}) -> Tensor",
    composite=_forward_composite,
    fake=_forward_fake,
    triton="stddev.forward",
)
_backward = define_implementations(
    f"minibatch_stddev_backward(Tensor dy, Tensor x, {_OPTIONS}) -> Tensor",
    composite=_backward_composite,
    fake=lambda dy, x, *options: fake_like(x),
    triton="stddev.backward",
)
_double_backward = define_implementations(
    f"minibatch_stddev_double_backward(Tensor g, Tensor dy, Tensor x, {_OPTIONS}) -> (Tensor d_dy, Tensor dx)",
    composite=_double_backward_composite,
    fake=lambda g, dy, x, *options: (fake_like(dy), fake_like(x)),
    triton="stddev.double_backward",
)
differentiate_implementations(_forward, lambda x, *rest: MinibatchStddev.apply(x, rest[:-1], rest[-1]))
differentiate_implementations(_backward, lambda dy, x, *rest: MinibatchStddevBackward.apply(dy, x, rest[:-1], rest[-1]))
refuse_derivatives(_double_backward)


def _is_strided(*arguments) -> bool:
    """Whether sample n is in group n mod M, which samples of other batches between keep so."""
    return arguments[-2]


batch_implementations(_forward, fold_into_samples(0, interleaved=_is_strided))
batch_implementations(_backward, fold_into_samples(0, 1, interleaved=_is_strided))
batch_implementations(_double_backward, fold_into_samples(0, 1, 2, interleaved=_is_strided))
