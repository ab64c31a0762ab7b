"""Half precision on a processor without instructions for it: computed in fp32, kept narrow between layers."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pggan_fast import reference
from pggan_fast.ops import equalized_conv2d, equalized_linear, narrow_cpu
from tests.tolerances import assert_accurate

HALF = [torch.bfloat16, torch.float16]
COMPUTING = {"convolution", "convolution_backward", "mm"}


class Computed(TorchDispatchMode):
    """Notes the dtypes that convolutions and products run in."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.partition("::")[2] in COMPUTING:
            self.dtypes.add(args[0].dtype)
        return func(*args, **kwargs or {})


@pytest.fixture(params=[True, False], ids=["slow", "fast"])
def slow(request, monkeypatch):
    """Whether the processor is taken to have no instructions for half precision."""
    monkeypatch.setattr(narrow_cpu, "is_slow", lambda dtype: request.param)
    return request.param


RESCALINGS = {"conv": {}, "up": {"up": 2}, "down": {"down": 2}}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def tensors(dtype, *shapes):
    torch.manual_seed(0)
    x, *parameters = (torch.randn(shape) for shape in shapes)
    return [x.to(dtype).requires_grad_(), *(p.requires_grad_() for p in parameters)]


def widened(leaves, *dtypes):
    """Copies in fp64 of what the tensors are when rounded to these dtypes."""
    return [t.detach().to(d).double().requires_grad_() for t, d in zip(leaves, dtypes, strict=True)]


def in_orders(call, leaves):
    """[(order, tensor)]: the value, its gradients, and those of a penalty on the first of these."""
    y = call(*leaves)
    first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
    second = torch.autograd.grad(first[0].square().sum(), leaves[:2])
    return [("output", y), *(("first", t) for t in first), *(("second", t) for t in second)]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", RESCALINGS)
def test_convolutions_are_computed_in_fp32_where_half_precision_is_slow(name, layout, dtype, slow):
    options = dict(act="lrelu", **RESCALINGS[name])
    leaves = tensors(dtype, (2, 8, 6, 6), (4, 8, 3, 3), (4,))
    kept = []

    def ours(x, weight, bias):
        return equalized_conv2d(x.to(memory_format=LAYOUTS[layout]), weight, bias, **options)

    with Computed() as computed, torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = in_orders(ours, leaves)
    assert computed.dtypes == {torch.float32 if slow else dtype}
    images = [t.dtype for t in kept if t.ndim == 4 and t.shape[0] == 2]
    assert len(images) >= 2 and set(images) == {dtype}
    plain = in_orders(lambda *t: reference.equalized_conv2d(*t, **options), leaves)
    exact = in_orders(lambda *t: reference.equalized_conv2d(*t, **options), widened(leaves, *(t.dtype for t in leaves)))
    for (order, one), (_, other), (_, right) in zip(found, plain, exact, strict=True):
        assert_accurate(f"{name} {order}", one, other, right, order=order, dtype=dtype)


@pytest.mark.parametrize("autocast", [False, True])
def test_products_are_computed_in_fp32_where_half_precision_is_slow(slow, autocast):
    dtype = torch.bfloat16
    leaves = tensors(torch.float32 if autocast else dtype, (4, 16), (8, 16), (8,))

    def call(op):
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            y = op(*leaves, act="lrelu")
        return [("output", y), *(("first", t) for t in torch.autograd.grad(y.square().sum(), leaves))]

    with Computed() as computed:
        found = call(equalized_linear)
    assert computed.dtypes == {torch.float32 if slow else dtype}
    wide = widened(leaves, dtype, torch.float32, torch.float32)
    exact = reference.equalized_linear(*wide, act="lrelu")
    exact = [exact, *torch.autograd.grad(exact.square().sum(), wide)]
    for (order, one), (_, plain), right in zip(found, call(reference.equalized_linear), exact, strict=True):
        assert_accurate(order, one, plain.to(one.dtype), right, order=order, dtype=dtype)


@pytest.mark.parametrize("limit", narrow_cpu.WITHOUT_BF16)
def test_what_onednn_may_not_use_is_slow(limit, monkeypatch):
    monkeypatch.setenv(narrow_cpu.LIMIT, limit.lower())
    is_slow = narrow_cpu.is_slow.__wrapped__
    assert is_slow(torch.bfloat16) and is_slow(torch.float16) and not is_slow(torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_weights_gradients_of_images_smaller_than_the_kernel_are_written_whole(size, layout):
    """oneDNN returns, for taps that no pixel reaches, what its memory held before: here 2e34."""
    torch.manual_seed(0)
    for _ in range(20):
        leftovers = [torch.full((n,), 2e34) for n in (64, 128, 144, 256, 288, 512)]
        del leftovers
        x, weight = torch.randn(1, 16, size, size).bfloat16(), torch.randn(1, 16, 3, 3).bfloat16()
        leaves = [t.to(memory_format=LAYOUTS[layout]).requires_grad_() for t in (x, weight)]
        y = equalized_conv2d(*leaves, None, padding=2, down=2)
        dw = torch.autograd.grad(y.sum(), leaves)[1]
        wide = [t.detach().double().requires_grad_() for t in leaves]
        exact = torch.autograd.grad(reference.equalized_conv2d(*wide, None, padding=2, down=2).sum(), wide)[1]
        assert (dw - exact).abs().max() <= 0.05 * exact.abs().max()  # a few roundings to 8 bits of mantissa


def test_fp32_and_fp64_are_never_widened():
    assert not any(narrow_cpu.is_widened(torch.empty(1, dtype=dtype)) for dtype in (torch.float32, torch.float64))
