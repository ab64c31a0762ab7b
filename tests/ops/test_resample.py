"""upsample2x and downsample2x against torch, to the bit where arithmetic allows it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.samples import DTYPES, LAYOUTS, laid_out

SIZES = [(2, 3, 5, 7), (1, 16, 4, 4), (3, 33, 2, 9), (2, 1, 1, 3), (0, 4, 3, 3)]
SIZE = pytest.mark.parametrize("size", SIZES, ids=str)


def images(size: tuple, dtype=torch.float32) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64).to(dtype)


@SIZE
@pytest.mark.parametrize("dtype", DTYPES)
def test_upsample_is_interpolate(implementation, size, dtype):
    x = images(size, dtype)
    expected = F.interpolate(x, scale_factor=2.0, mode="nearest")
    for layout in LAYOUTS:
        assert torch.equal(implementation.function("upsample2x")(laid_out(x, layout)), expected), layout


# avg_pool2d refuses results without pixels.
@pytest.mark.parametrize("size", [s for s in SIZES if min(s[2:]) > 1], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_downsample_is_avg_pool(implementation, size, dtype):
    x = images(size, dtype)
    expected = F.avg_pool2d(x, 2)
    for layout in LAYOUTS:
        y = implementation.function("downsample2x")(laid_out(x, layout))
        # Sums of four, in whichever order.
        torch.testing.assert_close(y, expected, rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_a_row_has_no_2x2_blocks(implementation):
    y = implementation.function("downsample2x")(torch.ones(2, 3, 1, 8))
    assert y.shape == (2, 3, 0, 4)
