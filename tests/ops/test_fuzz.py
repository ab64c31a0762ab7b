"""Random op calls: shapes, strides, dtypes and arguments, against the reference in fp64 and against the fake kernels.

PGGAN_FAST_FUZZ is the number of calls that each test tries (`make test-fuzz`).
"""

import math
import os

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
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


def _results(call, inputs, impl: str, dtype=None) -> list[Tensor]:
    """The output and the first order's gradients, of leaves in `dtype`."""
    function, _, options = call
    given = [None if t is None else t.to(dtype or t.dtype).detach().requires_grad_() for t in inputs]
    y = function(*given, **options, impl=impl)
    leaves = [t for t in given if t is not None]
    dy = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype)
    return [y, *torch.autograd.grad(y, leaves, dy)]


def _check(call) -> None:
    function, inputs, options = call
    dtype = inputs[0].dtype
    actual, exact = _results(call, inputs, "native"), _results(call, inputs, "reference", torch.float64)
    # A dozen roundings of the dtype, each relative to the largest value that takes part in the result; sums over up to
    # 17 * 16 products, of which fp16 rounds the bare one too.
    for a, e in zip(actual, exact, strict=True):
        assert a.shape == e.shape and a.dtype == dtype
        if not a.numel():
            continue
        scale = max([1.0, e.abs().max().item(), *(t.abs().max().item() for t in inputs if t is not None and t.numel())])
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


@FUZZ
@given(bias_act_calls())
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
