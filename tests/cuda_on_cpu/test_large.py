"""Tensors of more than 2**31 elements: that offsets are 64-bit numbers all the way.

The harness runs the first and the last two blocks of each grid, and holds so many at once that each has one tile: of
gigabytes only what those touch is ever there.
"""

import pytest
import torch
from torch import Tensor

from pggan_fast import reference
from tests.cuda_on_cpu import build

OPTIONS = (0.7, "lrelu", 0.2, 1.3)
# Their last block computes their last elements: what a block takes at a time goes into them a multiple of 1024 times.
IMAGE = (1, 8, 130, 2**21)
SAMPLES = (4, 1024, 1040, 512)
END = 16  # columns at the end of the last row
CLOSE = {"rtol": 0.03, "atol": 0.03}  # a few eps of bf16, in which y is kept: a wrong place would be far off


@pytest.fixture(autouse=True)
def ends():
    controls = build.load()
    controls.set_ends(2)
    before = controls.set_resident_blocks(2**30)
    yield
    controls.set_resident_blocks(before)
    controls.set_ends(0)


@pytest.fixture(params=["contiguous", "channels_last"])
def memory_format(request) -> torch.memory_format:
    return {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[request.param]


def end(x: Tensor, columns: int = END) -> Tensor:
    """The end of the last row of the last sample."""
    return x[-1:, :, -1:, -columns:]


def large(shape: tuple[int, ...], memory_format: torch.memory_format) -> Tensor:
    """Memory that nobody has touched, but for random values at the end."""
    x = torch.empty(shape, dtype=torch.bfloat16, memory_format=memory_format)
    end(x).copy_(torch.randn(end(x).shape))
    return x


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), **CLOSE)


@pytest.mark.parametrize("pixel_norm", [False, True])
def test_bias_act(memory_format, pixel_norm):
    ops = torch.ops.pggan_fast_cuda_on_cpu
    x, dy = large(IMAGE, memory_format), large(IMAGE, memory_format)
    assert x.numel() > 2**31
    bias = torch.randn(IMAGE[1])
    y, r = ops.bias_act(x, bias, *OPTIONS, pixel_norm)
    few = end(x).double().requires_grad_()
    expected = reference.bias_act(few, bias.double(), **named(), pixel_norm=pixel_norm)
    assert_close(end(y), expected)
    r = r if pixel_norm else None
    dx, _ = ops.bias_act_backward(dy, None, y, r, *OPTIONS, pixel_norm, False)
    direction = end(dy).double().requires_grad_()
    (first,) = torch.autograd.grad(expected, few, direction, create_graph=True)
    assert_close(end(dx), first)
    d_dy, *_ = ops.bias_act_double_backward(x, None, dy, None, y, r, *OPTIONS, pixel_norm)
    (second,) = torch.autograd.grad(first, direction, few.detach())
    assert_close(end(d_dy), second)


def named() -> dict:
    return dict(zip(("scale", "act", "slope", "gain"), OPTIONS, strict=True))


def test_resampling(memory_format):
    """Check the last channel: where it is a plane of its own, no other is in the last block."""
    ops = torch.ops.pggan_fast_cuda_on_cpu
    high = large(IMAGE, memory_format)
    rows = high[-1:, -1:, -2:, -END:]
    rows.copy_(torch.randn(rows.shape))
    low = ops.downsample2x(high)
    few = end(low, END // 2)[:, -1:]
    assert_close(few, reference.downsample2x(rows))

    def last(y: Tensor) -> Tensor:
        return y[-1:, -1:, -2:, -END:]

    assert_close(last(ops.upsample2x(low)), reference.upsample2x(few))
    assert_close(last(ops.fade_in(low, high, None, 0.3)), reference.fade_in(few, rows, 0.3))
    assert_close(last(ops.fade_reals(high, None, 0.3, torch.bfloat16)), reference.fade_reals(rows, 0.3))
    d_low, d_high = ops.fade_in_backward(high, None, 0.25)
    assert_close(end(d_low, END // 2)[:, -1:], 0.75 * 4 * few.float())
    assert_close(last(d_high), 0.25 * rows.float())


def test_minibatch_stddev(memory_format):
    """Its maps are means over everything: what is copied, the copy's gradient and the last map are in their places."""
    ops = torch.ops.pggan_fast_cuda_on_cpu
    x, options = large(SAMPLES, memory_format), (4, 8, 1e-8, True, 0)
    channels = SAMPLES[1]
    y = ops.minibatch_stddev(x, *options)
    assert y.numel() > x.numel() > 2**31
    assert torch.equal(end(y)[:, channels - 1], end(x)[:, -1])
    last_map = y[-1, -1].view(torch.int16)
    assert (last_map == last_map[0, 0]).all()
    dy = large(tuple(y.shape), memory_format)
    # The gradient of the maps is of the order of 1e-8 here.
    dx = ops.minibatch_stddev_backward(dy, x, *options)
    assert_close(end(dx)[:, -1], end(dy)[:, channels - 1])
    d_dy, _ = ops.minibatch_stddev_double_backward(x, dy, x, *options)
    assert torch.equal(end(d_dy)[:, channels - 1], end(x)[:, -1])


def test_weights_far_apart():
    ops = torch.ops.pggan_fast_cuda_on_cpu
    weight = torch.empty(2**32 + 64, dtype=torch.bfloat16).as_strided((3, 2, 3, 3), (2**31, 9, 3, 1))
    weight.copy_(torch.randn(weight.shape))
    few = weight.contiguous()
    for transposed in (False, True):
        options = (1.0, transposed, torch.float32, False)
        assert torch.equal(ops.fold_weight(weight, *options), ops.fold_weight(few, *options))
