"""minibatch_stddev: the copy, the groups, the warning, stability, and the gradient of the maps by itself."""

import warnings

import pytest
import torch

from pggan_fast import ops, reference
from tests.ops.samples import DTYPES, LAYOUTS, SAMPLES, laid_out
from tests.tolerances import assert_accurate

IGNORE = pytest.mark.filterwarnings("ignore:minibatch_stddev. no group size")
STDDEV = [s for s in SAMPLES if s.op == "minibatch_stddev"]


@IGNORE
@pytest.mark.parametrize("sample", STDDEV, ids=str)
def test_x_is_copied_and_maps_are_constant(implementation, sample):
    function = implementation.function("minibatch_stddev")
    for layout in LAYOUTS:
        for dtype in implementation.dtypes:
            x = sample.tensors(dtype)["x"]
            y = function(laid_out(x, layout), **sample.options)
            maps = y[:, x.shape[1] :]
            assert torch.equal(y[:, : x.shape[1]], x)
            assert torch.equal(maps, maps[..., :1, :1].expand_as(maps))


@IGNORE
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", [s for s in STDDEV if s.shapes["x"][0]], ids=str)
def test_maps(implementation, sample, dtype):
    """By themselves: beside x, whose values are larger, an error of theirs would not show."""
    x = sample.tensors(dtype)["x"]
    exact, plain = (reference.minibatch_stddev(t, **sample.options)[:, x.shape[1] :] for t in (x.double(), x))
    for layout in ("contiguous", "channels_last"):
        y = implementation.function("minibatch_stddev")(laid_out(x, layout), **sample.options)
        actual = y[:, x.shape[1] :]
        assert_accurate(layout, actual, plain, exact, order="output", dtype=dtype, condition=sample.condition)


@IGNORE
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sample", [s for s in STDDEV if s.shapes["x"][0] > 1], ids=str)
def test_gradient_of_maps(implementation, sample, dtype):
    """With no gradient of the copied channels, which would hide it."""

    def gradient(function, x, layout="contiguous"):
        x = x.clone().requires_grad_()
        maps = function(laid_out(x, layout), **sample.options)[:, x.shape[1] :]
        direction = torch.randn(maps.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        return torch.autograd.grad(maps, x, direction.to(dtype).to(maps.dtype))[0]

    x = sample.tensors(dtype)["x"]
    exact, plain = (gradient(reference.minibatch_stddev, t) for t in (x.double(), x))
    for layout in ("contiguous", "channels_last"):
        actual = gradient(implementation.function("minibatch_stddev"), x, layout)
        assert_accurate(layout, actual, plain, exact, order="first", dtype=dtype, condition=sample.condition)


def test_identical_samples_have_no_deviation(implementation):
    """sqrt(eps) is left; E[x**2] - E[x]**2 would give noise at these values."""
    x = torch.full((4, 3, 5, 5), 1234.567)
    y = implementation.function("minibatch_stddev")(x)
    torch.testing.assert_close(y[:, 3:], torch.full((4, 1, 5, 5), 1e-4), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("batch", "group_size", "warned"),
    [(5, 4, True), (7, 4, True), (6, 4, False), (1, 4, False), (5, 1, False), (0, 4, False)],
)
@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_warns_where_only_groups_of_one_fit(batch, group_size, warned, impl):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ops.minibatch_stddev(torch.zeros(batch, 2, 3, 3), group_size, impl=impl)
    messages = [str(w.message) for w in caught]
    assert len(messages) == warned
    if warned:
        expected = f"no group size from 2 to {group_size} divides the batch of {batch}, so the statistics are constant"
        assert messages == [f"minibatch_stddev: {expected}"]
        assert caught[0].filename == __file__


@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_an_empty_batch_is_empty(impl):
    x = torch.zeros(0, 6, 3, 5, requires_grad=True)
    y = ops.minibatch_stddev(x, num_channels=2, impl=impl)
    assert y.shape == (0, 8, 3, 5)
    y.sum().backward()
    assert x.grad.shape == x.shape
