"""upsample2x and downsample2x. Up to a factor each is the other's adjoint, so gradients of any order are ops again."""

import torch
from torch import Tensor

from pggan_fast import reference
from pggan_fast.ops import small
from pggan_fast.ops.batching import fold_into_samples
from pggan_fast.ops.dispatch import choose
from pggan_fast.ops.geometry import check_floating
from pggan_fast.ops.layout import is_channels_last
from pggan_fast.ops.registry import (
    OpFunction,
    batch_implementations,
    below_autograd,
    define_implementations,
    differentiate_implementations,
    in_forward_mode,
    tangent_rule,
    through_dispatcher,
)


def upsample2x(x: Tensor, *, impl: str = "auto") -> Tensor:
    """Nearest-neighbour upsampling, [N, C, H, W] -> [N, C, 2H, 2W].

    Any floating dtype and strides; the result has x's dtype and layout. Differentiable to any order.
    """
    check_image("upsample2x", x)
    if small.takes_rescaling(x, 2, impl):
        return torch._C._nn.upsample_nearest2d(x, None, (2.0, 2.0))
    impl = choose("upsample2x", x, impl)
    if impl == "reference":
        return reference.upsample2x(x)
    if through_dispatcher():
        return _upsample[impl](x, 1.0, 0, 0)
    return Upsample2x.apply(x, 1.0, 0, 0, impl)


def downsample2x(x: Tensor, *, impl: str = "auto") -> Tensor:
    """2x2 mean, [N, C, H, W] -> [N, C, H // 2, W // 2]; an odd last row or column is dropped, as avg_pool2d does.

    Any floating dtype and strides, accumulated in fp32 (fp64 for fp64); the result has x's dtype and layout.
    Differentiable to any order.
    """
    check_image("downsample2x", x)
    if small.takes_rescaling(x, 1, impl) and min(x.shape[2:]) > 1:
        return torch._C._nn.avg_pool2d(x, 2)
    impl = choose("downsample2x", x, impl)
    if impl == "reference":
        return reference.downsample2x(x)
    if through_dispatcher():
        return _downsample[impl](x, 0.25)
    return Downsample2x.apply(x, 0.25, impl)


def check_image(op: str, x: Tensor, *also: torch.dtype, name: str = "x") -> None:
    """Refuse what is no image in a floating dtype or in one of `also`."""
    if x.ndim != 4:
        raise ValueError(f"{op}: {name} must be [N, C, H, W], got {list(x.shape)}")
    check_floating(op, x, *also, name=name)


class Upsample2x(OpFunction):
    """(x, scale, extra_h, extra_w, impl): scale * upsample2x(x), then extra rows and columns (0 or 1) of zeros."""

    @staticmethod
    def forward(ctx, x, scale, extra_h, extra_w, impl):
        ctx.scale, ctx.extra, ctx.impl = scale, (extra_h, extra_w), impl
        return below_autograd(_upsample[impl], x, scale, extra_h, extra_w)

    @staticmethod
    def backward(ctx, dy):
        return sum_blocks(dy, ctx.scale, ctx.impl), None, None, None, None

    @staticmethod
    @tangent_rule
    def jvp(ctx, saved, t, *_):
        return repeat(t, ctx.scale, *ctx.extra, ctx.impl)


class Downsample2x(OpFunction):
    """(x, scale, impl): scale * the sum over 2x2 blocks; an odd last row or column is dropped."""

    @staticmethod
    def forward(ctx, x, scale, impl):
        ctx.scale, ctx.extra, ctx.impl = scale, (x.shape[2] % 2, x.shape[3] % 2), impl
        return below_autograd(_downsample[impl], x, scale)

    @staticmethod
    def backward(ctx, dy):
        return repeat(dy, ctx.scale, *ctx.extra, ctx.impl), None, None

    @staticmethod
    @tangent_rule
    def jvp(ctx, saved, t, *_):
        return sum_blocks(t, ctx.scale, ctx.impl)


def repeat(x: Tensor, scale: float, extra_h: int, extra_w: int, impl: str) -> Tensor:
    """Return Upsample2x of these arguments, under any transform."""
    if through_dispatcher():
        return _upsample[impl](x, scale, extra_h, extra_w)
    if not torch.is_grad_enabled() and not in_forward_mode():
        return below_autograd(_upsample[impl], x, scale, extra_h, extra_w)
    return Upsample2x.apply(x, scale, extra_h, extra_w, impl)


def sum_blocks(x: Tensor, scale: float, impl: str) -> Tensor:
    """Return Downsample2x of these arguments, under any transform."""
    if through_dispatcher():
        return _downsample[impl](x, scale)
    if not torch.is_grad_enabled() and not in_forward_mode():
        return below_autograd(_downsample[impl], x, scale)
    return Downsample2x.apply(x, scale, impl)


def like_layout(x: Tensor, shape: list) -> Tensor:
    """An empty tensor of another [N, C, H, W] shape in x's dtype and layout."""
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _upsample_fake(x, scale, extra_h, extra_w):
    n, c, h, w = x.shape
    return like_layout(x, [n, c, 2 * h + extra_h, 2 * w + extra_w])


def _upsample_composite(x, scale, extra_h, extra_w):
    y = _upsample_fake(x, scale, extra_h, extra_w)
    if x.numel() == 0:  # the gradient of a row's 2x2 mean, which has no pixels
        return y.zero_()
    return y.copy_(torch.nn.functional.pad(reference.upsample2x(x) * scale, (0, extra_w, 0, extra_h)))


def _downsample_fake(x, scale):
    n, c, h, w = x.shape
    return like_layout(x, [n, c, h // 2, w // 2])


def _downsample_composite(x, scale):
    wide = x.to(reference.accumulation_dtype(x.dtype))
    return _downsample_fake(x, scale).copy_(reference.downsample2x(wide) * (4 * scale))


_upsample = define_implementations(
    "upsample2x(Tensor x, float scale=1.0, SymInt extra_h=0, SymInt extra_w=0) -> Tensor",
    composite=_upsample_composite,
    fake=_upsample_fake,
    triton="resample.upsample",
)
_downsample = define_implementations(
    "downsample2x(Tensor x, float scale=0.25) -> Tensor",
    composite=_downsample_composite,
    fake=_downsample_fake,
    triton="resample.downsample",
)
differentiate_implementations(_upsample, Upsample2x.apply)
differentiate_implementations(_downsample, Downsample2x.apply)
for _implementations in (_upsample, _downsample):
    batch_implementations(_implementations, fold_into_samples(0))
