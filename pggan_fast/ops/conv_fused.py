"""equalized_conv2d in one Triton launch, its epilogue included, and the bare convolution's gradients by Triton.

What forward and backward read and write, in tensors of the output's size, for a layer whose channels and pixels stay
as they are; sign bits are a 16th of a tensor or less:

| launch | reads | writes |
|---|---|---|
| forward, fused | x | y, and for a later backward without pixel norm the sign bits of y |
| activation's backward, bias's gradient | dy, sign bits (with pixel norm y) | dz |
| input gradient | dz | dx |
| weight gradient | dz, x | |
| second order: gradient of dy, fused | g, sign bits | d(dy) |

The gradient through the activation is a launch of its own: taken as the other two read dy, each value would be masked
once for every tap, which costs more instructions than the launch costs bytes.
"""

from functools import cache

import torch
from torch import Tensor

from pggan_fast.kernels import conv_choice, conv_tiles
from pggan_fast.kernels.conv import convolve
from pggan_fast.kernels.conv_weight_gradient import weight_gradient
from pggan_fast.kernels.conv_weight_tiles import WeightProblem
from pggan_fast.ops.fold import fold_weight
from pggan_fast.ops.layout import is_channels_last
from pggan_fast.reference import effective_slope

Geometry = tuple[int, int, int]
"""(padding, up, down) of equalized_conv2d."""


def is_possible(weight: Tensor, pixel_norm: bool) -> bool:
    """Whether the epilogue fits the launch: pixel norm needs every channel in one program."""
    return not pixel_norm or weight.shape[0] <= conv_tiles.MOST_NORMED_CHANNELS


def is_faster(direction: str, x: Tensor, weight: Tensor, geometry: Geometry, pixel_norm: bool = False) -> bool:
    """Whether our kernels are expected to beat cuDNN: `kernels.conv_choice` says.

    direction: "forward", "input gradient" or "weight gradient"; x: the convolution's input, or a tensor like it.
    """
    if type(x) is not Tensor or not x.is_contiguous(memory_format=torch.channels_last):
        return False
    precision = conv_tiles.dot_precision(x.dtype)
    return _is_faster(direction, x.dtype, x.shape, weight.shape, geometry, pixel_norm, x.device, precision)


@cache
def _is_faster(direction, dtype, x_shape, weight_shape, geometry, pixel_norm, device, precision) -> bool:
    # The device and the precision of fp32 products tell one answer from another's.
    _, up, down = geometry
    (n, c_in, *in_size), (c_out, _, k, _) = x_shape, weight_shape
    params = conv_params(k, geometry)
    folded = max(up, down) == 2
    out_size = output_size(x_shape, k + folded, params)
    stride, transposed = params["stride"], params["transposed"]
    if direction == "weight gradient":
        channels, size = ((c_in, c_out), in_size) if transposed else ((c_out, c_in), out_size)
        return conv_choice.is_own_weight_gradient_faster(
            WeightProblem(dtype, n, *channels, *size, k, stride, transposed, folded)
        )
    if direction == "input gradient":
        problem = conv_tiles.Problem(dtype, n, c_out, c_in, *in_size, k + folded, stride, not transposed)
        return conv_choice.is_own_faster(problem, epilogue_follows=False)
    problem = conv_tiles.Problem(dtype, n, c_in, c_out, *out_size, k + folded, stride, transposed, pixel_norm)
    return conv_choice.is_own_faster(problem if pixel_norm or up == 2 else problem._replace(variant="signs"))


def keeps_sign_bits(geometry: Geometry, options: tuple) -> bool:
    """Whether the signs of y are all that backward needs of it.

    After upsampling y itself is kept, as the next layer does.
    """
    _, up, _ = geometry
    _, act, _, _, pixel_norm, _ = options
    return up == 1 and act != "linear" and not pixel_norm


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, options: tuple, keep_sign_bits: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return (y, r, sign bits or None) of equalized_conv2d in one launch; options are its epilogue's."""
    scale, act, slope, gain, pixel_norm, eps = options
    filters = fold_weight(weight, x.dtype, is_channels_last(x), *geometry[1:])
    params = conv_params(weight.shape[-1], geometry)
    return convolve(
        x,
        filters,
        bias,
        size=output_size(x.shape, filters.shape[-1], params),
        **params,
        scale=scale,
        positive_slope=gain,
        negative_slope=gain * effective_slope(act, slope),
        pixel_norm=pixel_norm,
        eps=eps,
        keep_sign_bits=keep_sign_bits,
    )


def masked_convolution(g: Tensor, sign_bits: Tensor, weight: Tensor, geometry: Geometry, epilogue: tuple) -> Tensor:
    """Return the convolution of g through the backward of the activation, in one launch."""
    scale, act, slope, gain, _ = epilogue
    slopes = dict(positive_slope=gain, negative_slope=gain * effective_slope(act, slope))
    return _convolution(g, weight, geometry, scale=scale, activation_mask=sign_bits, **slopes)


def convolution(x: Tensor, weight: Tensor, geometry: Geometry, factor: float = 1.0) -> Tensor:
    """Return the bare convolution with `factor` times the weight."""
    return _convolution(x, weight, geometry, scale=factor)


def gradients(
    dz: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, output_mask: tuple[bool, bool], factor: float = 1.0
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of the bare convolution in x and the weight, None where the mask is False."""
    needs_dx, needs_dw = output_mask
    dx = _input_gradient(dz, weight, x, geometry, factor) if needs_dx else None
    return dx, _weight_gradient(dz, x, weight, geometry, factor) if needs_dw else None


def conv_params(k: int, geometry: Geometry) -> dict:
    """Return how the folded weight of a k x k kernel is applied, as torch's convolutions name it."""
    padding, up, down = geometry
    return dict(stride=max(up, down), padding=k - 1 - padding if up == 2 else padding, transposed=up == 2)


def output_size(x_shape: torch.Size, k: int, params: dict) -> tuple[int, int]:
    """Return height and width of the output; k is the folded kernel's."""
    stride, padding = params["stride"], params["padding"]
    if params["transposed"]:
        h, w = ((length - 1) * stride - 2 * padding + k for length in x_shape[2:])
    else:
        h, w = ((length + 2 * padding - k) // stride + 1 for length in x_shape[2:])
    if h < 1 or w < 1:
        raise ValueError(f"equalized_conv2d: x is {list(x_shape)}, too small for the kernel")
    return h, w


def _convolution(x, weight, geometry, **epilogue) -> Tensor:
    filters = fold_weight(weight, x.dtype, is_channels_last(x), *geometry[1:])
    params = conv_params(weight.shape[-1], geometry)
    return convolve(x, filters, size=output_size(x.shape, filters.shape[-1], params), **params, **epilogue)[0]


def _input_gradient(dz, weight, like, geometry, factor) -> Tensor:
    channels_last = is_channels_last(like)
    filters = fold_weight(weight, dz.dtype, channels_last, *geometry[1:])
    params = conv_params(weight.shape[-1], geometry)
    params["transposed"] = not params["transposed"]
    return convolve(dz, filters, size=like.shape[2:], channels_last=channels_last, scale=factor, **params)[0]


def _weight_gradient(dz, x, weight, geometry, factor) -> Tensor:
    _, up, down = geometry
    fold = {(1, 1): None, (2, 1): 1.0, (1, 2): 0.25}[up, down]
    return weight_gradient(dz, x, weight, **conv_params(weight.shape[-1], geometry), fold=fold, scale=factor)
