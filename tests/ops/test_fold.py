"""Folded and cast copies of weights: right by themselves, kept where that is promised, never stale elsewhere."""

import pytest
import torch
import torch.nn.functional as F

from pggan_fast import cache_folded_weights, ops
from pggan_fast.ops import fold as under_test
from tests.ops.samples import DTYPES, laid_out

RESCALINGS = [{}, {"up": 2}, {"down": 2}]
X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _parameter(dtype=torch.float32, channels: int = 4) -> torch.nn.Parameter:
    values = torch.randn(channels, 4, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.nn.Parameter(values.to(dtype))


@pytest.fixture
def copies(monkeypatch) -> list:
    """Record the copies of weights that are made, one entry each."""
    made, fold = [], under_test._folded_copy
    monkeypatch.setattr(under_test, "_folded_copy", lambda *args: made.append(args[1:]) or fold(*args))
    return made


def _scores(weight, impl, dtype=torch.bfloat16, **rescaling):
    return ops.equalized_conv2d(X.to(dtype), weight, act="lrelu", impl=impl, **rescaling)


@pytest.fixture(params=["native", "auto"])
def impl(request):
    if request.param == "native" and (reason := ops.dispatch.unavailable_reason("native", "cpu")) is not None:
        pytest.skip(reason)
    return request.param


@pytest.mark.parametrize("rescaling", RESCALINGS, ids=str)
def test_same_results_from_one_copy(copies, rescaling):
    weight = _parameter()
    x = X.bfloat16().requires_grad_()

    def results():
        y = ops.equalized_conv2d(x, weight, act="lrelu", **rescaling)
        return y, *torch.autograd.grad(y.square().sum(), [x, weight])

    expected = results()
    outside = len(copies)
    with cache_folded_weights():
        for _ in range(3):
            for actual, e in zip(results(), expected, strict=True):
                assert torch.equal(actual, e)
    if ops.implementations("cpu")["equalized_conv2d"]["reference"] != "chosen":
        # One for the result and one for each gradient that takes another layout.
        assert outside >= 2
        assert sorted(copies[outside:]) == sorted(set(copies[:outside]))


@pytest.mark.parametrize("rescaling", RESCALINGS, ids=str)
def test_each_dtype_layout_and_rescaling_has_its_own_copy(rescaling):
    weight = _parameter()
    inputs = [laid_out(X.to(dtype), layout) for dtype in DTYPES for layout in ("contiguous", "channels_last")]
    expected = [ops.equalized_conv2d(x, weight, **rescaling) for x in inputs]
    with cache_folded_weights():
        for other in RESCALINGS:
            ops.equalized_conv2d(X.float(), weight, **other)
        for _ in range(2):
            for x, e in zip(inputs, expected, strict=True):
                assert torch.equal(ops.equalized_conv2d(x, weight, **rescaling), e)


@pytest.mark.parametrize("rescaling", RESCALINGS, ids=str)
def test_a_change_is_seen(impl, rescaling):
    """At once, but for one through .data inside, which is seen after `invalidate`."""
    weight = _parameter()
    before = _scores(weight, impl, **rescaling)
    weight.data.mul_(2)
    doubled = _scores(weight, impl, **rescaling)
    torch.testing.assert_close(doubled, 2 * before)
    with torch.no_grad(), cache_folded_weights() as invalidate:
        assert torch.equal(_scores(weight, impl, **rescaling), doubled)
        weight.mul_(0.5)
        assert torch.equal(_scores(weight, impl, **rescaling), before)
        weight.data.mul_(2)
        invalidate([weight])
        assert torch.equal(_scores(weight, impl, **rescaling), doubled)
        weight.data.mul_(0.5)
    assert torch.equal(_scores(weight, impl, **rescaling), before)


def test_forgetting_leaves_others(copies):
    first, second = _parameter(), _parameter(channels=5)
    with torch.no_grad(), cache_folded_weights() as invalidate:
        for weight in (first, second):
            ops.equalized_conv2d(X.float(), weight, up=2)
        invalidate([first, _parameter()])
        before = len(copies)
        ops.equalized_conv2d(X.float(), second, up=2)
        assert len(copies) == before


def test_the_promise_ends_with_an_exception():
    weight = _parameter()
    with pytest.raises(KeyError), cache_folded_weights():
        ops.equalized_conv2d(X.float(), weight, up=2)
        raise KeyError
    before = ops.equalized_conv2d(X.float(), weight, up=2)
    weight.data.zero_()
    assert before.any() and not ops.equalized_conv2d(X.float(), weight, up=2).any()


def test_promises_nest():
    weight = _parameter()
    with torch.no_grad(), cache_folded_weights():
        y = ops.equalized_conv2d(X.float(), weight, up=2)
        with cache_folded_weights():
            weight.mul_(2)
            torch.testing.assert_close(ops.equalized_conv2d(X.float(), weight, up=2), 2 * y)
        weight.mul_(0.5)
        assert torch.equal(ops.equalized_conv2d(X.float(), weight, up=2), y)


def test_a_view_is_not_the_parameter():
    """A weight of the same shape has other values: a transposed weight, half of a bigger one."""
    weight = _parameter()
    expected = ops.equalized_conv2d(X.float(), weight.transpose(0, 1).contiguous(), up=2, impl="native")
    with cache_folded_weights():
        ops.equalized_conv2d(X.float(), weight, up=2, impl="native")
        assert torch.equal(ops.equalized_conv2d(X.float(), weight.transpose(0, 1), up=2, impl="native"), expected)


def test_tensors_that_are_no_parameters_are_not_kept():
    """They are results, such as a weight under spectral norm, and change from call to call."""
    weight = _parameter().detach()
    with cache_folded_weights():
        y = ops.equalized_conv2d(X.float(), weight, up=2)
        torch.testing.assert_close(ops.equalized_conv2d(X.float(), weight * 2, up=2), 2 * y)
        weight.mul_(2)
        torch.testing.assert_close(ops.equalized_conv2d(X.float(), weight, up=2), 2 * y)


# The folded kernels themselves, against the convolutions they stand for.


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("channels_last", [False, True])
def test_fold_is_the_sum_of_four_shifts(fused, k, channels_last):
    weight = torch.randn(5, 3, k, k, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if channels_last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    down = torch.ops.pggan_fast.fold_weight(weight, 0.25, False, torch.float64, channels_last)
    torch.testing.assert_close(F.conv2d(x, down, stride=2, padding=k), F.avg_pool2d(F.conv2d(x, weight, padding=k), 2))
    up = torch.ops.pggan_fast.fold_weight(weight, 1.0, True, torch.float64, channels_last)
    upsampled = F.interpolate(x, scale_factor=2.0, mode="nearest")
    torch.testing.assert_close(F.conv_transpose2d(x, up, stride=2, padding=k - 1), F.conv2d(upsampled, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_unfold_is_the_adjoint_of_fold(fused, dtype, transposed, channels_last):
    """<fold(w), g> = <w, unfold(g)>, and both round their sum of four once."""
    random = torch.Generator().manual_seed(4)
    weight = torch.randn(5, 33, 3, 3, generator=random, dtype=torch.float64).to(dtype)
    shape = (33, 5, 4, 4) if transposed else (5, 33, 4, 4)
    gradient = torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)
    wide = [torch.float64, channels_last]
    folded = torch.ops.pggan_fast.fold_weight(weight.double(), 0.25, transposed, *wide)
    unfolded = torch.ops.pggan_fast.unfold_weight(gradient.double(), 0.25, transposed, *wide)
    torch.testing.assert_close((folded * gradient.double()).sum(), (weight.double() * unfolded).sum())
    narrow = torch.ops.pggan_fast.fold_weight(weight, 0.25, transposed, dtype, channels_last)
    torch.testing.assert_close(narrow.double(), folded, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    narrow = torch.ops.pggan_fast.unfold_weight(gradient, 0.25, transposed, dtype, channels_last)
    torch.testing.assert_close(narrow.double(), unfolded, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
