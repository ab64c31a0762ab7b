"""channels_last images of few channels, as flat rows: the bits of the same images laid out contiguously."""

import pytest
import torch

pytest.importorskip("triton")
from pggan_fast.kernels import fade, resample  # noqa: E402
from pggan_fast.kernels.flat_rows import takes_rows  # noqa: E402
from tests.kernels.guards import guarded_allocations  # noqa: E402

CALLS = {
    "upsample": lambda low, high: resample.upsample(low, 0.7, 1, 1),
    "downsample": lambda low, high: resample.downsample(high, 0.25),
    "downsample odd": lambda low, high: resample.downsample(high[..., 1:, 1:].clone(memory_format=KEPT), 0.25),
    "fade_in": lambda low, high: fade.fade_in(low, high, None, 0.3),
    "fade_in by a tensor": lambda low, high: fade.fade_in(low, high, torch.tensor(0.7), 0.0),
    "fade_in_backward": lambda low, high: fade.fade_in_backward(high, None, 0.3),
    "fade_reals": lambda low, high: fade.fade_reals(high, None, 0.3, high.dtype),
    "fade_reals of bytes": lambda low, high: fade.fade_reals((30 * high).abs().byte(), None, 0.3, torch.float32),
}
KEPT = torch.preserve_format


@pytest.mark.parametrize(
    ("channels", "dtype"),
    [(3, torch.float32), (3, torch.float16), (3, torch.float64), (2, torch.float32), (7, torch.float32)],
)
@pytest.mark.parametrize("call", CALLS)
def test_as_contiguous(call, channels, dtype):
    torch.manual_seed(0)
    low, high = torch.randn(2, channels, 3, 75, dtype=dtype), torch.randn(2, channels, 6, 150, dtype=dtype)
    flat = tuple(t.to(memory_format=torch.channels_last) for t in (low, high))
    assert takes_rows(flat[1]) and not takes_rows(high)
    expected = CALLS[call](low, high)
    with guarded_allocations():
        found = CALLS[call](*flat)
    for a, b in zip(*(t if isinstance(t, tuple) else (t,) for t in (found, expected)), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_a_row_of_many_tiles_and_an_image_of_one_pixel():
    for shape in ((1, 3, 2, 700), (5, 3, 1, 1)):
        low = torch.randn(shape).to(memory_format=torch.channels_last)
        high = resample.upsample(low, 1.0, 0, 0)
        assert torch.equal(high, low.repeat_interleave(2, 2).repeat_interleave(2, 3))
        assert torch.equal(resample.downsample(high, 0.25), low)
