"""equalized_conv2d: convolution, folded 2x rescaling, and the bias_act epilogue on the fresh output in place.

On GPUs the whole is one Triton launch where `conv_fused` expects that to be faster, or where it is asked for by name.
"""

from functools import partial
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast import reference
from pggan_fast.ops.bias_act import (
    EPILOGUE_SCHEMA,
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
from pggan_fast.ops.dispatch import choose, requested_impl
from pggan_fast.ops.fold import empty_folded, fold_weight, unfold_gradient
from pggan_fast.ops.layout import in_layout, is_channels_last, to_layout
from pggan_fast.ops.narrow_cpu import computed_dtype, convolution, convolution_backward
from pggan_fast.ops.registry import (
    TRITON_INSTALLED,
    OpFunction,
    below_autograd,
    decompose_forms,
    define_forms,
    differentiate_forms,
    is_transformed,
    through_dispatcher,
    will_need_grad,
)
from pggan_fast.reference import accumulation_dtype, weight_factor


def equalized_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    weight_scale: float | None = None,
    padding: int | None = None,
    up: int = 1,
    down: int = 1,
    act: str = "linear",
    slope: float = 0.2,
    gain: float = 1.0,
    pixel_norm: bool = False,
    eps: float = 1e-8,
    impl: str = "auto",
) -> Tensor:
    """Convolution with an equalized learning rate (paper, section 4.1) and everything that follows it:

    1. nearest upsampling by 2 if `up=2`;
    2. convolution with `weight`, zero padding `padding` (default k // 2, "same" for odd kernels);
    3. 2x2 mean if `down=2` (an odd last row or column is dropped);
    4. `bias_act` with `weight_scale` as its scale (default sqrt(2 / fan_in)), so the weight is never scaled.

    1+2 and 2+3 are each one strided convolution with a folded kernel; neither large intermediate exists.

    x: [N, C_in, H, W], any strides. weight: [C_out, C_in, k, k]. bias: [C_out] or None.
    Computes in x's dtype (autocast's where that is on) with the weight cast to it, the epilogue in fp32.
    Returns [N, C_out, H', W'] in x's dtype and layout. Twice differentiable in x, weight and bias.
    Raises ValueError for shapes that do not match, up and down other than 1 and 2 or both 2,
    and what `bias_act` refuses.
    """
    _check(x, weight, up, down, padding)
    weight_scale = reference.default_weight_scale(weight) if weight_scale is None else weight_scale
    options = (weight_scale, act, slope, gain, pixel_norm, eps)
    check_epilogue("equalized_conv2d", weight.shape[:1], bias, options)
    padding = weight.shape[-1] // 2 if padding is None else padding
    x, weight = autocast_input(x), as_nonleaf_view(weight)
    form = choose("equalized_conv2d", x, impl)
    if form == "reference":
        return reference.equalized_conv2d(
            x,
            weight,
            bias,
            weight_scale=weight_scale,
            padding=padding,
            up=up,
            down=down,
            act=act,
            slope=slope,
            gain=gain,
            pixel_norm=pixel_norm,
            eps=eps,
        )
    if form == "triton" and requested_impl(impl) == "auto":
        form = "native"  # which takes Triton's kernels where there are no native ones, but not for every convolution
    if through_dispatcher():
        return _forward[form](x, weight, bias, padding, up, down, *options)[0]
    if bias is not None and not (form == "native" and x.is_cpu):
        bias = as_nonleaf_view(bias)
    return _differentiable(x, weight, bias, (padding, up, down), options, form)[0]


def _check(x: Tensor, weight: Tensor, up: int, down: int, padding: int | None) -> None:
    if x.ndim != 4 or weight.ndim != 4 or weight.shape[2] != weight.shape[3] or x.shape[1] != weight.shape[1]:
        raise ValueError(
            "equalized_conv2d: x must be [N, C_in, H, W] and weight [C_out, C_in, k, k], "
            f"got {list(x.shape)} and {list(weight.shape)}"
        )
    if (up, down) not in ((1, 1), (2, 1), (1, 2)):
        raise ValueError(f"equalized_conv2d: up={up} and down={down}, each must be 1 or 2, and not both 2")
    k = weight.shape[-1]
    if padding is None and k % 2 == 0:
        raise ValueError(f"equalized_conv2d: a kernel of even size {k} needs an explicit padding")
    if padding is not None and not 0 <= padding <= (k - 1 if up == 2 else k):
        raise ValueError(f"equalized_conv2d: padding is {padding}, must be 0 to {k - 1 if up == 2 else k}")


def autocast_input(x: Tensor) -> Tensor:
    """x in autocast's dtype where autocast is on, as torch's own convolution and linear take it."""
    device_type = x.device.type
    if device_type == "meta":  # which autocast does not know
        return x
    if torch.is_autocast_enabled(device_type) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device_type))
    return x


def as_nonleaf_view(weight: Tensor) -> Tensor:
    """Return a view of a parameter, since `will_need_grad` cannot tell whether a leaf's gradient will be used."""
    if weight.requires_grad and weight.is_leaf and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return weight.view_as(weight)
    return weight


def _fused() -> ModuleType:
    """Imported at its first use, since Triton may not be installed."""
    from pggan_fast.ops import conv_fused

    return conv_fused


def _is_fused(x: Tensor, weight: Tensor, geometry: tuple, options: tuple, impl: str) -> bool:
    pixel_norm = options[4]
    if _is_without_blocks(x.shape, weight.shape[-1], geometry):
        return False
    if impl == "triton":
        return _fused().is_possible(weight, pixel_norm)
    return x.is_cuda and TRITON_INSTALLED and _fused().is_faster(x, weight, geometry, pixel_norm)


def _differentiable(x, weight, bias, geometry, options, impl) -> tuple[Tensor, Tensor]:
    if is_transformed():
        return _composite(x, weight, bias, *geometry, *options, impl)
    # Inside a Function grad mode is off, whatever it was.
    return EqualizedConv2d.apply(x, weight, bias, geometry, options, impl, torch.is_grad_enabled())


def _composite(x, weight, bias, padding, up, down, *rest) -> tuple[Tensor, Tensor]:
    """Return (y, r) by torch's own convolution, which knows every transform, and the fused epilogue, which does too."""
    (scale, *options), impl = rest[:-1], rest[-1]
    factor = weight_factor(x.dtype, scale)
    x = reference.upsample2x(x) if up == 2 else x
    z = F.conv2d(x, (weight * factor).to(x.dtype), padding=padding)
    options = (scale / factor, *options)
    return bias_act_op[impl](reference.downsample2x(z) if down == 2 else z, bias, *options)


class EqualizedConv2d(OpFunction):
    """(x, weight, bias, (padding, up, down), epilogue's options, impl, whether gradients are recorded) -> (y, r)."""

    @staticmethod
    def forward(ctx, x, weight, bias, geometry, options, impl, recorded):
        ctx.geometry, ctx.fused = geometry, _is_fused(x, weight, geometry, options, impl)
        ctx.factor = 1.0 if ctx.fused or impl == "triton" else weight_factor(x.dtype, options[0])
        recorded = recorded and any(ctx.needs_input_grad)
        signs_wanted = ctx.fused and recorded and _fused().keeps_signs(geometry, options)
        y, r = below_autograd(_forward[impl], x, weight, bias, *geometry, *options, signs_wanted)
        kept = y
        if signs_wanted:
            # The signs of y stand in for it: less to read, and nothing that the next layer might not keep.
            kept, r = r, x.new_empty(0, dtype=accumulation_dtype(x.dtype))
        remember_epilogue(ctx, kept, r, bias, (options[0] / ctx.factor, *options[1:]), impl, x, weight)
        return y, r

    @staticmethod
    def backward(ctx, dy, dr):
        if dy is None and dr is None:
            return (None,) * 7
        x, weight, y, r = ctx.saved_tensors
        if dr is None and is_zeros(dy):
            return input_zeros(x), zeros_like(weight), bias_zeros(ctx, dy), None, None, None, None
        wanted = (will_need_grad(ctx, 0), will_need_grad(ctx, 1))
        if ctx.fused:
            every = (*wanted, will_need_grad(ctx, 2))
            if _fused().takes_gradients(ctx.geometry, ctx.epilogue, every):
                weight = as_nonleaf_view(weight)
                dx, dw, db = _fused().fused_backward(dy, dr, y, r, x, weight, ctx.geometry, ctx.epilogue, every)
                return dx, dw, None if db is None else db.to(ctx.bias_dtype), None, None, None, None
            y = _fused().values_of(y, dy)
        dz, db = epilogue_backward(ctx, dy, dr, y, r, ctx.needs_input_grad[2])
        dx, dw = _conv_gradients(dz, x, weight, wanted, ctx.geometry, ctx.factor, ctx.impl)
        return dx, dw, db, None, None, None, None


def _conv_gradients(dz, x, weight, output_mask, *conv_params) -> tuple[Tensor | None, Tensor | None]:
    """Return (dx, dw) of the bare convolution: one call, or two differentiable ones where a graph is built.

    conv_params are ((padding, up, down), the weight's factor, impl).
    """
    needs_dx, needs_dw = output_mask
    if not needs_dx and not needs_dw:
        return None, None
    if not torch.is_grad_enabled():
        return _raw_gradients(dz, x, weight, output_mask, *conv_params)
    dx = _InputGradient.apply(dz, as_nonleaf_view(weight), x.detach(), *conv_params) if needs_dx else None
    dw = _WeightGradient.apply(dz, x, weight.detach(), *conv_params) if needs_dw else None
    return dx, dw


# The convolution F(x, w), its input gradient B(dz, w) and its weight gradient W(dz, x) are each linear in both
# arguments, and each one's gradients are the other two: closed under differentiation, to any order.
# torch's own double backward computes W as a convolution with an image-sized kernel, which is far slower.


class _Convolution(OpFunction):
    """F(x, w)."""

    @staticmethod
    def forward(ctx, x, weight, *conv_params):
        ctx.save_for_backward(x, weight)
        ctx.conv_params = conv_params
        return _raw_convolution(x, weight, *conv_params)

    @staticmethod
    def backward(ctx, dz):
        x, weight = ctx.saved_tensors
        output_mask = (ctx.needs_input_grad[0], will_need_grad(ctx, 1))
        return *_conv_gradients(dz, x, weight, output_mask, *ctx.conv_params), None, None, None


class _InputGradient(OpFunction):
    """B(dz, w); `like` has the shape of x and no gradient."""

    @staticmethod
    def forward(ctx, dz, weight, like, *conv_params):
        ctx.save_for_backward(dz, weight)
        ctx.conv_params = conv_params
        return _raw_gradients(dz, like, weight, (True, False), *conv_params)[0]

    @staticmethod
    def backward(ctx, g):
        dz, weight = ctx.saved_tensors
        d_dz = _Convolution.apply(g, weight, *ctx.conv_params) if ctx.needs_input_grad[0] else None
        dw = _WeightGradient.apply(dz, g, weight.detach(), *ctx.conv_params) if will_need_grad(ctx, 1) else None
        return d_dz, dw, None, None, None, None


class _WeightGradient(OpFunction):
    """W(dz, x); `like` has the shape and dtype of the weight and no gradient."""

    @staticmethod
    def forward(ctx, dz, x, like, *conv_params):
        ctx.save_for_backward(dz, x)
        ctx.conv_params = conv_params
        return _raw_gradients(dz, x, like, (False, True), *conv_params)[1]

    @staticmethod
    def backward(ctx, g):
        dz, x = ctx.saved_tensors
        d_dz = _Convolution.apply(x, g, *ctx.conv_params) if ctx.needs_input_grad[0] else None
        dx = _InputGradient.apply(dz, g, x.detach(), *ctx.conv_params) if ctx.needs_input_grad[1] else None
        return d_dz, dx, None, None, None, None


def _arguments(k: int, padding: int, up: int, down: int) -> tuple:
    """(stride, padding, dilation, transposed, output_padding, groups) of the folded weight's convolution."""
    stride = max(up, down)
    padding = k - 1 - padding if up == 2 else padding
    return [stride, stride], [padding, padding], [1, 1], up == 2, [0, 0], 1


def _is_without_blocks(x_shape: torch.Size, k: int, geometry: tuple) -> bool:
    """Whether down=2 has no 2x2 block to take the mean of: the convolution's output is one row or column."""
    padding, _, down = geometry
    return down == 2 and 1 in (x_shape[2] + 2 * padding - k + 1, x_shape[3] + 2 * padding - k + 1)


def _empty_output(x: Tensor, weight: Tensor, geometry: tuple) -> Tensor:
    n, _, h, w = x.shape
    h, w = ((size + 2 * geometry[0] - weight.shape[-1] + 1) // 2 for size in (h, w))
    return in_layout(x.new_empty(n, weight.shape[0], h, w), is_channels_last(x))


def _raw_convolution(x, weight, geometry, factor, impl) -> Tensor:
    if _is_without_blocks(x.shape, weight.shape[-1], geometry):
        return _empty_output(x, weight, geometry)
    if impl == "triton":
        return _fused().convolution(x, weight, geometry)
    padding, up, down = geometry
    arguments = _arguments(weight.shape[-1], padding, up, down)
    channels_last = is_channels_last(x)
    with torch._C._AutoDispatchBelowAutograd():
        if up == 2 and _slow_transposed(x):
            return _transposed(x, weight, arguments, up, down, factor)
        x = x if channels_last or not x.is_contiguous() else in_layout(x, False)
        filters = fold_weight(weight, computed_dtype(x), channels_last, up, down, factor)
        return in_layout(convolution(x, filters, *arguments), channels_last)


def _raw_gradients(dz, x, weight, output_mask, geometry, factor, impl) -> tuple[Tensor | None, Tensor | None]:
    needs_dx, needs_dw = output_mask
    if _is_without_blocks(x.shape, weight.shape[-1], geometry):
        return torch.zeros_like(x) if needs_dx else None, torch.zeros_like(weight) if needs_dw else None
    if impl == "triton":
        return _fused().gradients(dz, x, weight, geometry, output_mask)
    padding, up, down = geometry
    arguments = _arguments(weight.shape[-1], padding, up, down)
    channels_last = is_channels_last(x)
    dx = None
    with torch._C._AutoDispatchBelowAutograd():
        if needs_dx and down == 2 and _slow_transposed(x):
            needs_dx, dx = False, _input_gradient_of_down(dz, x, weight, arguments, factor)
            if not needs_dw:
                return dx, None
        # A weight's gradient reads the weight's shape alone.
        if needs_dx:
            filters = fold_weight(weight, computed_dtype(x), channels_last, up, down, factor)
        else:
            filters = empty_folded(weight, computed_dtype(x), channels_last, up, down)
        found, dw = convolution_backward(dz, x, filters, *arguments, output_mask=(needs_dx, needs_dw))
        dx = in_layout(found, channels_last) if needs_dx else dx
    return dx, unfold_gradient(dw, weight, up, down, factor) if needs_dw else None


# oneDNN's transposed convolution is 2 to 6 times as fast on channels_last tensors, more than the copies cost.


def _slow_transposed(x: Tensor) -> bool:
    traced = type(x) is not Tensor  # a graph is better off with one convolution
    return x.is_cpu and x.dtype in (torch.float32, torch.bfloat16) and x.is_contiguous() and not traced


def _transposed(x, weight, arguments, up, down, factor) -> Tensor:
    """The transposed convolution of a contiguous x, computed in channels_last; returns a contiguous tensor."""
    folded = fold_weight(weight, computed_dtype(x), True, up, down, factor)
    return to_layout(convolution(to_layout(x, True), folded, *arguments), False)


def _input_gradient_of_down(dz, x, weight, arguments, factor) -> Tensor:
    stride, padding, dilation, _, _, groups = arguments
    k = weight.shape[-1] + 1
    # What the forward convolution's rounding down of odd sizes left out.
    rest = [(size + 2 * p - k) % 2 for size, p in zip(x.shape[2:], padding, strict=True)]
    return _transposed(dz, weight, (stride, padding, dilation, True, rest, groups), 1, 2, factor)


def _forward_kernel(impl, x, weight, bias, padding, up, down, *options):
    *options, signs_wanted = options
    geometry = padding, up, down
    if _is_fused(x, weight, geometry, options, impl):
        return _fused().forward(x, weight, bias, geometry, options, signs_wanted)
    scale, *others = options
    factor = 1.0 if impl == "triton" else weight_factor(x.dtype, scale)
    y = _raw_convolution(x, weight, geometry, factor, impl)
    # In place: the convolution's output is fresh and nothing else holds it.
    return y, bias_act_inplace[impl](y, bias, scale / factor, *others)


def _forward_fake(*arguments):
    y, r = _forward_kernel("native", *arguments)
    return y, _fused().empty_signs(y) if arguments[-1] else r


# signs_wanted is for the formula below, which hides it: the packed signs of y in the place of r.
_forward = define_forms(
    "equalized_conv2d(Tensor x, Tensor weight, Tensor? bias, SymInt padding, int up=1, int down=1, "
    f"{EPILOGUE_SCHEMA}, float eps=1e-8, bool signs_wanted=False) -> (Tensor y, Tensor r)",
    fallback=partial(_forward_kernel, "native"),
    fake=_forward_fake,
    triton=partial(_forward_kernel, "triton"),
    stands_in=False,
)
differentiate_forms(
    _forward,
    lambda x, weight, bias, padding, up, down, *rest: _differentiable(
        x, weight, bias, (padding, up, down), rest[:-2], rest[-1]
    ),
)
decompose_forms(
    _forward,
    lambda x, weight, bias, padding, up, down, *rest: _composite(
        x, weight, bias, padding, up, down, *rest[:-2], rest[-1]
    ),
)
