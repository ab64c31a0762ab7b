"""fade_in and fade_reals against torch, to the bit where arithmetic allows it."""

import pytest
import torch
import torch.nn.functional as F

from tests.ops.samples import DTYPES, LAYOUTS, laid_out
from tests.ops.test_resample import images


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_fade_in_are_its_inputs(implementation, dtype, alpha, as_tensor):
    """At 0 the old image and at 1 the new one, to the bit where the difference of the two is exact."""
    low, high = (torch.randint(-8, 8, s).to(dtype) for s in ((2, 3, 3, 5), (2, 3, 6, 10)))
    expected = high if alpha else F.interpolate(low, scale_factor=2.0, mode="nearest")
    weight = torch.tensor(alpha) if as_tensor else alpha
    for layout in LAYOUTS:
        y = implementation.function("fade_in")(laid_out(low, layout), laid_out(high, layout), weight)
        assert torch.equal(y, expected), layout


@pytest.mark.parametrize("as_tensor", [False, True])
def test_fade_in_is_lerp(implementation, as_tensor):
    low, high = images((2, 5, 3, 9)), images((2, 5, 6, 18))
    alpha = torch.tensor(0.3) if as_tensor else 0.3
    expected = torch.lerp(F.interpolate(low, scale_factor=2.0, mode="nearest"), high, 0.3)
    for layout in LAYOUTS:
        y = implementation.function("fade_in")(laid_out(low, layout), laid_out(high, layout), alpha)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)  # three roundings of values below 4


def test_mixed_layouts(fused):
    """The result follows high."""
    low, high = images((2, 5, 3, 4)), images((2, 5, 6, 8))
    expected = fused.function("fade_in")(low, high, 0.3)
    channels_last = high.contiguous(memory_format=torch.channels_last)
    y = fused.function("fade_in")(low, channels_last, 0.3)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_byte_becomes_its_number(implementation, dtype):
    """x / 127.5 - 1: 0 is -1 exactly, and 255 is 1."""
    x = torch.arange(256, dtype=torch.uint8).repeat_interleave(4).view(1, 4, 16, 16)
    exact = x.double() / 127.5 - 1
    for layout in LAYOUTS:
        y = implementation.function("fade_reals")(laid_out(x, layout), 1.0, dtype=dtype)
        assert y.dtype == dtype
        assert y[x == 0].eq(-1).all()
        # Half an eps for rounding to the dtype, and before it that of 2 / 255 in fp32, times 255.
        atol = 1e-15 if dtype == torch.float64 else 1.2e-7
        torch.testing.assert_close(y.double(), exact, rtol=torch.finfo(dtype).eps / 2, atol=atol)


def test_faded_out_reals_have_half_the_resolution(implementation):
    x = torch.randint(256, (2, 3, 6, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    means = F.avg_pool2d(x.float(), 2) / 127.5 - 1
    for layout in LAYOUTS:
        y = implementation.function("fade_reals")(laid_out(x, layout), 0.0)
        torch.testing.assert_close(y, F.interpolate(means, scale_factor=2.0, mode="nearest"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("op", ["fade_in", "fade_reals"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradient_of_alpha_is_a_difference(implementation, op, layout):
    """The blend is linear in alpha, so a difference of any step is its derivative."""
    if op == "fade_in":
        inputs = [laid_out(images(s, torch.float64), layout) for s in ((2, 3, 3, 5), (2, 3, 6, 10))]
    else:
        inputs = [laid_out(images((2, 3, 6, 10), torch.float64), layout)]
    function = implementation.function(op)
    dy = images((2, 3, 6, 10), torch.float64)
    alpha = torch.tensor(0.3, requires_grad=True)
    (gradient,) = torch.autograd.grad(function(*inputs, alpha), alpha, dy)
    difference = ((function(*inputs, 1.0) - function(*inputs, 0.0)) * dy).sum()
    assert gradient.dtype == torch.float32 and gradient.shape == ()
    torch.testing.assert_close(gradient, difference.float())


def test_alpha_changes_in_place_between_calls(implementation):
    """A compiled step or a captured graph is given one tensor and new values."""
    low, high, alpha = images((1, 2, 2, 2)), images((1, 2, 4, 4)), torch.tensor(0.25)
    function = implementation.function("fade_in")
    before = function(low, high, alpha)
    alpha.fill_(0.75)
    assert not torch.equal(function(low, high, alpha), before)
    torch.testing.assert_close(function(low, high, alpha), function(low, high, 0.75))
