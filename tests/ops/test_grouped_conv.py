"""conv2d: torch's own convolution, and its derivatives to the third order."""

import pytest
import torch
import torch.nn.functional as F

from pggan_fast import ops, use_impl
from pggan_fast.ops import narrow_cpu
from tests.tolerances import EXACT, GRADCHECK

DOUBLE = dict(dtype=torch.float64)
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
# By name the autograd functions of Python are taken, which small work does without.
IMPLS = pytest.mark.parametrize("impl", ["auto", "native"])
CASES = {
    "plain": dict(padding=1),
    "groups": dict(padding=1, groups=2),
    "depthwise": dict(padding=1, groups=4),
    "strided, dilated": dict(stride=2, padding=(2, 1), dilation=(2, 1), groups=2),
}


def sample(case: str, layout=torch.channels_last, **to):
    random, options = torch.Generator().manual_seed(0), CASES[case]
    x = torch.randn(2, 4, 6, 5, generator=random, **DOUBLE)
    weight = torch.randn(8, 4 // options.get("groups", 1), 3, 3, generator=random, **DOUBLE)
    tensors = (t.contiguous(memory_format=layout) for t in (x, weight))
    return *(t.to(**to).requires_grad_() for t in tensors), options


def derivatives(function, x, weight, orders=3):
    """The output, and gradients of gradients by x and weight, each in turn."""
    found = [function(x, weight)]
    for _ in range(orders):
        value = found[-1].sin().sum() if len(found) == 1 else sum(g.sin().sum() for g in found[-1])
        found.append(torch.autograd.grad(value, (x, weight), create_graph=True))
    return found


@IMPLS
@LAYOUTS
@pytest.mark.parametrize("case", CASES)
def test_equals_torchs_own_to_the_third_order(case, layout, impl):
    x, weight, options = sample(case, layout)
    with use_impl(impl):
        found = derivatives(lambda x, w: ops.conv2d(x, w, **options), x, weight)
    expected = derivatives(lambda x, w: F.conv2d(x, w, **options), x, weight)
    assert found[0].is_contiguous(memory_format=layout)
    torch.testing.assert_close(found, expected, **EXACT)


@IMPLS
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("case", CASES)
def test_gradients(case, check, impl):
    x, weight, options = sample(case)
    with use_impl(impl):
        assert check(lambda x, w: ops.conv2d(x, w, **options), (x, weight), **GRADCHECK)


def test_a_penalty_needs_few_convolutions():
    """Its derivatives are of all groups at once: as many convolutions for 4 groups as for 1."""
    calls = []

    class Counter(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "convolution" in str(function):
                calls.append(function)
            return function(*args, **(kwargs or {}))

    counts = {}
    for name, function in (("ours", ops.conv2d), ("torch's", F.conv2d)):
        x, weight, options = sample("depthwise")
        calls.clear()
        with Counter():
            (gradient,) = torch.autograd.grad(function(x, weight, **options).sin().sum(), x, create_graph=True)
            gradient.square().sum().backward()
        counts[name] = len(calls)
    # F; B; then F and W of the penalty's gradient, and B and W of what it leaves for the first convolution
    assert counts["ours"] == 5
    assert counts["torch's"] > counts["ours"]


def test_the_weights_gradient_is_not_computed_for_a_penalty_of_images():
    x, weight, options = sample("groups")
    masks = []

    class Masks(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "convolution_backward" in str(function):
                masks.append(tuple(args[-1][:2]))
            return function(*args, **(kwargs or {}))

    with Masks():
        torch.autograd.grad(ops.conv2d(x, weight, **options).sum(), x, create_graph=True)
    assert masks == [(True, False)]


def test_autocast():
    x, weight, options = sample("groups", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.conv2d(x, weight, **options)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    assert weight.grad.dtype == x.grad.dtype == torch.float32


@LAYOUTS
def test_half_precision_is_computed_in_fp32_where_that_is_faster(layout, monkeypatch):
    monkeypatch.setattr(narrow_cpu, "is_slow", lambda dtype: dtype == torch.bfloat16)
    x, weight, options = sample("groups", layout, dtype=torch.bfloat16)
    y = ops.conv2d(x, weight, **options)
    gradients = torch.autograd.grad(y.sum(), (x, weight))
    exact = F.conv2d(x.float(), weight.float(), **options).bfloat16()
    assert torch.equal(y, exact)  # fp32 sums of fp32 products, rounded once
    assert [t.dtype for t in gradients] == [torch.bfloat16] * 2


def test_under_transforms_and_compilation():
    x, weight, options = sample("groups")
    batched = torch.func.vmap(lambda x: ops.conv2d(x, weight, **options))(torch.stack([x, 2 * x]))
    torch.testing.assert_close(batched[1], 2 * ops.conv2d(x, weight, **options), **EXACT)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, w: ops.conv2d(x, w, **options), fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(x, weight).sum(), (x, weight))
    expected = torch.autograd.grad(F.conv2d(x, weight, **options).sum(), (x, weight))
    torch.testing.assert_close(found, expected, **EXACT)


def test_empty_batch():
    x, weight, options = sample("groups")
    y = ops.conv2d(x[:0], weight, **options)
    y.sum().backward()
    assert y.shape == (0, 8, 6, 5) and not weight.grad.any()


@pytest.mark.parametrize(
    ("x", "weight", "options", "message"),
    [
        ((2, 4, 6, 5), (8, 4, 3, 3), {"groups": 2}, r"got \[2, 4, 6, 5\] and \[8, 4, 3, 3\] with groups=2"),
        ((4, 6, 5), (8, 4, 3, 3), {}, "x must be"),
        ((2, 4, 6, 5), (7, 2, 3, 3), {"groups": 2}, "7 output channels, must be a multiple of groups=2"),
        ((2, 4, 6, 5), (8, 4, 3, 3), {"stride": 0}, "stride is 0, must be a number from 1"),
        ((2, 4, 6, 5), (8, 4, 3, 3), {"padding": (1, 2, 3)}, r"padding is \(1, 2, 3\)"),
    ],
)
def test_errors(x, weight, options, message):
    with pytest.raises(ValueError, match=f"^conv2d: .*{message}") as caught:
        ops.conv2d(torch.zeros(x), torch.zeros(weight), **options)
    assert "\n" not in str(caught.value)
