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
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exponentials_below_the_least_normal_number_vanish(act, dtype):
    least = torch.finfo(dtype).tiny
    lowest = 90 if dtype == torch.float32 else 710
    x = torch.linspace(-lowest - 20, -lowest + 10, 4001, dtype=dtype)[None, None]
    y = ops.bias_act(x, act=act, impl="native")
    expected = ops.bias_act(x.double(), act=act, impl="reference")
    # swish multiplies what vanishes by x; a few roundings of what does not.
    torch.testing.assert_close(y.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=1000 * least)
    for derivative in derivatives(x, act, "native"):
        assert derivative.isfinite().all()


@pytest.mark.parametrize(("gain", "clamp"), [(0.0, None), (1e-42, None), (1e-30, None), (3.0, 2.5), (1e30, None)])
def test_sigmoids_of_any_gain(gain, clamp):
    """Backward divides the output by the gain."""
    x = dense_samples().requires_grad_()
    y = ops.bias_act(x, act="sigmoid", gain=gain, clamp=clamp, impl="native")
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    u = x.detach().double()
    inside = torch.ones_like(u) if clamp is None else (gain * u.sigmoid() < clamp).double()
    for actual, factor in zip((first, second), derivatives_at(u, "sigmoid"), strict=True):
        # Roundings of values up to the gain; below normal numbers nothing has more digits than these.
        tolerance = gain * 4 * torch.finfo(torch.float32).eps + torch.finfo(torch.float32).tiny
        torch.testing.assert_close(actual.detach().double(), gain * factor * inside, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("act", "dtype", "keeps"),
    [
        ("sigmoid", torch.float32, "y"),
        ("sigmoid", torch.float64, "y"),
        ("sigmoid", torch.bfloat16, "x"),
        ("sigmoid", torch.float16, "x"),
        ("tanh", torch.float32, "x"),
    ],
    ids=str,
)
def test_one_of_input_and_output_is_kept(act, dtype, keeps):
    """The sigmoid's output, which the next layer keeps anyway, unless it has few digits."""
    x, bias = torch.randn(2, 3, 4, 4).to(dtype).requires_grad_(), torch.randn(3, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = ops.bias_act(x, bias, act=act, impl="native")
    kept = {"x": x, "y": y}[keeps]
    assert [t.data_ptr() for t in saved if t.ndim == 4] == [kept.data_ptr()]


@pytest.mark.parametrize("act", SMOOTH)
def test_infinities_and_nan(act):
    x = torch.tensor([[[float("inf"), -1e4, 1e4, float("nan"), 0.0, -0.0]]])
    y, expected = ops.bias_act(x, act=act, impl="native"), ops.bias_act(x, act=act, impl="reference")
    torch.testing.assert_close(y, expected, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 5, 4, 7), (2, 70, 3, 3), (3, 5), (2, 3, 40), (2, 2, 130, 140)], ids=str)
@pytest.mark.parametrize("act", ["lrelu", "sigmoid", "swish"])
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
