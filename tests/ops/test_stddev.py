"""minibatch_stddev: the copy, the groups, the warning, stability, and the gradient of the maps by itself."""

import decimal
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from pggan_fast import ops, reference
from tests.ops.samples import DTYPES, LAYOUTS, SAMPLES, laid_out
from tests.tolerances import TWICE, assert_accurate, largest

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


# Batches that collapse: what they share is the larger part of every value. (shape, mean, deviation, options)
COLLAPSING = [
    ((2, 8, 8, 8), 0, 1, {}),
    ((4, 8, 8, 8), 0, 1, {"group_size": 2}),
    ((4, 64, 4, 4), 0, 1, {}),
    ((8, 64, 4, 4), 0, 1, {}),
    ((3, 64, 4, 4), 0, 1, {"group_size": 3}),
    ((4, 64, 4, 4), 1, 0.1, {}),
    ((4, 64, 4, 4), 5, 0.05, {}),
    ((4, 64, 4, 4), 5, 0.005, {}),
    ((4, 64, 4, 4), 100, 0.01, {}),
    ((6, 64, 4, 4), -100, 0.01, {"group_size": 6, "correction": 1}),
    ((8, 64, 4, 4), 5, 0.005, {"grouping": "consecutive", "num_channels": 2}),
    ((4, 32, 4, 4), 5, 0.005, {"group_size": 2, "grouping": "consecutive", "correction": 1}),
]


def _gradients_of_maps(function, x: Tensor, dy: Tensor, g: Tensor, layout: str = "contiguous") -> dict[str, Tensor]:
    """dx through the maps alone, and the gradients of its product with g in the maps' dy and in x."""
    x, dy = x.detach().clone().requires_grad_(), dy.to(x.dtype).clone().requires_grad_()
    maps = function(laid_out(x, layout))[:, x.shape[1] :]
    (dx,) = torch.autograd.grad(maps, x, dy, create_graph=True)
    d_dy, dd_x = torch.autograd.grad(dx, [dy, x], laid_out(g.to(x.dtype), layout))
    return {"dx": dx.detach(), "d_dy": d_dy, "dd_x": dd_x}


def _collapsing(shape, mean, deviation, dtype, maps=1) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    n, c, h, w = shape
    x, dy, g = (torch.randn(n, k, h, w, generator=random, dtype=torch.float64) for k in (c, maps, c))
    # Positive dy: the error of a sum that cancels, one number for a whole map, would be chance.
    return (mean + deviation * x).to(dtype), dy.abs().to(dtype), g.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", COLLAPSING, ids=str)
@pytest.mark.parametrize("shared_gradient", [0, 100])
def test_gradients_of_collapsing_batches(implementation, case, dtype, shared_gradient):
    """The mean of values that are nearly the same is rounded: digits that plain PyTorch keeps must not be lost by it.

    Nor by that of gradients that the samples share.
    """
    if dtype not in implementation.dtypes:
        return
    shape, mean, deviation, options = case
    x, dy, g = _collapsing(shape, mean, deviation, dtype, options.get("num_channels", 1))
    g = g + shared_gradient
    exact, plain = (
        _gradients_of_maps(lambda t: reference.minibatch_stddev(t, **options), t, dy, g) for t in (x.double(), x)
    )
    function = implementation.function("minibatch_stddev")
    for layout in ("contiguous", "channels_last"):
        found = _gradients_of_maps(lambda t: function(t, **options), x, dy, g, layout)
        for name, right in exact.items():
            error, plain_error = (largest(t[name].double() - right) for t in (found, plain))
            # Beside twice plain PyTorch's error, two roundings of the largest value, or of the terms of a map's sum.
            scale = max(largest(right), largest(g - shared_gradient)) if name == "d_dy" else largest(right)
            allowed = TWICE * plain_error + torch.finfo(dtype).eps * scale
            assert error <= allowed, (name, layout, error / scale, plain_error / scale)


def _exact_gradients(x: Tensor, dy: Tensor, g: Tensor, eps: float) -> dict[str, np.ndarray]:
    """The formulas of ops/stddev.py for one group and one map, in decimal numbers of 60 digits."""
    wide = np.vectorize(decimal.Decimal, otypes=[object])
    x, dy, g = (wide(t.numpy()) for t in (x, dy, g))
    group, elements = len(x), decimal.Decimal(x[0].size)
    d, h = x - x.sum(0) / group, g - g.sum(0) / group
    variance = (d * d).sum(0) / group + decimal.Decimal(eps)
    s = np.vectorize(decimal.Decimal.sqrt, otypes=[object])(variance)
    t, a = dy.sum() / (group * elements), (h * d).sum(0)
    maps = (a / s).sum() / (group * elements)
    exact = {"dx": t * d / s, "d_dy": maps + 0 * dy, "dd_x": t * (h - d * a / (group * variance)) / s}
    return {k: v.astype(np.float64) for k, v in exact.items()}


@pytest.mark.parametrize("case", [c for c in COLLAPSING if c[3] == {} and c[0] != (8, 64, 4, 4)], ids=str)
def test_gradients_of_collapsing_batches_in_fp64(implementation, case):
    """As above, where nothing wider computes what is right."""
    (n, *_), mean, deviation, _ = case
    x, dy, g = _collapsing((n, 6, 3, 2), mean, deviation * 1e-6, torch.float64)
    plain = _gradients_of_maps(reference.minibatch_stddev, x, dy, g)
    function = implementation.function("minibatch_stddev")
    with decimal.localcontext(decimal.Context(prec=60)):
        exact = {k: torch.from_numpy(v) for k, v in _exact_gradients(x, dy, g, 1e-8).items()}
    for layout in ("contiguous", "channels_last"):
        for name, actual in _gradients_of_maps(function, x, dy, g, layout).items():
            error, plain_error = (largest(t - exact[name]) for t in (actual, plain[name]))
            scale = max(largest(exact[name]), largest(g)) if name == "d_dy" else largest(exact[name])
            allowed = TWICE * plain_error + 2 * torch.finfo(torch.float64).eps * scale
            assert error <= allowed, (name, layout, error, plain_error)


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
