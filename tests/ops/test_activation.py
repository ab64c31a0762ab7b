"""The op behind bias_act's smooth activations and clamps: how exact its exponentials are, layouts, sums, zeros."""

import pytest
import torch

from pggan_fast import _native, ops
from pggan_fast.ops.activation_op import PIECEWISE, derivatives_at
from pggan_fast.ops.activations import ACTIVATIONS
from tests.ops.samples import LAYOUTS
from tests.tolerances import EXACT

pytestmark = pytest.mark.skipif(not _native.cpu_available, reason=_native.cpu_reason)

SMOOTH = [act for act in ACTIVATIONS if act not in PIECEWISE]


def dense_samples() -> torch.Tensor:
    """fp32 values on both sides of every change of formula, tiny ones, and tails."""
    random = torch.Generator().manual_seed(4)
    parts = [torch.linspace(-30, 30, 40001), torch.linspace(-80, 80, 4001), torch.randn(4000, generator=random) * 1e-3]
    return torch.cat(parts)[None, None]


def derivatives(x: torch.Tensor, act: str, impl: str) -> list[torch.Tensor]:
    """[value, first, second derivative] at x."""
    x = x.clone().requires_grad_()
    y = ops.bias_act(x, act=act, impl=impl)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return [y.detach(), first.detach(), second]


@pytest.mark.parametrize("act", SMOOTH)
def test_values_are_exact_to_few_units_in_the_last_place(act):
    x = dense_samples()
    y, expected = ops.bias_act(x, act=act, impl="native").double(), ops.bias_act(x.double(), act=act, impl="reference")
    unit = 2.0**-23 * torch.exp2(expected.abs().clamp_min(1e-30).log2().floor())
    # exp within 2, a sum, a quotient and a product of half a unit each.
    assert ((y - expected).abs() / unit).max() <= 4


@pytest.mark.parametrize("act", SMOOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_derivatives_are_as_exact_as_the_dtype(act, dtype):
    x = dense_samples()
    actual = derivatives(x.to(dtype), act, "native")
    for a, expected in zip(actual[1:], derivatives_at(x.double(), act), strict=True):
        # A few roundings of values up to 2; swish multiplies some of them by x before it subtracts.
        torch.testing.assert_close(a.double(), expected, rtol=0, atol=32 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("act", SMOOTH)
def test_infinities_and_nan(act):
    x = torch.tensor([[[float("inf"), -1e4, 1e4, float("nan"), 0.0, -0.0]]])
    y, expected = ops.bias_act(x, act=act, impl="native"), ops.bias_act(x, act=act, impl="reference")
    torch.testing.assert_close(y, expected, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 5, 4, 7), (2, 70, 3, 3), (3, 5), (2, 3, 40), (2, 2, 130, 140)], ids=str)
@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_layouts_and_sums(act, shape, layout):
    """Values and both orders of gradients, the bias's summed over blocks and partial vectors."""
    random = torch.Generator().manual_seed(4)
    x = torch.randn(shape, dtype=torch.float64, generator=random)
    bias, dy = torch.randn(shape[1], dtype=torch.float64, generator=random), torch.randn(shape, dtype=torch.float64)

    def results(impl):
        leaves = [LAYOUTS[layout](x).clone().requires_grad_(), bias.clone().requires_grad_()]
        y = ops.bias_act(*leaves, scale=0.7, act=act, gain=1.3, clamp=0.8, impl=impl)
        first = torch.autograd.grad(y, leaves, dy, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves, allow_unused=True)
        return [y, *first, *(torch.zeros_like(t) if g is None else g for t, g in zip(leaves, second, strict=True))]

    for actual, expected in zip(results("native"), results("reference"), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-10)  # sums of up to 36400 squares


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_limit_that_rounds_is_still_a_limit(dtype):
    x = torch.full((1, 1, 40), 2.0, dtype=dtype, requires_grad=True)
    for clamp in (0.3, 0.7, 1 / 3):
        y = ops.bias_act(x, act="lrelu", clamp=clamp, impl="native")
        assert not torch.autograd.grad(y.sum(), x)[0].any()


def test_a_value_that_rounds_to_zero_in_fp16_keeps_its_slope():
    x = torch.full((1, 1, 20), 2.0**-24, dtype=torch.float16, requires_grad=True)
    y = ops.bias_act(x, act="relu", gain=0.25, clamp=1.0, impl="native")
    assert (torch.autograd.grad(y.sum(), x)[0] == 0.25).all()


def test_adding_a_bias_alone_hands_its_gradient_on():
    x, bias = torch.randn(2, 3, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    y = ops.bias_act(x, bias, act="linear")
    torch.testing.assert_close(y, ops.bias_act(x, bias, act="linear", impl="reference"), **EXACT)
    dy = torch.randn(2, 3, 4)
    dx, db = torch.autograd.grad(y, [x, bias], dy)
    assert dx.data_ptr() == dy.data_ptr()
    torch.testing.assert_close(db, dy.sum((0, 2)))
