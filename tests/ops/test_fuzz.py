"""Random op calls: shapes, strides, dtypes and arguments, against the reference in fp64 and against the fake kernels.

PGGAN_FAST_FUZZ is the number of calls that each test tries (`make test-fuzz`).
"""

import math
import os

import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pggan_fast import ops
from pggan_fast.ops.dispatch import unavailable_reason
from tests.ops.samples import DTYPES, LAYOUTS, laid_out

pytestmark = pytest.mark.filterwarnings("ignore:minibatch_stddev. no group size")
FUZZ = settings(
    max_examples=int(os.environ.get("PGGAN_FAST_FUZZ", "60")),
    deadline=None,
    derandomize="PGGAN_FAST_FUZZ" not in os.environ,  # `make test` tries the same ones every time
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
if (reason := unavailable_reason("native", "cpu")) is not None:
    pytest.skip(reason, allow_module_level=True)

SIZE = st.sampled_from([0, 1, 1, 2, 3, 4, 5, 7])
CHANNELS = st.sampled_from([1, 2, 3, 5, 16, 17])
ACT = st.sampled_from(["linear", "relu", "lrelu"])


@st.composite
def tensors(draw, shape: tuple, dtype: torch.dtype) -> Tensor:
    """Normally distributed, or all of one magnitude, in any layout, expanded at times."""
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    t = (torch.randn(shape, generator=random, dtype=torch.float64) * draw(st.sampled_from([1.0, 1e-2, 10.0]))).to(dtype)
    layout = draw(st.sampled_from([*LAYOUTS, "expanded"]))
    if layout == "expanded":
        return t[:1].expand(shape) if shape[0] else t
    return laid_out(t, layout)


@st.composite
def bias_act_calls(draw):
    dims, dtype = draw(st.integers(2, 6)), draw(st.sampled_from(DTYPES))
    shape = (draw(SIZE), draw(CHANNELS), *(draw(SIZE) for _ in range(dims - 2)))
    assume(math.prod(shape) <= 4096)
    bias = draw(tensors(shape[1:2], dtype)) if draw(st.booleans()) else None
    options = dict(
        scale=draw(st.sampled_from([1.0, 0.3, -1.5])),
        act=draw(ACT),
        slope=draw(st.sampled_from([0.0, 0.2, 1.0, 3.0])),
        gain=draw(st.sampled_from([0.0, 1.0, 1.4])),
        pixel_norm=draw(st.booleans()),
        eps=draw(st.sampled_from([1e-2, 0.5])),
    )
    return ops.bias_act, [draw(tensors(shape, dtype)), bias], options


@st.composite
def conv_calls(draw):
    dtype, k = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([1, 2, 3, 4]))
    up, down = draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    c_in, c_out = draw(CHANNELS), draw(CHANNELS)
    shape = (draw(SIZE), c_in, *(draw(st.sampled_from([1, 2, 3, 5, 6])) for _ in range(2)))
    padding = draw(st.integers(0, k - 1 if up == 2 else k))
    assume(min(shape[2:]) * up + 2 * padding >= k)
    x, weight = draw(tensors(shape, dtype)), draw(tensors((c_out, c_in, k, k), dtype))
    bias = draw(tensors((c_out,), dtype)) if draw(st.booleans()) else None
    options = dict(padding=padding, up=up, down=down, act=draw(ACT), pixel_norm=draw(st.booleans()), eps=1e-2)
    return ops.equalized_conv2d, [x, weight, bias], options


@st.composite
def linear_calls(draw):
    dtype = draw(st.sampled_from(DTYPES))
    c_in, c_out = draw(CHANNELS), draw(CHANNELS)
    x, weight = draw(tensors((draw(SIZE), c_in), dtype)), draw(tensors((c_out, c_in), dtype))
    bias = draw(tensors((c_out,), dtype)) if draw(st.booleans()) else None
    options = dict(act=draw(ACT), gain=draw(st.sampled_from([0.0, 1.0, 1.4])), pixel_norm=draw(st.booleans()), eps=1e-2)
    return ops.equalized_linear, [x, weight, bias], options


@st.composite
def special_calls(draw):
    """Calls whose tensors hold infinities, NaN, zeros and the largest values, in dtypes that compute in themselves."""
    function, inputs, options = draw(st.one_of(bias_act_calls(), image_calls()))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    values = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, 1e30, -1e30, 1e-30, 1.0, -2.0], dtype=dtype)
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def spoilt(t: Tensor) -> Tensor:
        chosen = values[torch.randint(len(values), t.shape, generator=random)]
        return torch.where(torch.rand(t.shape, generator=random) < 0.2, chosen, t.to(dtype))

    return function, [None if t is None else spoilt(t) for t in inputs], options


@st.composite
def image_calls(draw):
    dtype, op = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(["up", "down", "fade_in", "reals", "stddev"]))
    n, c, h, w = draw(SIZE), draw(CHANNELS), draw(st.sampled_from([1, 2, 3, 5])), draw(st.sampled_from([1, 2, 3, 5]))
    alpha = draw(st.sampled_from([0.0, 0.3, 1.0, 1.5, -0.5]))
    x = draw(tensors((n, c, h, w), dtype))
    if op in ("up", "down"):
        return getattr(ops, f"{op}sample2x"), [x], {}
    if op == "stddev":
        options = dict(group_size=draw(st.integers(1, 5)), eps=0.1, correction=draw(st.sampled_from([0, 1])))
        return ops.minibatch_stddev, [x], options | dict(grouping=draw(st.sampled_from(["strided", "consecutive"])))
    high = draw(tensors((n, c, 2 * h, 2 * w), dtype))
    return (
        (ops.fade_in, [x, high], dict(alpha=alpha)) if op == "fade_in" else (ops.fade_reals, [high], dict(alpha=alpha))
    )


def _results(call, inputs, impl: str, dtype=None, *, second: bool = False) -> list[Tensor]:
    """The output and the first order's gradients, of leaves in `dtype`; or the second order's gradients alone."""
    function, _, options = call
    given = [None if t is None else t.to(dtype or t.dtype).detach().requires_grad_() for t in inputs]
    y = function(*given, **options, impl=impl)
    leaves = [t for t in given if t is not None]
    dy = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    if not second:
        return [y, *torch.autograd.grad(y, leaves, dy)]
    first = torch.autograd.grad(y, leaves, dy.requires_grad_(), create_graph=True)
    # Unequal weights, so that no two terms take each other's place.
    weights = [torch.linspace(1, 2, d.numel(), dtype=torch.float64).view(d.shape).to(d.dtype) for d in first]
    product = sum((d * w).sum() for d, w in zip(first, weights, strict=True))
    return list(torch.autograd.grad(product, [dy, *leaves], allow_unused=True, materialize_grads=True))


def _plain(inputs) -> list[Tensor | None]:
    """Contiguous: torch's own fp64 convolution of one channel has no gradient in channels_last."""
    return [None if t is None else t.contiguous() for t in inputs]


def _check(call) -> None:
    function, inputs, options = call
    dtype = inputs[0].dtype
    actual, exact = _results(call, inputs, "native"), _results(call, _plain(inputs), "reference", torch.float64)
    # A dozen roundings of the dtype, each relative to the largest value that takes part in the result; sums over up to
    # 17 * 16 products, of which fp16 rounds the bare one too. A gradient may be a sum of terms of the size of another
    # gradient that cancel: the bias's is that of the input's.
    largest = [max([1.0, *(t.abs().max().item() for t in ts if t is not None and t.numel())]) for ts in (inputs, exact)]
    for a, e in zip(actual, exact, strict=True):
        assert a.shape == e.shape and a.dtype == dtype
        if not a.numel():
            continue
        scale = max(largest[0], e.abs().max().item() if a is actual[0] else largest[1])
        bound = 64 * torch.finfo(dtype).eps * scale * (1 + scale)
        wrong = ((a.double() - e).abs() > bound).sum().item()
        # A rounding may put an output on the other side of the kink, with the gradients that follow from it.
        kinked = a is not actual[0] and options.get("act", "lrelu") != "linear" and function is not ops.minibatch_stddev
        if not (kinked and dtype in (torch.float16, torch.bfloat16)):
            assert wrong == 0, (function.__name__, options, a, e)
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [None if t is None else mode.from_tensor(t) for t in inputs]
        fake = function(*fakes, **options, impl="native")
    assert fake.shape == actual[0].shape and fake.stride() == actual[0].stride()
    there = [None if t is None else t.detach().to("meta") for t in inputs]
    assert function(*there, **options).shape == actual[0].shape


def _cancelling_call():
    """A bias whose gradient is the sum of 60 terms ten times as large as it is."""
    x = torch.randn(2, 1, 2, 3, 5, generator=torch.Generator().manual_seed(68), dtype=torch.float64) * 1e-2
    bias = torch.full((1,), 0.0154, dtype=torch.float64)
    return ops.bias_act, [x, bias], dict(act="linear", pixel_norm=True, eps=1e-2)


@FUZZ
@given(bias_act_calls())
@example(_cancelling_call())
def test_bias_act(call):
    _check(call)


@FUZZ
@given(conv_calls())
def test_convolution(call):
    _check(call)


@FUZZ
@given(image_calls())
def test_images(call):
    _check(call)


@FUZZ
@given(linear_calls())
def test_linear(call):
    _check(call)


@FUZZ
@given(st.one_of(bias_act_calls(), conv_calls(), image_calls(), linear_calls()))
def test_second_order(call):
    """In fp64 and fp32; in half precision roundings put values on the other side of a kink."""
    _, inputs, _ = call
    dtype = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
    inputs = [None if t is None else t.to(dtype) for t in inputs]
    actual = _results(call, inputs, "native", second=True)
    exact = _results(call, _plain(inputs), "reference", torch.float64, second=True)
    for a, e in zip(actual, exact, strict=True):
        assert a.shape == e.shape and a.dtype == dtype
        if a.numel():
            # A derivative of a quotient has its square in the denominator, which eps keeps from 0.
            # Some hundred terms cancel: 640 eps were seen in fp64.
            scale = max(
                [1.0, e.abs().max().item(), *(t.abs().max().item() for t in inputs if t is not None and t.numel())]
            )
            assert ((a.double() - e).abs() <= 1024 * torch.finfo(dtype).eps * scale * (1 + scale)).all(), (call, a, e)


@FUZZ
@given(special_calls())
def test_special_values(call):
    """NaN and infinities are where the reference has them, and no other value is touched by them.

    Gradients through an activation or a statistic are compared where it is a number: they depend on its sign or value.
    """
    function, inputs, _ = call
    (y, *found), (exact, *expected) = _results(call, inputs, "native"), _results(call, inputs, "reference")
    known = torch.ones_like(y, dtype=torch.bool)
    if function is ops.bias_act:
        known = ~y.isnan().any(dim=1, keepdim=True).expand(y.shape)
    elif function is ops.minibatch_stddev:
        known = torch.tensor(not y.isnan().any())
    for a, e in [(y, exact), *zip(found, expected, strict=True)]:
        if a is not y and not known.all():
            if a.shape != known.shape:
                continue
            a, e = a[known], e[known]
        assert torch.equal(a.isnan(), e.isnan()) and torch.equal(a.isposinf(), e.isposinf()), (call, a, e)
        assert torch.equal(a.isneginf(), e.isneginf()), (call, a, e)
