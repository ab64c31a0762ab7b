"""Parts of a batch: one for each process, and gradients that add up over several passes.

The minibatch standard deviation compares samples within groups: with M = N / group groups, group m
holds the samples m, m + M, m + 2M, ... A part that is made of whole groups has the statistics that
these samples have in the whole batch, so that the parts' gradients add up to the batch's.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

Batch = TypeVar("Batch", Tensor, np.ndarray)


def keeps_groups(n: int, count: int, group: int) -> bool:
    """Return whether `count` equal parts of a batch of n, in groups of `group`, can be made of whole groups."""
    return n // group % count == 0


def take(batch: Batch, index: int, count: int, group: int) -> Batch:
    """Return part `index` of `count` of a batch [N, ...], [N / count, ...]: whole groups if that is possible.

    `count` and `group` must divide N. Without whole groups, consecutive samples.
    """
    n = len(batch)
    if count == 1:
        return batch
    if not keeps_groups(n, count, group):
        return batch.reshape(count, n // count, *batch.shape[1:])[index]  # [count, N / count, ...] -> [N / count, ...]
    groups = batch.reshape(group, count, -1, *batch.shape[1:])  # [G, count, M / count, ...], M = N / G groups
    return groups[:, index].reshape(-1, *batch.shape[1:])  # [G, M / count, ...] -> [N / count, ...]


def fewest_parts(n: int, most: int, group: int) -> int:
    """Return the least number of equal parts of at most `most` samples; of whole groups, if any such fit."""
    fitting = [count for count in range(1, n + 1) if n % count == 0 and n // count <= most]
    return next((count for count in fitting if keeps_groups(n, count, group)), fitting[0])
