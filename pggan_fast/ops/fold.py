"""Weights as the convolutions take them: cast to the compute dtype, folded with the 2x rescaling, laid out.

A k x k kernel after nearest upsampling, or before a 2x2 mean, is a (k+1) x (k+1) kernel of stride 2: the
sum of its four one-pixel shifts (times 0.25 for the mean). 16 multiply-adds instead of 36 for k = 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast.ops.fold_cache import cached
from pggan_fast.ops.layout import in_layout, is_channels_last
from pggan_fast.ops.registry import define_implementations


def fold_weight(
    weight: Tensor, dtype: torch.dtype, channels_last: bool = False, up: int = 1, down: int = 1, factor: float = 1.0
) -> Tensor:
    """Return `factor` times the weight [C_out, C_in, k, k] as the convolution takes it; not differentiable.

    up=2: [C_in, C_out, k+1, k+1] for a transposed convolution of stride 2; down=2: [C_out, C_in, k+1, k+1].
    """
    key = (dtype, channels_last, up, down, factor)
    return cached(weight, key, lambda: _folded_copy(weight, *key))


def _folded_copy(weight: Tensor, dtype: torch.dtype, channels_last: bool, up: int, down: int, factor: float) -> Tensor:
    if up == 1 and down == 1:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        scaled = weight.detach() if factor == 1 else weight.detach() * factor
        return scaled.to(dtype=dtype, memory_format=memory_format)
    return _fold(weight.detach(), _rescaling(down) * factor, up == 2, dtype, channels_last)


def _rescaling(down: int) -> float:
    """The weight of each of the four shifts: a mean's or a sum's."""
    return 0.25 if down == 2 else 1.0


def empty_folded(weight: Tensor, dtype: torch.dtype, channels_last: bool = False, up: int = 1, down: int = 1) -> Tensor:
    """Return what `fold_weight` returns, with no values in it."""
    c_out, c_in, k, _ = weight.shape
    a, b = (c_in, c_out) if up == 2 else (c_out, c_in)
    return _empty_filters(a, b, k + (up == 2 or down == 2), weight, dtype, channels_last)


def unfold_gradient(gradient: Tensor, weight: Tensor, up: int = 1, down: int = 1, factor: float = 1.0) -> Tensor:
    """Apply the adjoint of `fold_weight`: a folded weight's gradient becomes `weight`'s, in its dtype and layout."""
    if up == 1 and down == 1:
        gradient = in_layout(gradient.to(weight.dtype), is_channels_last(weight))
        return gradient if factor == 1 else gradient * factor
    return _unfold(gradient, _rescaling(down) * factor, up == 2, weight.dtype, is_channels_last(weight))


def _empty_filters(a, b, k, like: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty([a, b, k, k], dtype=dtype, device=like.device, memory_format=memory_format)


def _fold_fake(weight, scale, transposed, dtype, channels_last):
    a, b, k, _ = weight.shape
    a, b = (b, a) if transposed else (a, b)
    return _empty_filters(a, b, k + 1, weight, dtype, channels_last)


def _fold_composite(weight, scale, transposed, dtype, channels_last):
    source = weight.to(torch.promote_types(weight.dtype, torch.promote_types(dtype, torch.float32)))
    folded = sum(F.pad(source, (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)) * scale
    # A transposed convolution runs the kernel backwards.
    folded = folded.flip(2, 3).transpose(0, 1) if transposed else folded
    return _fold_fake(weight, scale, transposed, dtype, channels_last).copy_(folded)


def _unfold_fake(folded, scale, transposed, dtype, channels_last):
    a, b, k, _ = folded.shape
    a, b = (b, a) if transposed else (a, b)
    return _empty_filters(a, b, k - 1, folded, dtype, channels_last)


def _unfold_composite(folded, scale, transposed, dtype, channels_last):
    k = folded.shape[-1] - 1
    source = folded.transpose(0, 1).flip(2, 3) if transposed else folded
    source = source.to(torch.promote_types(dtype, torch.float32))
    weight = scale * sum(source[:, :, i : i + k, j : j + k] for i in (0, 1) for j in (0, 1))
    return _unfold_fake(folded, scale, transposed, dtype, channels_last).copy_(weight)


_OPTIONS = "float scale, bool transposed, ScalarType dtype, bool channels_last"
_fold = define_implementations(
    f"fold_weight(Tensor weight, {_OPTIONS}) -> Tensor", composite=_fold_composite, fake=_fold_fake, triton="fold.fold"
)["native"]
_unfold = define_implementations(
    f"unfold_weight(Tensor folded, {_OPTIONS}) -> Tensor",
    composite=_unfold_composite,
    fake=_unfold_fake,
    triton="fold.unfold",
)["native"]
