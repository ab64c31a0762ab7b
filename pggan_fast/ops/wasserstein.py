"""The Wasserstein distance of sets of values in one dimension.

Its definition sorts both sets. It is also the area between their step functions F (how many values are at most t), and
between two places where one function stays above the other that area follows from counts and sums, without an order.
"""

import torch
from torch import Tensor

from pggan_fast.ops.registry import define

MOST_VALUES = 1 << 26
"""Of a row: what a bucket of csrc/cpu/wasserstein.cpp can count. More are sorted."""


def wasserstein_1d(a: Tensor, b: Tensor, shift: Tensor) -> Tensor:
    """Return the sums of |x_i - y_i|, x and y the rows of `a + shift[:, None]` and of b in ascending order.

    a, b: float32 [K, N], N 1 or more; shift: float32 [K]. Result: float64 [K]; NaN where a value is not finite. Divided
    by N it is the 1-Wasserstein distance of each pair of rows. On a CPU values are told apart by 2^-24 of the range
    of both rows, and up to an N of 2^26 time grows as N, not as N log N. Not differentiable. Raises RuntimeError for
    other shapes or dtypes.
    """
    return (_wasserstein_1d if a.shape[-1] <= MOST_VALUES else _composite)(a, b, shift)


def _composite(a: Tensor, b: Tensor, shift: Tensor) -> Tensor:
    differences = a.sort(dim=1).values - b.sort(dim=1).values + shift[:, None]
    return differences.abs_().sum(dim=1, dtype=torch.float64)


def _fake(a: Tensor, b: Tensor, shift: Tensor) -> Tensor:
    return shift.new_empty(shift.shape, dtype=torch.float64)


_wasserstein_1d = define("wasserstein_1d(Tensor a, Tensor b, Tensor shift) -> Tensor", composite=_composite, fake=_fake)
