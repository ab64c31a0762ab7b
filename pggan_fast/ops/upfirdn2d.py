"""upfirdn2d: upsample by zeros, pad, filter, downsample; and the filters and resamplings of the StyleGAN family.

With U zeros behind each pixel, F the convolution with f and D the choice of each `down`-th pixel, y = D F U x is
linear in x, and its adjoint is the same op: up and down exchanged, the filter flipped, other padding. Gradients of any
order are therefore upfirdn2d again. f is a constant: it gets no gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pggan_fast import reference
from pggan_fast.ops.batching import fold_into_samples
from pggan_fast.ops.dispatch import choose
from pggan_fast.ops.geometry import Pair, check_filter, checked_axes, checked_sides, filter_size
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
from pggan_fast.ops.resample import check_image, like_layout


def upfirdn2d(
    x: Tensor,
    f: Tensor | None = None,
    *,
    up: Pair = 1,
    down: Pair = 1,
    padding: Pair = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    impl: str = "auto",
) -> Tensor:
    """Upsample, pad, filter and downsample images in one pass over memory (Karras et al. 2020, appendix B):

    1. put `up - 1` zeros behind each pixel;
    2. pad with zeros (or crop, where negative), counted in upsampled pixels;
    3. convolve every channel with f, valid positions only; with `flip_filter` correlate instead;
    4. keep pixels 0, down, 2 * down...; multiply by `gain`.

    x: [N, C, H, W], any strides; fp64, fp32, bf16 or fp16, accumulated in fp32 (fp64 for fp64).
    f: [fh, fw], or [taps] applied along x and along y, or None; a constant without a gradient.
    up, down: a number or (x, y). padding: a number, (x, y), or (x0, x1, y0, y1).
    Returns [N, C, (H * upy + y0 + y1 - fh) // downy + 1, (W * upx + x0 + x1 - fw) // downx + 1] in x's dtype and
    layout. Differentiable in x to any order.
    """
    check_image("upfirdn2d", x)
    up, down = checked_axes("upfirdn2d", "up", up), checked_axes("upfirdn2d", "down", down)
    padding = checked_sides("upfirdn2d", padding)
    check_filter("upfirdn2d", "f", f)
    _check_size(x, f, up, padding)
    impl = choose("upfirdn2d", x, impl)
    if impl == "reference":
        return reference.upfirdn2d(x, f, up=up, down=down, padding=padding, flip_filter=flip_filter, gain=gain)
    f = torch.ones(1, 1, device=x.device) if f is None else f
    return _resample(x, f, (*up, *down, *padding, flip_filter, float(gain)), impl)


def setup_filter(
    f: Tensor | Sequence | float | None,
    *,
    device: str | torch.device = "cpu",
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1.0,
    separable: bool | None = None,
) -> Tensor:
    """Return an fp32 filter for `upfirdn2d` of a list, tensor, number or None (one tap).

    `normalize` divides by the sum; `gain` multiplies by gain ** (dimensions / 2), so that a filter applied along both
    axes gains as much as one in two dimensions. `separable=None` keeps a 1-d filter of 8 taps or more in one
    dimension; a shorter one becomes its outer product.
    """
    try:
        f = torch.as_tensor(1 if f is None else f, dtype=torch.float32, device=device)
    except (TypeError, ValueError) as error:
        raise ValueError(f"setup_filter: f is {f!r}, must be None, a number, or taps as a list or tensor") from error
    if f.ndim > 2 or f.numel() == 0:
        raise ValueError(f"setup_filter: f has shape {list(f.shape)}, must be a number, [taps] or [fh, fw]")
    f = f[None] if f.ndim == 0 else f
    separable = f.ndim == 1 and f.numel() >= 8 if separable is None else separable
    if separable and f.ndim == 2:
        raise ValueError(f"setup_filter: separable is True, f of shape {list(f.shape)} must then be [taps]")
    f = torch.outer(f, f) if f.ndim == 1 and not separable else f
    if gain < 0 and f.ndim == 1:
        raise ValueError(
            f"setup_filter: gain is {gain}, must be at least 0 for a filter that is applied along each axis"
        )
    f = f / f.sum() if normalize else f
    f = f.flip(tuple(range(f.ndim))) if flip_filter else f
    return f * gain ** (f.ndim / 2)


def filter2d(x: Tensor, f: Tensor | None, *, padding: Pair = 0, flip_filter: bool = False, gain: float = 1.0) -> Tensor:
    """Filter images to the same size; `padding` is added to what that takes. Arguments as `upfirdn2d`."""
    check_filter("filter2d", "f", f)
    fh, fw = filter_size(f)
    sides = (fw // 2, (fw - 1) // 2, fh // 2, (fh - 1) // 2)
    return upfirdn2d(x, f, padding=_added("filter2d", padding, sides), flip_filter=flip_filter, gain=gain)


def upsample2d(
    x: Tensor, f: Tensor | None, up: Pair = 2, *, padding: Pair = 0, flip_filter: bool = False, gain: float = 1.0
) -> Tensor:
    """Upsample images to `up` times the size with f's interpolation, brightness kept; `padding` is added to that."""
    check_filter("upsample2d", "f", f)
    upx, upy = checked_axes("upsample2d", "up", up)
    fh, fw = filter_size(f)
    sides = ((fw + upx - 1) // 2, (fw - upx) // 2, (fh + upy - 1) // 2, (fh - upy) // 2)
    return upfirdn2d(
        x,
        f,
        up=(upx, upy),
        padding=_added("upsample2d", padding, sides),
        flip_filter=flip_filter,
        gain=gain * upx * upy,
    )


def downsample2d(
    x: Tensor, f: Tensor | None, down: Pair = 2, *, padding: Pair = 0, flip_filter: bool = False, gain: float = 1.0
) -> Tensor:
    """Filter images with f and keep every `down`-th pixel; `padding` is added to what keeps them centred."""
    check_filter("downsample2d", "f", f)
    downx, downy = checked_axes("downsample2d", "down", down)
    fh, fw = filter_size(f)
    sides = ((fw - downx + 1) // 2, (fw - downx) // 2, (fh - downy + 1) // 2, (fh - downy) // 2)
    return upfirdn2d(
        x, f, down=(downx, downy), padding=_added("downsample2d", padding, sides), flip_filter=flip_filter, gain=gain
    )


def _added(op: str, padding: Pair, sides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(checked_sides(op, padding), sides, strict=True))


def _check_size(x: Tensor, f: Tensor | None, up: tuple[int, int], padding: tuple[int, int, int, int]) -> None:
    (fh, fw), (h, w), (upx, upy), (x0, x1, y0, y1) = filter_size(f), x.shape[2:], up, padding
    if h * upy + y0 + y1 < fh or w * upx + x0 + x1 < fw:
        raise ValueError(
            f"upfirdn2d: the padded image is {h * upy + y0 + y1} x {w * upx + x0 + x1}, "
            f"must be at least the filter's {fh} x {fw}"
        )


class Upfirdn2d(OpFunction):
    """(x, f, options, impl) -> y, the options as `_resample` takes them."""

    @staticmethod
    def forward(ctx, x, f, options, impl):
        y = below_autograd(_upfirdn2d[impl], x, f, *options)
        ctx.f, ctx.options, ctx.impl = f, options, impl
        ctx.sizes = (*x.shape[2:], *y.shape[2:])
        return y

    @staticmethod
    def backward(ctx, dy):
        return _resample(dy, ctx.f, adjoint(ctx.f, *ctx.sizes, *ctx.options), ctx.impl), None, None, None

    @staticmethod
    @tangent_rule
    def jvp(ctx, saved, t_x, *_):
        return _resample(t_x, ctx.f, ctx.options, ctx.impl)


def _resample(x: Tensor, f: Tensor, options: tuple, impl: str) -> Tensor:
    """upfirdn2d, under any transform; options: (upx, upy, downx, downy, x0, x1, y0, y1, flip_filter, gain)."""
    if through_dispatcher():
        return _upfirdn2d[impl](x, f, *options)
    if not torch.is_grad_enabled() and not in_forward_mode():
        return below_autograd(_upfirdn2d[impl], x, f, *options)
    return Upfirdn2d.apply(x, f, options, impl)


def adjoint(
    f: Tensor,
    h: int,
    w: int,
    oh: int,
    ow: int,
    upx: int,
    upy: int,
    downx: int,
    downy: int,
    x0: int,
    x1: int,
    y0: int,
    y1: int,
    flip_filter: bool,
    gain: float,
) -> tuple:
    """The options with which upfirdn2d maps [.., oh, ow] back to [.., h, w], transposed."""
    fh, fw = filter_size(f)
    left, top = fw - 1 - x0, fh - 1 - y0
    right = w * upx - ow * downx + x0 - upx + 1
    bottom = h * upy - oh * downy + y0 - upy + 1
    return downx, downy, upx, upy, left, right, top, bottom, not flip_filter, gain


def _fake(x, f, upx, upy, downx, downy, x0, x1, y0, y1, flip_filter, gain):
    (fh, fw), (n, c, h, w) = filter_size(f), x.shape
    return like_layout(x, [n, c, (h * upy + y0 + y1 - fh) // downy + 1, (w * upx + x0 + x1 - fw) // downx + 1])


def _composite(x, f, upx, upy, downx, downy, x0, x1, y0, y1, flip_filter, gain):
    y = _fake(x, f, upx, upy, downx, downy, x0, x1, y0, y1, flip_filter, gain)
    if x.numel() == 0 or y.numel() == 0:  # the gradient of an image that was all padding has no pixels
        return y.zero_()
    up, down, padding = (upx, upy), (downx, downy), (x0, x1, y0, y1)
    return reference.upfirdn2d(x, f, up=up, down=down, padding=padding, flip_filter=flip_filter, gain=gain)


_upfirdn2d = define_implementations(
    "upfirdn2d(Tensor x, Tensor f, int upx=1, int upy=1, int downx=1, int downy=1, SymInt x0=0, SymInt x1=0, "
    "SymInt y0=0, SymInt y1=0, bool flip_filter=False, float gain=1.0) -> Tensor",
    composite=_composite,
    fake=_fake,
    triton="upfirdn2d.upfirdn2d",
)
differentiate_implementations(_upfirdn2d, lambda x, f, *rest: Upfirdn2d.apply(x, f, rest[:-1], rest[-1]))
batch_implementations(_upfirdn2d, fold_into_samples(0))
