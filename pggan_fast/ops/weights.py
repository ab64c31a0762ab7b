"""Weights as the convolutions take them: cast to the compute dtype, folded with the 2x rescaling, laid out.

A k x k kernel after nearest upsampling, or before a 2x2 mean, is a (k+1) x (k+1) kernel of stride 2: the
sum of its four one-pixel shifts (times 0.25 for the mean). 16 multiply-adds instead of 36 for k = 3.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

_kept: dict | None = None


@contextmanager
def kept_weights() -> Iterator[None]:
    """A promise that no weight changes inside: its folded and cast copies are made once and kept.

    Outside, they are made anew at each call, since nothing tells that `weight.data` was written to.
    """
    global _kept
    before, _kept = _kept, {}
    try:
        yield
    finally:
        _kept = before


def prepare(weight: Tensor, dtype: torch.dtype, channels_last: bool = False, up: int = 1, down: int = 1) -> Tensor:
    """The weight [C_out, C_in, k, k] as the convolution wants it; not differentiable.

    up=2: [C_in, C_out, k+1, k+1] for a transposed convolution of stride 2; down=2: [C_out, C_in, k+1, k+1].
    """
    parameter = weight if weight._base is None else weight._base
    if _kept is None or type(parameter) is not torch.nn.Parameter or parameter.shape != weight.shape:
        return _prepare(weight, dtype, channels_last, up, down)
    key = (id(parameter), dtype, channels_last, up, down)
    if key not in _kept:
        # The parameter is kept too, so that its id cannot become another's.
        _kept[key] = (parameter, _prepare(weight, dtype, channels_last, up, down))
    return _kept[key][1]


def _prepare(weight: Tensor, dtype: torch.dtype, channels_last: bool, up: int, down: int) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    with torch.no_grad(), _no_autocast(weight):
        if up == 2 or down == 2:
            weight = fold(weight, 0.25 if down == 2 else 1.0)
        if up == 2:
            # A transposed convolution runs the kernel backwards.
            weight = weight.flip(2, 3).transpose(0, 1)
        return weight.detach().to(dtype=dtype, memory_format=memory_format)


def restore(gradient: Tensor, weight: Tensor, up: int = 1, down: int = 1) -> Tensor:
    """The adjoint of `prepare`: a gradient of the prepared weight as one of `weight`, in its dtype."""
    with torch.no_grad(), _no_autocast(weight):
        gradient = gradient.to(weight.dtype)
        if up == 2:
            gradient = gradient.transpose(0, 1).flip(2, 3)
        return unfold(gradient, 0.25 if down == 2 else 1.0) if up == 2 or down == 2 else gradient


def fold(weight: Tensor, scale: float) -> Tensor:
    """[A, B, k, k] -> [A, B, k+1, k+1]: the four one-pixel shifts added, times scale."""
    a, b, k, _ = weight.shape
    folded = weight.new_zeros(a, b, k + 1, k + 1).to(memory_format=_format(weight))
    for i in (0, 1):
        for j in (0, 1):
            folded[:, :, i : i + k, j : j + k].add_(weight, alpha=scale)
    return folded


def unfold(folded: Tensor, scale: float) -> Tensor:
    """The adjoint of `fold`: [A, B, k+1, k+1] -> [A, B, k, k]."""
    k = folded.shape[-1] - 1
    return scale * sum(folded[:, :, i : i + k, j : j + k] for i in (0, 1) for j in (0, 1))


def _format(weight: Tensor) -> torch.memory_format:
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _no_autocast(weight: Tensor):
    device_type = weight.device.type
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else nullcontext()
