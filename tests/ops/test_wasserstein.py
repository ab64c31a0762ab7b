"""The Wasserstein distance in one dimension, on a CPU without sorting, against its definition in float64."""

import numpy as np
import pytest
import torch

from pggan_fast.ops import wasserstein
from pggan_fast.ops.wasserstein import wasserstein_1d

ROUNDING = 2**-24  # of a place in the range of both rows, in float32; the mean of N of them is no larger

pairs = {
    "alike": lambda random, n: (random.randn(3, n), random.randn(3, n)),
    "apart": lambda random, n: (random.randn(3, n) + 9, random.randn(3, n)),
    "wider": lambda random, n: (random.randn(3, n) * 2, random.randn(3, n)),
    "one of many": lambda random, n: (random.randn(3, n), np.full((3, n), 0.5)),
    "ties": lambda random, n: (random.randint(0, 3, (3, n)), random.randint(0, 4, (3, n))),
    "far outliers": lambda random, n: (random.standard_cauchy((3, n)), random.standard_cauchy((3, n))),
    "tiny": lambda random, n: (random.randn(3, n) * 1e-30, random.randn(3, n) * 1e-30),
    "huge": lambda random, n: (random.randn(3, n) * 1e30, random.randn(3, n) * 1e30),
    "on a pedestal": lambda random, n: (random.rand(3, n) + 1000, random.rand(3, n) + 1000),
}


def by_definition(a: torch.Tensor, b: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    x, y = (a.double() + shift.double()[:, None]).sort().values, b.double().sort().values
    return (x - y).abs().sum(1)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 1000, 40_000])
@pytest.mark.parametrize("pair", pairs)
def test_it_is_what_sorting_gives(pair, n):
    random = np.random.RandomState(n)
    a, b = (torch.tensor(each, dtype=torch.float32) for each in pairs[pair](random, n))
    scale = (a.amax(1) - a.amin(1)).clamp(min=1e-30)
    for shift in (torch.zeros(3), torch.tensor([0.3, -1.7, 0.0]) * scale):
        moved = a + shift[:, None]
        lows, highs = torch.minimum(moved.amin(1), b.amin(1)), torch.maximum(moved.amax(1), b.amax(1))
        largest = torch.stack((lows.abs(), highs.abs(), a.abs().amax(1))).amax(0).double()
        # A value's place is rounded three times, in the range and as float32 rounds the values themselves.
        allowed = 3 * ROUNDING * n * ((highs.double() - lows.double()) + largest)
        error = (wasserstein_1d(a, b, shift) - by_definition(a, b, shift)).abs()
        assert (error <= allowed).all(), (error / allowed).tolist()


def test_errors_are_rounding_and_not_a_bias():
    """The mean of many values is far nearer than each: buckets count no value twice and leave none out."""
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 300_000, generator=random), 1.1 * torch.randn(4, 300_000, generator=random) + 0.1
    found, expected = wasserstein_1d(a, b, torch.zeros(4)), by_definition(a, b, torch.zeros(4))
    assert (found / expected - 1).abs().max() < 1e-8


def test_equal_sets_are_at_distance_zero_in_any_order():
    a = torch.randn(2, 777, generator=torch.Generator().manual_seed(0))
    assert wasserstein_1d(a, a[:, torch.randperm(777)], torch.zeros(2)).tolist() == [0, 0]
    flat = torch.full((2, 5), 3.25)
    assert wasserstein_1d(flat, flat, torch.zeros(2)).tolist() == [0, 0]
    shifted = wasserstein_1d(flat, flat, torch.tensor([0.5, -2.0]))
    assert shifted.tolist() == pytest.approx([2.5, 10.0], rel=4 * ROUNDING)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_gives_nan(value):
    a, b, shift = torch.randn(3, 50), torch.randn(3, 50), torch.zeros(3)
    a[0, 49], b[1, 17], shift[2] = value, value, value
    assert wasserstein_1d(a, b, shift).isnan().all()


def test_threads_and_layouts_do_not_matter():
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(64, 5000, generator=random), torch.randn(64, 5000, generator=random)
    shift, threads = torch.linspace(-1, 1, 64), torch.get_num_threads()
    expected = wasserstein_1d(a, b, shift)
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert torch.equal(wasserstein_1d(a, b, shift), expected)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(wasserstein_1d(a.t().contiguous().t(), b, shift), expected)


def test_the_composite_is_the_same():
    """Other devices compute it, and builds without kernels."""
    a, b, shift = torch.randn(3, 500), torch.randn(3, 500), torch.randn(3)
    expected = by_definition(a, b, shift)
    torch.testing.assert_close(wasserstein._composite(a, b, shift), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(wasserstein_1d(a, b, shift), expected, rtol=1e-6, atol=0)


def test_rows_of_more_values_than_buckets_count_are_sorted(monkeypatch):
    a, b, shift = torch.randn(3, 50), torch.randn(3, 50), torch.zeros(3)
    monkeypatch.setattr(wasserstein, "MOST_VALUES", 49)
    assert torch.equal(wasserstein_1d(a, b, shift), wasserstein._composite(a, b, shift))


@pytest.mark.parametrize(
    "shapes", [((2, 3), (2, 4), (2,)), ((2, 3), (2, 3), (3,)), ((2, 0), (2, 0), (2,)), ((3,), (3,), (1,))], ids=str
)
def test_other_shapes_are_refused(shapes):
    with pytest.raises(RuntimeError, match=r"wasserstein_1d: a and b must be \[K, N\] of one shape"):
        wasserstein_1d(*map(torch.zeros, shapes))


def test_other_dtypes_are_refused():
    with pytest.raises(RuntimeError, match="wasserstein_1d: a, b and shift must be float32"):
        wasserstein_1d(torch.zeros(2, 3).double(), torch.zeros(2, 3), torch.zeros(2))
