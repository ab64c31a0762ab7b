"""Gradients of a batch, added up over the parts of it that go through the networks at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pggan_fast.training.penalties import Stats
from pggan_fast.utils.batch_split import fewest_parts, keeps_groups, take


def count_parts(n: int, micro_batch: int | None, group: int, *, sees_minibatch: bool) -> int:
    """Return in how many parts a batch of n, in stddev groups of `group`, goes through the networks.

    Warns where the parts' statistics are not those of the whole batch.
    """
    if micro_batch is None or n <= micro_batch:
        return 1
    count = fewest_parts(n, micro_batch, group)
    split = None if keeps_groups(n, count, group) else f"the groups of {group} of the minibatch standard deviation"
    split = "the batch that minibatch discrimination compares" if sees_minibatch else split
    if split is not None:
        warnings.warn(
            f"a batch of {n} in parts of {n // count} splits {split}: results differ from those of the whole batch",
            stacklevel=4,
        )
    return count


def add_gradients(
    parameters: Sequence[Tensor],
    terms: Callable[..., Iterable[Tensor]],
    batch: Sequence[Tensor | None],
    stats: Stats,
    *,
    parts: int,
    group: int,
    loss_scale: Tensor | None,
) -> Tensor:
    """Add up the gradients of the mean, over the batch's parts, of the sum of `terms(*part)`. Return that mean.

    Those of `parameters` alone, not of the images that a penalty is taken at, times `loss_scale` if there is one.
    The values that `terms` leaves in `stats` become their means too.
    """
    total, sums = torch.zeros((), device=parameters[0].device), {}
    for index in range(parts):
        part = [None if tensor is None else channels_last(take(tensor, index, parts, group)) for tensor in batch]
        for term in terms(*part):
            term = term / parts if parts > 1 else term
            (term if loss_scale is None else term * loss_scale).backward(inputs=parameters)
            total += term.detach()
        if parts > 1:
            sums = {name: sums.get(name, 0) + value / parts for name, value in stats.items()}
    stats.update(sums)
    return total


def channels_last(part: Tensor) -> Tensor:
    """Return images in channels_last, and other tensors as they are."""
    return part.contiguous(memory_format=torch.channels_last) if part.ndim == 4 else part
