"""Weights as the convolutions take them: cast to the compute dtype, folded with the 2x rescaling, laid out.

A k x k kernel after nearest upsampling, or before a 2x2 mean, is a (k+1) x (k+1) kernel of stride 2: the
sum of its four one-pixel shifts (times 0.25 for the mean). 16 multiply-adds instead of 36 for k = 3.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from pggan_fast.ops.layout import is_channels_last
from pggan_fast.ops.registry import define_forms

# id of a parameter -> (the parameter, its copies)
_kept: dict[int, tuple[Parameter, dict[tuple, Tensor]]] | None = None


@contextmanager
def kept_weights() -> Iterator[Callable[[Iterable[Parameter]], None]]:
    """A promise that no weight changes inside: its folded and cast copies are made once and kept.

    Yields a function that takes parameters and forgets their copies, to be called after they did change.
    Outside, copies are made anew at each call, since nothing tells that `weight.data` was written to.
    """
    global _kept
    before, _kept = _kept, {}
    try:
        yield _forget
    finally:
        _kept = before


def _forget(parameters: Iterable[Parameter]) -> None:
    for parameter in parameters:
        _kept.pop(id(parameter), None)


def prepare(weight: Tensor, dtype: torch.dtype, channels_last: bool = False, up: int = 1, down: int = 1) -> Tensor:
    """The weight [C_out, C_in, k, k] as the convolution wants it; not differentiable.

    up=2: [C_in, C_out, k+1, k+1] for a transposed convolution of stride 2; down=2: [C_out, C_in, k+1, k+1].
    """
    parameter = weight if weight._base is None else weight._base
    if _kept is None or type(parameter) is not Parameter or not weight.is_set_to(parameter):
        return _prepare(weight, dtype, channels_last, up, down)
    # The parameter is kept too, so that its id cannot become another's.
    _, copies = _kept.setdefault(id(parameter), (parameter, {}))
    key = (dtype, channels_last, up, down)
    if key not in copies:
        copies[key] = _prepare(weight, dtype, channels_last, up, down)
    return copies[key]


def _prepare(weight: Tensor, dtype: torch.dtype, channels_last: bool, up: int, down: int) -> Tensor:
    if up == 1 and down == 1:
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        return weight.detach().to(dtype=dtype, memory_format=memory_format)
    return _fold(weight.detach(), 0.25 if down == 2 else 1.0, up == 2, dtype, channels_last)


def unwritten(weight: Tensor, dtype: torch.dtype, channels_last: bool = False, up: int = 1, down: int = 1) -> Tensor:
    """What `prepare` returns, with no values in it."""
    c_out, c_in, k, _ = weight.shape
    a, b = (c_in, c_out) if up == 2 else (c_out, c_in)
    return _bank(a, b, k + (up == 2 or down == 2), weight, dtype, channels_last)


def restore(gradient: Tensor, weight: Tensor, up: int = 1, down: int = 1) -> Tensor:
    """The adjoint of `prepare`: a gradient of the prepared weight as one of `weight`, in its dtype and layout."""
    if up == 1 and down == 1:
        return gradient.to(weight.dtype)
    return _unfold(gradient, 0.25 if down == 2 else 1.0, up == 2, weight.dtype, is_channels_last(weight))


def _bank(a, b, k, like: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty([a, b, k, k], dtype=dtype, device=like.device, memory_format=memory_format)


def _fold_fake(weight, scale, transposed, dtype, channels_last):
    a, b, k, _ = weight.shape
    a, b = (b, a) if transposed else (a, b)
    return _bank(a, b, k + 1, weight, dtype, channels_last)


def _fold_fallback(weight, scale, transposed, dtype, channels_last):
    source = weight.to(torch.promote_types(weight.dtype, torch.promote_types(dtype, torch.float32)))
    folded = sum(F.pad(source, (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)) * scale
    # A transposed convolution runs the kernel backwards.
    folded = folded.flip(2, 3).transpose(0, 1) if transposed else folded
    return _fold_fake(weight, scale, transposed, dtype, channels_last).copy_(folded)


def _unfold_fake(folded, scale, transposed, dtype, channels_last):
    a, b, k, _ = folded.shape
    a, b = (b, a) if transposed else (a, b)
    return _bank(a, b, k - 1, folded, dtype, channels_last)


def _unfold_fallback(folded, scale, transposed, dtype, channels_last):
    k = folded.shape[-1] - 1
    source = folded.transpose(0, 1).flip(2, 3) if transposed else folded
    source = source.to(torch.promote_types(dtype, torch.float32))
    weight = scale * sum(source[:, :, i : i + k, j : j + k] for i in (0, 1) for j in (0, 1))
    return _unfold_fake(folded, scale, transposed, dtype, channels_last).copy_(weight)


_OPTIONS = "float scale, bool transposed, ScalarType dtype, bool channels_last"
_fold = define_forms(
    f"fold_weight(Tensor weight, {_OPTIONS}) -> Tensor", fallback=_fold_fallback, fake=_fold_fake, triton="fold.fold"
)["native"]
_unfold = define_forms(
    f"unfold_weight(Tensor folded, {_OPTIONS}) -> Tensor",
    fallback=_unfold_fallback,
    fake=_unfold_fake,
    triton="fold.unfold",
)["native"]
