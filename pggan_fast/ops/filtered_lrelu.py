"""filtered_lrelu: StyleGAN3's activation, which works at a higher resolution to keep what it makes free of aliases.

With U the upsampling filter, D the downsampling one, and m the slope of the activation at each value of the upsampled
grid (0 where it was clamped), the op's derivative is the linear map D m U, whose adjoint U' m D' is of the same form:
up and down exchanged, the filters exchanged and flipped. `filtered_lrelu_masked` computes that form in one pass, so
that it serves gradients of every order. All that is kept for them is m, packed to 2 bits a value.

mask: uint8 [N, C, ceil(grid_h / 4), L, ceil(grid_w / L)], L = lcm(up, down). The byte at [n, c, i, r, j] holds the
values of column r + L * j in the rows 4 * i to 4 * i + 3: bit 2 * k is set where that of row 4 * i + k is not above
zero, bit 2 * k + 1 where it was clamped. Bits of rows and columns behind the grid are 0.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast import reference
from pggan_fast.ops.activations import bias_act
from pggan_fast.ops.batching import fold_into_samples
from pggan_fast.ops.dispatch import choose
from pggan_fast.ops.geometry import Pair, check_filter, checked_factor, checked_sides, filter_size
from pggan_fast.ops.registry import (
    OpFunction,
    batch_implementations,
    below_autograd,
    define_implementations,
    differentiate_implementations,
    in_forward_mode,
    is_transformed,
    tangent_rule,
    through_dispatcher,
)
from pggan_fast.ops.resample import check_image, like_layout
from pggan_fast.ops.upfirdn2d import upfirdn2d
from pggan_fast.reference import accumulation_dtype

MOST_TAPS, MOST_FACTOR = 24, 4
"""A kernel's tile has room for filters [taps] and factors up to these; others, and filters [fh, fw], whose taps would
each be a product of its own (144 for 12 x 12), take three passes."""


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    up: int = 1,
    down: int = 1,
    padding: Pair = 0,
    gain: float = 2**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Add a bias, upsample with fu, activate, clamp, downsample with fd (Karras et al. 2021, section 3.2):

    1. `x + bias` along channels;
    2. `upfirdn2d(..., fu, up=up, padding=padding, gain=up**2)`: the padding comes after the bias and is zero;
    3. leaky ReLU of this slope, `* gain`, limits of -clamp and clamp if given;
    4. `upfirdn2d(..., fd, down=down)`.

    Filters [taps] of at most 24 taps, with factors to 4, take one pass that never writes the upsampled image, and
    gradients keep 2 bits of each of its values; filters [fh, fw] and longer ones take three passes.

    x [N, C, H, W] -> [N, C, (H * up + y0 + y1 - (fu_h - 1) - (fd_h - 1) + down - 1) // down, likewise W]. fu and fd are
    constants. Differentiable in x and bias to any order.
    """
    up, down = checked_factor("filtered_lrelu", "up", up), checked_factor("filtered_lrelu", "down", down)
    padding = sides = checked_sides("filtered_lrelu", padding)
    _check(x, fu, fd, bias, up, sides, gain, slope, clamp)
    impl = choose("filtered_lrelu", x, impl)
    options = dict(up=up, down=down, padding=padding, gain=gain, slope=slope, clamp=clamp, flip_filter=flip_filter)
    if impl == "reference":
        return reference.filtered_lrelu(x, fu, fd, bias, **options)
    if max(up, down) > MOST_FACTOR or not (_is_short(fu) and _is_short(fd)):
        return _in_three_passes(x, fu, fd, bias, **options, impl=impl)
    fu, fd = (torch.ones(1, device=x.device) if f is None else f for f in (fu, fd))
    clamp = None if clamp is None else float(clamp)
    differentiated = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    arguments = (x, bias, fu, fd, up, down, *sides, flip_filter, float(gain), float(slope), clamp)
    if through_dispatcher():
        return _forward[impl](*arguments, differentiated or is_transformed())[0]
    return FilteredLrelu.apply(*arguments, differentiated or in_forward_mode(), impl)[0]


def _in_three_passes(x, fu, fd, bias, *, up, down, padding, gain, slope, clamp, flip_filter, impl) -> Tensor:
    y = x.to(accumulation_dtype(x.dtype))  # rounded once, as in one pass
    if bias is not None:
        y = bias_act(y, bias, act="linear", impl=impl)
    y = upfirdn2d(y, fu, up=up, padding=padding, flip_filter=flip_filter, gain=up**2, impl=impl)
    y = bias_act(y, act="lrelu", slope=slope, gain=gain, clamp=clamp, impl=impl)
    return upfirdn2d(y, fd, down=down, flip_filter=flip_filter, impl=impl).to(x.dtype)


def _is_short(f: Tensor | None) -> bool:
    return f is None or (f.ndim == 1 and f.numel() <= MOST_TAPS)


def _check(x, fu, fd, bias, up, sides, gain, slope, clamp) -> None:
    check_image("filtered_lrelu", x)
    check_filter("filtered_lrelu", "fu", fu)
    check_filter("filtered_lrelu", "fd", fd)
    if not (gain > 0 and slope >= 0):
        raise ValueError(f"filtered_lrelu: gain is {gain} and slope is {slope}, must be above 0 and at least 0")
    if not (clamp is None or clamp >= 0):
        raise ValueError(f"filtered_lrelu: clamp is {clamp}, must be at least 0")
    if bias is not None and bias.shape != x.shape[1:2]:
        raise ValueError(f"filtered_lrelu: bias has shape {list(bias.shape)}, must be [{x.shape[1]}]")
    x0, x1, y0, y1 = sides
    (fuh, fuw), (fdh, fdw), (h, w) = filter_size(fu), filter_size(fd), x.shape[2:]
    if h * up + y0 + y1 < fuh + fdh - 1 or w * up + x0 + x1 < fuw + fdw - 1:
        raise ValueError(
            f"filtered_lrelu: the padded image is {h * up + y0 + y1} x {w * up + x0 + x1}, "
            f"must be at least the filters' {fuh + fdh - 1} x {fuw + fdw - 1}"
        )


class FilteredLrelu(OpFunction):
    """(x, bias, fu, fd, up, down, x0, x1, y0, y1, flip_filter, gain, slope, clamp, keep_mask, impl) -> (y, mask)"""

    @staticmethod
    def forward(ctx, x, bias, fu, fd, *rest):
        *options, ctx.impl = rest
        y, mask = below_autograd(_forward[ctx.impl], x, bias, fu, fd, *options)
        up, down, x0, _, y0, _, flip_filter, gain, slope, _, keep_mask = options
        # D m U from x to y: both orders of it are in these terms.
        ctx.linear = (
            fu,
            fd,
            up,
            down,
            x0,
            y0,
            0,
            0,
            *_grid(y, fd, down),
            *y.shape[2:],
            flip_filter,
            up**2 * gain,
            slope,
        )
        ctx.size, ctx.bias_dtype = x.shape[2:], None if bias is None else bias.dtype
        ctx.keep_mask = keep_mask
        ctx.mark_non_differentiable(mask)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mask)
        if in_forward_mode():
            ctx.save_for_forward(mask)
        return y, mask

    @staticmethod
    def backward(ctx, dy, _):
        if not ctx.keep_mask:
            raise RuntimeError("filtered_lrelu: called with keep_mask=False, which has no derivative")
        if dy is None:
            return (None,) * 16
        dx = _masked_map(dy, *ctx.saved_tensors, *_adjoint(*ctx.size, *ctx.linear), ctx.impl)
        db = None
        if ctx.needs_input_grad[1]:
            db = dx.sum((0, 2, 3), dtype=accumulation_dtype(dx.dtype)).to(ctx.bias_dtype)
        return dx, db, *[None] * 14

    @staticmethod
    @tangent_rule
    def jvp(ctx, saved, t_x, t_bias, *_):
        (mask,) = saved
        if t_bias is not None:
            t_bias = t_bias[:, None, None].expand(-1, *ctx.size)
            t_x = t_bias.expand(len(mask), -1, -1, -1) if t_x is None else t_x + t_bias.to(t_x.dtype)
        return _masked[ctx.impl](t_x, mask, *ctx.linear), None


class FilteredLreluMasked(OpFunction):
    """(x, mask, fu, fd, up, down, x0, y0, left, top, grid_h, grid_w, out_h, out_w, flip_filter, gain, slope, impl)

    -> y. Paddings are counted before the first filter (x0, y0) and before the second (left, top).
    """

    @staticmethod
    def forward(ctx, x, mask, *rest):
        *ctx.linear, ctx.impl = rest
        ctx.size = x.shape[2:]
        ctx.save_for_backward(mask)
        if in_forward_mode():
            ctx.save_for_forward(mask)
        return below_autograd(_masked[ctx.impl], x, mask, *ctx.linear)

    @staticmethod
    def backward(ctx, dy):
        dx = _masked_map(dy, *ctx.saved_tensors, *_adjoint(*ctx.size, *ctx.linear), ctx.impl)
        return dx, *[None] * 17

    @staticmethod
    @tangent_rule
    def jvp(ctx, saved, t_x, *_):
        return _masked[ctx.impl](t_x, *saved, *ctx.linear)


def _masked_map(x: Tensor, mask: Tensor, *arguments) -> Tensor:
    *linear, impl = arguments
    if through_dispatcher():
        return _masked[impl](x, mask, *linear)
    return FilteredLreluMasked.apply(x, mask, *linear, impl)


def _grid(y: Tensor, fd: Tensor, down: int) -> tuple[int, int]:
    """The size of the upsampled grid: the part that outputs are made of."""
    return tuple((size - 1) * down + fd.numel() for size in y.shape[2:])


def _adjoint(
    h, w, fu, fd, up, down, x0, y0, left, top, grid_h, grid_w, out_h, out_w, flip_filter, gain, slope
) -> tuple:
    """The arguments behind x and mask with which `filtered_lrelu_masked` maps [out_h, out_w] to [h, w], transposed."""
    before, behind = fd.numel() - 1, fu.numel() - 1
    paddings = (before - left, before - top, behind - x0, behind - y0)
    return (fd, fu, down, up, *paddings, grid_h, grid_w, h, w, not flip_filter, gain, slope)


def _mask_shape(n: int, c: int, grid_h: int, grid_w: int, up: int, down: int) -> list[int]:
    step = math.lcm(up, down)
    return [n, c, (grid_h + 3) // 4, step, (grid_w + step - 1) // step]


def _forward_fake(x, bias, fu, fd, up, down, x0, x1, y0, y1, flip_filter, gain, slope, clamp, keep_mask):
    n, c, h, w = x.shape
    taps = fu.numel() + fd.numel() - 2
    y = like_layout(x, [n, c, (h * up + y0 + y1 - taps - 1) // down + 1, (w * up + x0 + x1 - taps - 1) // down + 1])
    return y, x.new_empty(_mask_shape(n, c, *_grid(y, fd, down), up, down) if keep_mask else [0], dtype=torch.uint8)


def _forward_composite(x, bias, fu, fd, up, down, x0, x1, y0, y1, flip_filter, gain, slope, clamp, keep_mask):
    y, mask = _forward_fake(x, bias, fu, fd, up, down, x0, x1, y0, y1, flip_filter, gain, slope, clamp, keep_mask)
    if y.numel() == 0:
        return y, mask
    grid_h, grid_w = _grid(y, fd, down)
    u = x.to(accumulation_dtype(x.dtype))
    u = u if bias is None else u + bias.to(u.dtype)[:, None, None]
    options = dict(padding=(x0, x1, y0, y1), flip_filter=flip_filter, gain=up**2 * gain)
    u = reference.upfirdn2d(u, fu, up=up, **options)[..., :grid_h, :grid_w]
    v = reference.leaky_relu(u, slope)
    limit = math.inf if clamp is None else clamp
    if keep_mask:
        mask.copy_(_packed((u <= 0).byte() + 2 * (v.abs() >= limit).byte(), math.lcm(up, down)))
    v = v.clamp(-limit, limit)
    return y.copy_(reference.upfirdn2d(v, fd, down=down, flip_filter=flip_filter)), mask


def _masked_fake(x, mask, fu, fd, up, down, x0, y0, left, top, grid_h, grid_w, out_h, out_w, flip_filter, gain, slope):
    return like_layout(x, [*x.shape[:2], out_h, out_w])


def _masked_composite(
    x, mask, fu, fd, up, down, x0, y0, left, top, grid_h, grid_w, out_h, out_w, flip_filter, gain, slope
):
    y = like_layout(x, [*x.shape[:2], out_h, out_w])
    if y.numel() == 0:
        return y
    (h, w), before, behind = x.shape[2:], fu.numel() - 1, fd.numel() - 1
    sides = (x0, grid_w + before - w * up - x0, y0, grid_h + before - h * up - y0)
    u = x.to(accumulation_dtype(x.dtype))
    u = reference.upfirdn2d(u, fu, up=up, padding=sides, flip_filter=flip_filter, gain=gain)
    bits = _unpacked(mask, grid_h, grid_w)
    u = torch.where(bits & 1 > 0, u * slope, u) * (bits < 2)
    right, bottom = ((n - 1) * down + behind + 1 - size for n, size in ((out_w, grid_w), (out_h, grid_h)))
    sides = (left, right - left, top, bottom - top)
    return y.copy_(reference.upfirdn2d(u, fd, down=down, padding=sides, flip_filter=flip_filter))


def _packed(bits: Tensor, step: int) -> Tensor:
    """Values of 2 bits [N, C, H, W] as a mask, see the top of this file."""
    n, c, h, w = bits.shape
    bits = F.pad(bits, (0, -w % step, 0, -h % 4))
    bits = bits.view(n, c, -(-h // 4), 4, -(-w // step), step)
    return sum(bits[:, :, :, k] << 2 * k for k in range(4)).transpose(-1, -2)


def _unpacked(mask: Tensor, h: int, w: int) -> Tensor:
    """A mask as values of 2 bits [N, C, H, W]."""
    rows = torch.stack([mask.transpose(-1, -2) >> 2 * k & 3 for k in range(4)], dim=3)
    return rows.flatten(4).flatten(2, 3)[..., :h, :w]


_forward = define_implementations(
    "filtered_lrelu(Tensor x, Tensor? bias, Tensor fu, Tensor fd, int up=1, int down=1, SymInt x0=0, SymInt x1=0, "
    "SymInt y0=0, SymInt y1=0, bool flip_filter=False, float gain=1.0, float slope=0.2, float? clamp=None, "
    "bool keep_mask=True) -> (Tensor y, Tensor mask)",
    composite=_forward_composite,
    fake=_forward_fake,
    triton="filtered_lrelu.forward",
)
_masked = define_implementations(
    "filtered_lrelu_masked(Tensor x, Tensor mask, Tensor fu, Tensor fd, int up, int down, SymInt x0, SymInt y0, "
    "SymInt left, SymInt top, SymInt grid_h, SymInt grid_w, SymInt out_h, SymInt out_w, bool flip_filter=False, "
    "float gain=1.0, float slope=0.2) -> Tensor",
    composite=_masked_composite,
    fake=_masked_fake,
    triton="filtered_lrelu.masked",
)
differentiate_implementations(_forward, FilteredLrelu.apply)
differentiate_implementations(_masked, FilteredLreluMasked.apply)
batch_implementations(_forward, fold_into_samples(0))
batch_implementations(_masked, fold_into_samples(0, 1))
