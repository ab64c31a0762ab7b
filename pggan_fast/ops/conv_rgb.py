"""1 x 1 convolutions between images of 1 or 3 channels and wide tensors, which the CUDA kernels have.

`conv_rgb_expand` goes from an image to a wide tensor, with leaky ReLU and the sign bits of its result in the same
launch, `conv_rgb_reduce` from a wide tensor to an image. Each is the other's gradient, and `conv_rgb_weight_gradient`
is that of the weight. All are passes over the wide tensor: csrc/cuda/conv_rgb.cu. They are not differentiable:
`equalized_conv2d` is, and takes them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast.ops.registry import define
from pggan_fast.ops.sign_bits import empty_sign_bits, pack_signs, slopes_by_signs
from pggan_fast.reference import accumulation_dtype

IMAGE_CHANNELS = (1, 3)


def _by_mask(t: Tensor, mask: Tensor | None, positive: float, negative: float) -> Tensor:
    """Return t [N, C, H, W] times the slope that its sign bits say; all are positive without."""
    return t * positive if mask is None else t * slopes_by_signs(mask, t, positive, negative)


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def _expand(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    scale: float,
    positive_slope: float,
    negative_slope: float,
    needs_signs: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the op in plain PyTorch.

    z = scale * convolution of x + bias; y = z times a slope, by the sign of z or, if given, by `mask`.

    x: [N, 1 or 3, H, W]. weight: [C_out, C_in, 1, 1], fp32. mask: sign bits of y, int32 [N, H, W, ceil(C_out / 32)].
    Returns y [N, C_out, H, W], channels_last, and its sign bits, which are empty unless `needs_signs` and without mask.
    """
    wide = accumulation_dtype(x.dtype)
    z = scale * F.conv2d(x.to(wide), weight.to(wide))
    z = z if bias is None else z + bias.to(wide).view(-1, 1, 1)
    signs = pack_signs(z) if needs_signs and mask is None else x.new_empty(0, dtype=torch.int32)
    if mask is None:
        y = torch.where(z > 0, z * positive_slope, z * negative_slope)
    else:
        y = _by_mask(z, mask, positive_slope, negative_slope)
    return _channels_last(y.to(x.dtype)), signs


def _expand_fake(x, weight, bias, mask, scale, positive_slope, negative_slope, needs_signs):
    y = _channels_last(x.new_empty(len(x), len(weight), *x.shape[2:]))
    signs = empty_sign_bits(y) if needs_signs and mask is None else x.new_empty(0, dtype=torch.int32)
    return y, signs


def _reduce(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    scale: float,
    positive_slope: float,
    negative_slope: float,
) -> Tensor:
    """Compute the op in plain PyTorch.

    y = scale * convolution of (x times a slope by its sign bits `mask`, the positive one without them)
    + positive_slope * bias.

    x: [N, C_in, H, W]. weight: [1 or 3, C_in, 1, 1], fp32. Returns y [N, 1 or 3, H, W], channels_last.
    """
    wide = accumulation_dtype(x.dtype)
    y = scale * F.conv2d(_by_mask(x.to(wide), mask, positive_slope, negative_slope), weight.to(wide))
    y = y if bias is None else y + positive_slope * bias.to(wide).view(-1, 1, 1)
    return _channels_last(y.to(x.dtype))


def _reduce_fake(x, weight, *rest):
    return _channels_last(x.new_empty(len(x), len(weight), *x.shape[2:]))


def _weight_gradient(
    wide: Tensor,
    narrow: Tensor,
    mask: Tensor | None,
    scale: float,
    positive_slope: float,
    negative_slope: float,
    sums_narrow: bool = False,
) -> Tensor:
    """Compute the op in plain PyTorch.

    Returns, in fp32 (fp64 for fp64), scale * sum over pixels of wide * narrow as [narrow's channels, wide's], wide
    being taken back through an activation by `mask` first, and behind it the sums of wide, or of narrow times
    positive_slope.
    """
    dtype = accumulation_dtype(wide.dtype)
    masked, narrow = _by_mask(wide.to(dtype), mask, positive_slope, negative_slope), narrow.to(dtype)
    products = scale * torch.einsum("nchw,nihw->ic", masked, narrow)
    return torch.cat([products.flatten(), (positive_slope * narrow if sums_narrow else masked).sum((0, 2, 3))])


def _weight_gradient_fake(wide, narrow, mask, scale, positive_slope, negative_slope, sums_narrow=False):
    alone = narrow if sums_narrow else wide
    return wide.new_empty(narrow.shape[1] * wide.shape[1] + alone.shape[1], dtype=accumulation_dtype(wide.dtype))


conv_rgb_expand = define(
    "conv_rgb_expand(Tensor x, Tensor weight, Tensor? bias, Tensor? mask, float scale, float positive_slope, "
    "float negative_slope, bool needs_signs) -> (Tensor y, Tensor sign_bits)",
    composite=_expand,
    fake=_expand_fake,
)
conv_rgb_reduce = define(
    "conv_rgb_reduce(Tensor x, Tensor weight, Tensor? bias, Tensor? mask, float scale, float positive_slope, "
    "float negative_slope) -> Tensor",
    composite=_reduce,
    fake=_reduce_fake,
)
conv_rgb_weight_gradient = define(
    "conv_rgb_weight_gradient(Tensor wide, Tensor narrow, Tensor? mask, float scale, float positive_slope, "
    "float negative_slope, bool sums_narrow=False) -> Tensor",
    composite=_weight_gradient,
    fake=_weight_gradient_fake,
)
