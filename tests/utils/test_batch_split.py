"""Parts of a batch keep the groups of the minibatch standard deviation whole where that is possible."""

import numpy as np
import pytest
import torch

from pggan_fast.ops import minibatch_stddev
from pggan_fast.reference import stddev_group
from pggan_fast.utils.batch_split import fewest_parts, keeps_groups, take


@pytest.mark.parametrize("n, count", [(8, 2), (16, 4), (12, 3), (6, 2), (10, 5), (9, 3), (8, 1)])
def test_the_statistics_of_whole_groups_are_those_of_the_batch(n, count):
    x = torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    group = stddev_group(n, 4)
    assert keeps_groups(n, count, group)
    whole = minibatch_stddev(x)
    for index in range(count):
        assert torch.equal(minibatch_stddev(take(x, index, count, group)), take(whole, index, count, group))


@pytest.mark.parametrize("n, count", [(8, 2), (8, 4), (8, 8), (12, 6), (6, 3)])
@pytest.mark.parametrize("kind", [torch.arange, np.arange])
def test_every_sample_is_in_one_part(n, count, kind):
    batch = kind(n)
    parts = [take(batch, index, count, stddev_group(n, 4)) for index in range(count)]
    assert {len(part) for part in parts} == {n // count}
    assert sorted(int(sample) for part in parts for sample in part) == list(range(n))


@pytest.mark.parametrize(
    "n, most, group, count",
    [(8, 8, 4, 1), (8, 7, 4, 2), (8, 4, 4, 2), (8, 3, 4, 4), (8, 1, 4, 8), (12, 5, 4, 3), (6, 4, 3, 2), (5, 2, 1, 5)],
)
def test_few_parts_and_whole_groups_first(n, most, group, count):
    assert fewest_parts(n, most, group) == count
    assert n // count <= most
