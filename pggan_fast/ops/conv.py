"""equalized_conv2d: convolution, folded 2x rescaling, and the bias_act epilogue on the fresh output in place.

On GPUs the whole is one Triton launch where `conv_fused` expects that to be faster, or where it is asked for by name.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast import reference
from pggan_fast.ops import conv_halo_gradients, conv_rgb_gradients, small
from pggan_fast.ops.bias_act import (
    EPILOGUE_SCHEMA,
    BiasAct,
    bias_act,
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
from pggan_fast.ops.closed_conv import Convolution, as_nonleaf_view, conv_gradients
from pggan_fast.ops.conv_gradients import (
    BiasedConvolution,
    ScaledConvolution,
    fused,
    is_without_blocks,
    raw_convolution,
    takes_own_kernel,
)
from pggan_fast.ops.conv_halo_gradients import HaloConv2d
from pggan_fast.ops.conv_rgb_gradients import RGBConv2d, ToImageConv2d
from pggan_fast.ops.dispatch import choose, requested_impl
from pggan_fast.ops.geometry import check_floating
from pggan_fast.ops.layout import is_channels_last
from pggan_fast.ops.narrow_cpu import is_widened
from pggan_fast.ops.registry import (
    OpFunction,
    below_autograd,
    composite_below_autograd,
    decompose_implementations,
    define_implementations,
    differentiate_implementations,
    is_transformed,
    no_third_derivative,
    refuse_derivatives,
    through_dispatcher,
    will_need_grad,
)
from pggan_fast.ops.resample import Downsample2x, Upsample2x, downsample2x, upsample2x
from pggan_fast.ops.sign_bits import (
    activation_backward,
    are_enough,
    bias_act_with_sign_bits_inplace,
    empty_sign_bits,
    has_passes,
    pack_signs,
    unpack_signs,
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
    4. `bias_act` with `weight_scale` as its scale (default sqrt(2 / fan_in)), so the weight is not scaled, but on a CPU
       where nothing except a bias follows, which the convolution then adds itself.

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
    x = autocast_input(x)
    if small.is_eager(x, impl):
        if _is_small(x, weight, bias, up):
            return _small(x, weight, bias, padding, up, down, *options)
        if small.takes_unfolded(x, weight, up, down):
            if down == 2:
                return _convolved_then_halved(x, weight, bias, padding, *options)
            x, up = Upsample2x.apply(x, 1.0, 0, 0, "native"), 1
        if _is_plain(x, weight, bias, padding, up, down, options):
            conv = ScaledConvolution((padding, up, down), weight_scale * gain, "native")
            bias = bias if bias is None else as_nonleaf_view(bias) if gain == 1 else bias * gain
            return BiasedConvolution.apply(x, as_nonleaf_view(weight), bias, conv)
        geometry, recorded = (padding, up, down), torch.is_grad_enabled()
        return EqualizedConv2d.apply(x, as_nonleaf_view(weight), bias, geometry, options, "native", recorded)[0]
    weight = as_nonleaf_view(weight)
    impl, requested = choose("equalized_conv2d", x, impl), requested_impl(impl)
    if impl == "reference":
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
    if impl == "triton" and requested == "auto":
        impl = "native"  # which takes Triton's kernels where there are no native ones, but not for every convolution
    if through_dispatcher():
        return _forward[impl](x, weight, bias, padding, up, down, *options)[0]
    if bias is not None and not (impl == "native" and x.is_cpu):
        bias = as_nonleaf_view(bias)
    formula, arguments = _formula(x, weight, bias, (padding, up, down), options, impl)
    return formula(*arguments)[0]


def _check(x: Tensor, weight: Tensor, up: int, down: int, padding: int | None) -> None:
    if x.ndim != 4 or weight.ndim != 4 or weight.shape[2] != weight.shape[3] or x.shape[1] != weight.shape[1]:
        raise ValueError(
            "equalized_conv2d: x must be [N, C_in, H, W] and weight [C_out, C_in, k, k], "
            f"got {list(x.shape)} and {list(weight.shape)}"
        )
    check_floating("equalized_conv2d", x)
    check_rescaling("equalized_conv2d", weight.shape[-1], up, down, padding)


def check_rescaling(op: str, k: int, up: int, down: int, padding: int | None) -> None:
    """Refuse what a convolution of k x k taps does not take, for the op and the layer that is made of it."""
    if (up, down) not in ((1, 1), (2, 1), (1, 2)):
        raise ValueError(f"{op}: up={up} and down={down}, each must be 1 or 2, and not both 2")
    if padding is None and k % 2 == 0:
        raise ValueError(f"{op}: a kernel of even size {k} needs an explicit padding")
    if padding is not None and not 0 <= padding <= (k - 1 if up == 2 else k):
        raise ValueError(f"{op}: padding is {padding}, must be 0 to {k - 1 if up == 2 else k}")


def autocast_input(x: Tensor) -> Tensor:
    """x in autocast's dtype where autocast is on, as torch's own convolution and linear take it."""
    device_type = x.device.type
    if device_type == "meta":  # which autocast does not know
        return x
    if torch.is_autocast_enabled(device_type) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device_type))
    return x


def _formula(x, weight, bias, geometry, options, impl) -> tuple[Callable, tuple]:
    """Return what computes (y, r) with derivatives here, and its arguments: called from here it would lie deeper."""
    if is_transformed():
        return _composite, (x, weight, bias, *geometry, *options, impl)
    recorded = torch.is_grad_enabled()
    if conv_halo_gradients.takes(x, weight, geometry, options, impl):
        return HaloConv2d.apply, (x, weight, bias, geometry, options, recorded)
    if conv_rgb_gradients.takes(x, weight, geometry, options, impl):
        return RGBConv2d.apply, (x, weight, bias, options, recorded)
    if conv_rgb_gradients.takes_to_image(x, weight, geometry, options, impl):
        return ToImageConv2d.apply, (x, weight, bias, options)
    return EqualizedConv2d.apply, (x, weight, bias, geometry, options, impl, recorded)


def _composite(x, weight, bias, padding, up, down, *rest) -> tuple[Tensor, Tensor]:
    """Return (y, r) by torch's own convolution, which knows every transform, and the fused epilogue, which does too."""
    (scale, *options), impl = rest[:-1], rest[-1]
    factor = weight_factor(x.dtype, scale)
    x = reference.upsample2x(x) if up == 2 else x
    z = F.conv2d(x, (weight * factor).to(x.dtype), padding=padding)
    options = (scale / factor, *options)
    return bias_act_op[impl](reference.downsample2x(z) if down == 2 else z, bias, *options)


def _is_small(x: Tensor, weight: Tensor, bias: Tensor | None, up: int) -> bool:
    """Whether torch's convolution is faster, in x's layout, and right: see `narrow_cpu` for half precision."""
    _, c, h, w = x.shape
    if not small.takes_products(x, weight, h * w * up * up) or not (weight.is_contiguous() or is_channels_last(x)):
        return False
    if c == 1 or weight.shape[0] == 1 or h * w == 1:  # where strides do not tell the layout, torch's choice is another
        return False
    if bias is not None and bias.dtype is not x.dtype:
        return False
    if x.dtype is torch.bfloat16:
        return not is_widened(x) and min(h, w) * up >= weight.shape[-1]
    return x.dtype is torch.float32


def _is_plain(x, weight, bias, padding, up, down, options) -> bool:
    """Whether nothing but a bias follows, and scaling the weight takes less than a pass over the output for the two."""
    _, act, _, _, pixel_norm, _ = options
    if act != "linear" or pixel_norm or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    if bias is not None and bias.dtype is not x.dtype or weight.shape[0] < small.PLAIN_CHANNELS:
        return False
    n, c, h, w = x.shape
    pixels = n * h * w * up * up // (down * down)
    return pixels >= c * weight.shape[2] ** 2 and not is_without_blocks(x.shape, weight.shape[-1], (padding, up, down))


def _small(x, weight, bias, padding, up, down, scale, act, slope, gain, pixel_norm, eps) -> Tensor:
    x = upsample2x(x) if up == 2 else x
    # gain * act(u) is act(gain * u), and the mean of a bias is the bias.
    bias = bias if bias is None or gain == 1 else bias * gain
    z = F.conv2d(x, weight * (scale * gain), bias, padding=padding)
    y = small.activation(downsample2x(z) if down == 2 else z, act, slope)
    return bias_act(y, act="linear", pixel_norm=True, eps=eps) if pixel_norm else y


def _convolved_then_halved(x, weight, bias, padding, scale, *options) -> Tensor:
    """Return the whole for down=2, without folding the mean into the weight."""
    factor = weight_factor(x.dtype, scale)
    conv = ScaledConvolution((padding, 1, 1), factor, "native")
    z = Downsample2x.apply(Convolution.apply(x, as_nonleaf_view(weight), conv), 0.25, "native")
    return BiasAct.apply(z, bias, (scale / factor, *options), "native")[0]


class EqualizedConv2d(OpFunction):
    """(x, weight, bias, (padding, up, down), epilogue's options, impl, whether gradients are recorded) -> (y, r)."""

    @staticmethod
    def forward(ctx, x, weight, bias, geometry, options, impl, recorded):
        # Inside a Function grad mode is off, whatever it was: `recorded` tells.
        recorded = recorded and any(ctx.needs_input_grad)
        sign_bits = None
        if recorded and _writes_sign_bits(x, weight, geometry, options, impl):
            y, sign_bits = below_autograd(_forward_with_sign_bits[impl], x, weight, bias, *geometry, *options)
            r = x.new_empty(0, dtype=accumulation_dtype(x.dtype))
        else:
            y, r = composite_below_autograd(_forward, _forward_kernel, impl, x, weight, bias, *geometry, *options)
        ctx.geometry, ctx.factor = geometry, _factor(impl, x, options)
        options = (options[0] / ctx.factor, *options[1:])
        # Less to read than y, and nothing that the next layer might not keep.
        kept = y if sign_bits is None else None
        ctx.gives_zeros = sign_bits is None
        remember_epilogue(ctx, kept, r, bias, options, impl, x, weight, sign_bits)
        return y, r

    @staticmethod
    def backward(ctx, dy, dr):
        if dy is None and dr is None:
            return (None,) * 7
        x, weight, sign_bits, y, r = ctx.saved_tensors
        if dr is None and is_zeros(dy):
            return input_zeros(x), zeros_like(weight), bias_zeros(ctx, dy), None, None, None, None
        output_mask = (will_need_grad(ctx, 0), will_need_grad(ctx, 1))
        conv = ScaledConvolution(ctx.geometry, ctx.factor, ctx.impl)
        if sign_bits is not None and torch.is_grad_enabled():
            if output_mask == (True, False) and not will_need_grad(ctx, 2):
                dx = _MaskedInputGradient.apply(dy, sign_bits, as_nonleaf_view(weight), x.detach(), ctx.epilogue, conv)
                return dx, *(None,) * 6
            y, sign_bits = unpack_signs(sign_bits, dy), None
        if sign_bits is None:
            dz, db = epilogue_backward(ctx, dy, dr, y, r, ctx.needs_input_grad[2])
        else:
            dz, db = activation_backward(dy, sign_bits, ctx.epilogue, will_need_grad(ctx, 2), ctx.impl)
            db = db.to(ctx.bias_dtype) if db.numel() else None
        dx, dw = conv_gradients(dz, x, weight, output_mask, conv)
        return dx, dw, db, None, None, None, None


class _MaskedInputGradient(OpFunction):
    """(dy, sign bits, weight, like x, epilogue, the bare convolution) -> dx."""

    @staticmethod
    def forward(ctx, dy, sign_bits, weight, like, epilogue, conv):
        dz, _ = activation_backward(dy, sign_bits, epilogue, False, conv.impl)
        ctx.save_for_backward(dz, sign_bits, weight)
        ctx.epilogue, ctx.conv = epilogue, conv
        return conv.gradients(dz, like, weight, (True, False))[0]

    @staticmethod
    @no_third_derivative
    def backward(ctx, g):
        dz, sign_bits, weight = ctx.saved_tensors
        geometry, factor, impl = ctx.conv
        d_dy = dw = None
        if ctx.needs_input_grad[0] and takes_own_kernel("forward", g, weight, geometry, impl):
            scale, *rest = ctx.epilogue
            d_dy = fused().masked_convolution(g, sign_bits, weight, geometry, (scale * factor, *rest))
        elif ctx.needs_input_grad[0]:
            d_dy, _ = activation_backward(ctx.conv.forward(g, weight), sign_bits, ctx.epilogue, False, impl)
        if will_need_grad(ctx, 2):
            dw = ctx.conv.gradients(dz, g, weight, (False, True))[1]
        return d_dy, None, dw, None, None, None


def _factor(impl: str, x: Tensor, options: tuple) -> float:
    """Return what the bare convolution multiplies weights by, for the range of fp16; our kernels scale in fp32."""
    return 1.0 if impl == "triton" else weight_factor(x.dtype, options[0])


def _is_fused(x: Tensor, weight: Tensor, geometry: tuple, options: tuple, impl: str) -> bool:
    """Whether convolution and epilogue are one launch."""
    if is_without_blocks(x.shape, weight.shape[-1], geometry):
        return False
    return takes_own_kernel("forward", x, weight, geometry, impl, options[4])


def _writes_sign_bits(x: Tensor, weight: Tensor, geometry: tuple, options: tuple, impl: str) -> bool:
    if _is_fused(x, weight, geometry, options, impl):
        return fused().keeps_sign_bits(geometry, options)
    return geometry[1] == 1 and _has_passes_for_sign_bits(x, weight, options, impl)


def _has_passes_for_sign_bits(x: Tensor, weight: Tensor, options: tuple, impl: str) -> bool:
    """Whether the epilogue after torch's convolution can write sign bits, and its backward read them."""
    if impl != "native" or not are_enough(options) or not has_passes(x, weight.shape[0]):
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def _forward_kernel(impl, x, weight, bias, padding, up, down, *options):
    geometry = padding, up, down
    if _is_fused(x, weight, geometry, options, impl):
        return fused().forward(x, weight, bias, geometry, options)[:2]
    (scale, *others), factor = options, _factor(impl, x, options)
    y = raw_convolution(x, weight, geometry, factor, impl)
    # In place: the convolution's output is fresh and nothing else holds it.
    return y, bias_act_inplace[impl](y, bias, scale / factor, *others)


def _sign_bits_kernel(impl, x, weight, bias, padding, up, down, *options):
    geometry = padding, up, down
    if _is_fused(x, weight, geometry, options, impl):
        y, _, sign_bits = fused().forward(x, weight, bias, geometry, options, keep_sign_bits=True)
        return y, sign_bits
    if _has_passes_for_sign_bits(x, weight, options, impl):
        (scale, _, slope, gain, *_), factor = options, _factor(impl, x, options)
        y = raw_convolution(x, weight, geometry, factor, impl)
        return y, bias_act_with_sign_bits_inplace(y, bias, scale / factor, slope, gain)
    y, _ = _forward_kernel(impl, x, weight, bias, padding, up, down, *options)
    return y, pack_signs(y)


def _sign_bits_fake(*arguments):
    y, _ = _forward_kernel("native", *arguments)
    return y, empty_sign_bits(y)


_ARGUMENTS = (
    f"Tensor x, Tensor weight, Tensor? bias, SymInt padding, int up=1, int down=1, {EPILOGUE_SCHEMA}, float eps=1e-8"
)
_forward = define_implementations(
    f"equalized_conv2d({_ARGUMENTS}) -> (Tensor y, Tensor r)",
    composite=partial(_forward_kernel, "native"),
    fake=partial(_forward_kernel, "native"),
    triton=partial(_forward_kernel, "triton"),
    triton_on_cuda=False,
)
# The formula below calls this one, where a launch writes what a backward without pixel norm reads of y.
_forward_with_sign_bits = define_implementations(
    f"equalized_conv2d_with_sign_bits({_ARGUMENTS}) -> (Tensor y, Tensor sign_bits)",
    composite=partial(_sign_bits_kernel, "native"),
    fake=_sign_bits_fake,
    triton=partial(_sign_bits_kernel, "triton"),
    triton_on_cuda=False,
)
refuse_derivatives(_forward_with_sign_bits)


def _differentiable(x, weight, bias, padding, up, down, *rest) -> tuple[Tensor, Tensor]:
    formula, arguments = _formula(x, weight, bias, (padding, up, down), rest[:-1], rest[-1])
    return formula(*arguments)


differentiate_implementations(_forward, _differentiable)
decompose_implementations(_forward, _composite)
