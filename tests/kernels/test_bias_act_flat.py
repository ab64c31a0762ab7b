"""bias_act on channels_last images of few channels, as flat rows: what the tiles of the same images give."""

from unittest import mock

import pytest
import torch

pytest.importorskip("triton")
from pggan_fast.kernels import bias_act, bias_act_flat  # noqa: E402
from tests.kernels.guards import guarded_allocations  # noqa: E402

# An epilogue's sums and products in another order, in fp32; of fp16 one rounding more.
ALLOWED = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3}
# 1 multiprocessor takes several tiles one after the other, the last of which is not full.
CASES = [
    ((2, 3, 37, 41), torch.float32, "lrelu"),
    ((2, 3, 37, 41), torch.float16, "lrelu"),
    ((1, 2, 40, 64), torch.float32, "relu"),
    ((1, 7, 5, 3), torch.float64, "lrelu"),
    ((3, 3, 1, 2), torch.float32, "linear"),
]


@pytest.fixture(params=[1, 132])
def multiprocessors(request):
    gpu = bias_act_flat.limits()._replace(multiprocessors=request.param)
    with (
        mock.patch.object(bias_act_flat, "limits", lambda: gpu),
        mock.patch.object(bias_act_flat, "PROGRAMS_PER_MULTIPROCESSOR", 4),
    ):
        yield request.param


def everything(x, dy, bias, act, needs_bias_grad=True):
    """Forward and both gradients, in x's layout."""
    options = (0.7, act, 0.2, 1.3, False)
    y, _ = bias_act.forward(x, bias, *options, 1e-8)
    in_place = x.clone(memory_format=torch.preserve_format)
    bias_act.forward_in_place(in_place, bias, *options, 1e-8)
    assert torch.equal(in_place, y)
    dx, db = bias_act.backward(dy, None, y, None, *options, needs_bias_grad)
    second, *_ = bias_act.double_backward(dy, bias, dy, None, y, None, *options)
    of_bias, *_ = bias_act.double_backward(None, bias, dy, None, y, None, *options) if bias is not None else (dx,)
    return y, dx, db, second, of_bias


@pytest.mark.parametrize(("shape", "dtype", "act"), CASES, ids=str)
def test_as_tiles(shape, dtype, act, multiprocessors):
    torch.manual_seed(0)
    x, dy = torch.randn(2, *shape, dtype=dtype)
    x[0, 0, 0, 0] = -torch.inf
    flat = [t.to(memory_format=torch.channels_last) for t in (x, dy)]
    assert bias_act_flat.takes_flat(flat[0], True, False) and not bias_act_flat.takes_flat(x, False, False)
    for bias in (torch.randn(shape[1]), None):
        expected = everything(x, dy, bias, act)
        with guarded_allocations():
            found = everything(*flat, bias, act)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=ALLOWED[dtype], atol=ALLOWED[dtype] * (30 if a.ndim == 1 else 1))


def test_programs_take_places_of_one_channel(multiprocessors):
    x = torch.empty(4, 3, 128, 128)
    grid = bias_act_flat.flat_grid(x)
    assert grid.programs == (3 if multiprocessors == 1 else 384) and grid.sizes == (x.numel(), 384)


def test_pixel_norm_and_many_channels_keep_tiles():
    for c, norm in ((3, True), (8, False)):
        x = torch.empty(1, c, 4, 4).to(memory_format=torch.channels_last)
        assert not bias_act_flat.takes_flat(x, True, norm)
