"""equalized_conv2d in one Triton launch, its epilogue included, and its gradients through the epilogue.

What the gradients move decides which launches they take, counted in tensors of the output's size. Without pixel norm
forward keeps the signs of y, a bit for each value, and the input's and the weight's gradient each take dy back through
the activation as they read it: 2 + 2, as a convolution alone, where a pass that writes dz first makes it 3 + 2 + 2.
With pixel norm that pass also finds the mean over channels, which both need: 3 + 2 + 2 against 2 + 3 + 3. There an
input gradient alone is fused, 2 + 3 either way but without dz in memory.
"""

from functools import cache

import torch
from torch import Tensor
from torch.autograd import Function

from pggan_fast.kernels import conv_tiles
from pggan_fast.kernels.bias_act_pixel_norm import pixel_norm_gradient
from pggan_fast.kernels.conv import Gate, convolve, signs_shape
from pggan_fast.kernels.conv_weight_gradient import weight_gradient
from pggan_fast.ops.fold import fold_weight
from pggan_fast.ops.layout import is_channels_last
from pggan_fast.ops.registry import no_third_derivative, will_need_grad
from pggan_fast.reference import effective_slope

Geometry = tuple[int, int, int]
"""(padding, up, down) of equalized_conv2d."""


def is_possible(weight: Tensor, pixel_norm: bool) -> bool:
    """Whether the epilogue fits the launch: pixel norm needs every channel in one program."""
    return not pixel_norm or weight.shape[0] <= conv_tiles.MOST_NORMED_CHANNELS


def is_faster(x: Tensor, weight: Tensor, geometry: Geometry, pixel_norm: bool) -> bool:
    """Whether the fused launch is expected to beat cuDNN and bias_act after it: `kernels.conv_tiles` says."""
    if type(x) is not Tensor or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    return _is_faster(x.dtype, x.shape, weight.shape, geometry, pixel_norm, x.device)


@cache
def _is_faster(dtype, x_shape, weight_shape, geometry, pixel_norm, device) -> bool:
    # The device tells one GPU's answers from another's.
    _, up, down = geometry
    way = _way(weight_shape[-1], geometry)
    k = weight_shape[-1] + (max(up, down) == 2)
    size = _size(x_shape, k, way)
    problem = conv_tiles.Problem(
        dtype, x_shape[0], x_shape[1], weight_shape[0], *size, k, way["stride"], way["transposed"], pixel_norm
    )
    return conv_tiles.is_fused_faster(problem, beside=0, spared=2 * problem.out_bytes)


def keeps_signs(geometry: Geometry, options: tuple) -> bool:
    """Whether the signs of y are all that `fused_backward` needs of it.

    After upsampling the bias's gradient takes a pass of its own, which reads y.
    """
    _, up, _ = geometry
    _, act, _, _, pixel_norm, _ = options
    return up == 1 and act != "linear" and not pixel_norm


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, options: tuple, signs_wanted: bool
) -> tuple[Tensor, Tensor]:
    """(y, r) of equalized_conv2d in one launch, or (y, its packed signs); options are its epilogue's."""
    scale, act, slope, gain, pixel_norm, eps = options
    above, below = _slopes(act, slope, gain)
    epilogue = dict(scale=scale, above=above, below=below, pixel_norm=pixel_norm, eps=eps)
    return _convolution(x, weight, geometry, bias=bias, signs_wanted=signs_wanted, **epilogue)


def empty_signs(y: Tensor) -> Tensor:
    """As `forward` returns them."""
    return y.new_empty(signs_shape(y), dtype=torch.int32)


def values_of(kept: Tensor | None, like: Tensor) -> Tensor | None:
    """Of signs, 1 or -1 in the shape, dtype and layout of `like`, for what needs a tensor; of anything else, itself."""
    if not _is_signs(kept):
        return kept
    signs = kept
    bits = signs.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32, device=signs.device) & 1
    channels = bits.flatten(3)[..., : like.shape[1]].movedim(3, 1)
    return torch.empty_like(like).copy_(2 * channels - 1)


def convolution(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The bare convolution."""
    return _convolution(x, weight, geometry)[0]


def gradients(
    dz: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of the bare convolution, in x and the weight."""
    dx = _input_gradient(dz, weight, x, geometry) if wanted[0] else None
    dw = _weight_gradient(dz, x, weight, geometry)[0] if wanted[1] else None
    return dx, dw


def takes_gradients(geometry: Geometry, epilogue: tuple, wanted: tuple[bool, bool, bool]) -> bool:
    """Whether `fused_backward` computes these (of x, weight and bias) better than a pass that writes dz first."""
    _, up, _ = geometry
    pixel_norm = epilogue[-1]
    of_x, of_weight, of_bias = wanted
    if of_weight or of_bias:
        return of_weight and not pixel_norm and up == 1 and not torch.is_grad_enabled()
    return of_x and not (pixel_norm and torch.is_grad_enabled())


def fused_backward(
    dy: Tensor | None,
    dr: Tensor | None,
    y: Tensor | None,
    r: Tensor | None,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    epilogue: tuple,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias (in fp32) where `takes_gradients`; y and r as bias_act's backward takes them.

    Where `keeps_signs`, y is its signs.
    """
    dy = torch.zeros_like(y) if dy is None else dy  # which only pixel norm's r makes possible
    if torch.is_grad_enabled():
        return InputGradient.apply(dy, y, weight, x.detach(), geometry, epilogue), None, None
    dx = _input_gradient_through(dy, dr, y, r, weight, x, geometry, epilogue) if wanted[0] else None
    if not wanted[1]:
        return dx, None, None
    return dx, *_weight_gradient_through(dy, y, x, weight, geometry, epilogue, wanted[2])


class InputGradient(Function):
    """(dy, y, weight, like x, geometry, epilogue) -> dx, without pixel norm."""

    @staticmethod
    def forward(ctx, dy, y, weight, like, geometry, epilogue):
        ctx.save_for_backward(dy, y, weight)
        ctx.geometry, ctx.epilogue = geometry, epilogue
        return _input_gradient_through(dy, None, y, None, weight, like, geometry, epilogue)

    @staticmethod
    @no_third_derivative
    def backward(ctx, g):
        dy, y, weight = ctx.saved_tensors
        scale, act, slope, gain, _ = ctx.epilogue
        d_dy = dw = None
        if ctx.needs_input_grad[0]:
            above, below = _slopes(act, slope, gain)
            last = is_channels_last(dy if y is None or _is_signs(y) else y)
            through = dict(scale=scale, above=above, below=below, out_gate=y, channels_last=last)
            d_dy = _convolution(g, weight, ctx.geometry, **through)[0]
        if will_need_grad(ctx, 2):
            dw, _ = _weight_gradient_through(dy, y, g, weight, ctx.geometry, ctx.epilogue, False)
        return d_dy, None, dw, None, None, None


def _is_signs(kept: Tensor | None) -> bool:
    """Whether what was kept of y is its signs: not y itself, and not nothing, as of an affine map."""
    return kept is not None and kept.dtype == torch.int32


def _slopes(act: str, slope: float, gain: float) -> tuple[float, float]:
    return gain, gain * effective_slope(act, slope)


def _way(k: int, geometry: Geometry) -> dict:
    """How the folded weight of a k x k kernel is applied."""
    padding, up, down = geometry
    return dict(stride=max(up, down), padding=k - 1 - padding if up == 2 else padding, transposed=up == 2)


def _size(x_shape: torch.Size, k: int, way: dict) -> tuple[int, int]:
    """Of the output; k is the folded kernel's."""
    stride, padding = way["stride"], way["padding"]
    if way["transposed"]:
        h, w = ((length - 1) * stride - 2 * padding + k for length in x_shape[2:])
    else:
        h, w = ((length + 2 * padding - k) // stride + 1 for length in x_shape[2:])
    if h < 1 or w < 1:
        raise ValueError(f"equalized_conv2d: x is {list(x_shape)}, too small for the kernel")
    return h, w


def _convolution(x, weight, geometry, **epilogue) -> tuple[Tensor, Tensor]:
    bank = fold_weight(weight, x.dtype, is_channels_last(x), *geometry[1:])
    way = _way(weight.shape[-1], geometry)
    return convolve(x, bank, size=_size(x.shape, bank.shape[-1], way), **way, **epilogue)


def _input_gradient(dz, weight, like, geometry, **through) -> Tensor:
    last = is_channels_last(like)
    bank = fold_weight(weight, dz.dtype, last, *geometry[1:])
    way = _way(weight.shape[-1], geometry)
    way["transposed"] = not way["transposed"]
    return convolve(dz, bank, size=like.shape[2:], channels_last=last, **way, **through)[0]


def _input_gradient_through(dy, dr, y, r, weight, like, geometry, epilogue) -> Tensor:
    scale, act, slope, gain, pixel_norm = epilogue
    if y is None:
        return _input_gradient(dy, weight, like, geometry, scale=scale * gain)
    dy = _laid_out_like(dy, y)
    s = pixel_norm_gradient(dy, None if dr is None else dr.contiguous(), y, r) if pixel_norm else None
    return _input_gradient(dy, weight, like, geometry, scale=scale, gate=Gate(y, *_slopes(act, slope, gain), r, s))


def _weight_gradient(dz, x, weight, geometry, **through) -> tuple[Tensor, Tensor | None]:
    """(of the weight, the bias's if `sums_wanted`)."""
    _, up, down = geometry
    fold = {(1, 1): None, (2, 1): 1.0, (1, 2): 0.25}[up, down]
    return weight_gradient(dz, x, weight, **_way(weight.shape[-1], geometry), fold=fold, **through)


def _weight_gradient_through(dy, y, x, weight, geometry, epilogue, bias_wanted) -> tuple[Tensor, Tensor | None]:
    scale, act, slope, gain, _ = epilogue
    if y is None:
        dw, sums = _weight_gradient(dy, x, weight, geometry, scale=scale * gain, sums_wanted=bias_wanted)
        return dw, sums if sums is None or gain == 1 else sums * gain
    gate = Gate(y, *_slopes(act, slope, gain))
    return _weight_gradient(_laid_out_like(dy, y), x, weight, geometry, gate=gate, scale=scale, sums_wanted=bias_wanted)


def _laid_out_like(dy: Tensor, y: Tensor) -> Tensor:
    """As a gate reads it beside y; signs have a layout of their own."""
    return dy if _is_signs(y) or dy.stride() == y.stride() else torch.empty_like(y).copy_(dy)
