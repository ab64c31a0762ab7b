"""equalized_conv2d with nothing but a bias after it, whose convolution adds that itself on a CPU."""

import pytest
import torch
from torch import Tensor

from pggan_fast import _native, ops
from pggan_fast.ops.conv_gradients import BiasedConvolution
from tests.tolerances import assert_accurate

pytestmark = pytest.mark.skipif(not _native.cpu_available, reason=_native.cpu_reason)

CHANGES = {"none": {}, "up": {"up": 2}, "down": {"down": 2}}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
GAIN = 1.5


def inputs(dtype: torch.dtype, layout: str, biased: bool) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = [(2, 16, 12, 14), (24, 16, 3, 3), (24,)][: 3 if biased else 2]
    values = [torch.randn(shape, generator=random).to(dtype) for shape in shapes]
    values[0] = values[0].contiguous(memory_format=FORMATS[layout])
    return values


def results(impl: str, dtype: torch.dtype, values: list[Tensor], options: dict) -> dict[str, list[Tensor]]:
    """Output, gradients, and the gradients of a gradient penalty."""
    given = [value.to(dtype).requires_grad_() for value in values]
    y = ops.equalized_conv2d(*given, impl=impl, gain=GAIN, **options)
    first = torch.autograd.grad(y.square().mean(), given, create_graph=True)
    return {
        "output": [y.detach()],
        "first": [g.detach() for g in first],
        "second": list(torch.autograd.grad(sum(g.square().sum() for g in first), given)),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_it_is_the_reference(change, biased, layout, dtype):
    values, options = inputs(dtype, layout, biased), CHANGES[change]
    exact, plain = (results("reference", d, values, options) for d in (torch.float64, dtype))
    actual = results("auto", dtype, values, options)
    assert actual["output"][0].is_contiguous(memory_format=FORMATS[layout])
    for order, given in actual.items():
        for i, value in enumerate(given):
            assert_accurate(f"{order} {i}", value, plain[order][i], exact[order][i], order=order, dtype=dtype)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("requested", [(0,), (1,), (2,), (0, 2)], ids=str)
def test_gradients_of_some_inputs_alone(requested, change):
    values = inputs(torch.float32, "channels_last", True)
    gradients = {}
    for impl in ("auto", "reference"):
        given = [value.clone().requires_grad_(i in requested) for i, value in enumerate(values)]
        y = ops.equalized_conv2d(*given, impl=impl, **CHANGES[change])
        gradients[impl] = torch.autograd.grad(y.square().mean(), [given[i] for i in requested])
    for actual, expected in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)  # sums of some hundred products in fp32


def name(y: Tensor) -> str:
    return y.grad_fn.name()


def test_where_it_is_taken():
    """Not where there is more to do, the sum in fp32 matters, or the output is smaller than the weight."""
    x, weight, bias = (value.requires_grad_() for value in inputs(torch.float32, "contiguous", True))
    own = f"{BiasedConvolution.__name__}Backward"
    assert name(ops.equalized_conv2d(x, weight, bias)) == own
    assert name(ops.equalized_conv2d(x, weight, bias, impl="native")) != own
    assert name(ops.equalized_conv2d(x, weight, bias, act="lrelu")) != own
    assert name(ops.equalized_conv2d(x, weight, bias, pixel_norm=True)) != own
    assert name(ops.equalized_conv2d(x, weight[:3], bias[:3])) != own
    assert name(ops.equalized_conv2d(x.bfloat16(), weight, bias)) != own
    assert name(ops.equalized_conv2d(x[:1, :, :8, :8], weight, bias)) != own
