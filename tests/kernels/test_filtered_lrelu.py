"""filtered_lrelu's kernel against the composite in fp64: any factors and taps, several tiles, the mask byte by byte."""

import pytest
import torch

pytest.importorskip("triton")
from pggan_fast.kernels import filtered_lrelu
from pggan_fast.kernels.filtered_lrelu import choose_tile
from pggan_fast.ops.filtered_lrelu import _adjoint, _forward_composite, _grid, _masked_composite
from tests.kernels.guards import guarded_allocations


def random(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


# (up, down, taps, h, w, paddings). In fp64 a tile has 26 x 26 outputs with factors of 2 and 12 taps.
SHAPES = {
    "several_tiles": (2, 2, (12, 12), 30, 31, (11, 10, 9, 11)),
    "up_4": (4, 2, (24, 12), 9, 10, (17, 18, 16, 17)),
    "down_4": (1, 4, (5, 23), 30, 24, (14, 13, -1, 17)),
    "coprime": (3, 2, (18, 11), 8, 9, (7, 9, 12, 2)),
    "coprime_down": (2, 3, (7, 11), 9, 8, (7, 9, -2, 11)),
    "most_taps": (4, 4, (23, 24), 12, 9, (13, 12, 11, 17)),
    "no_taps": (1, 1, (1, 1), 5, 7, (0, 0, 0, 0)),
    "all_padding": (2, 1, (4, 3), 2, 2, (-4, 8, 9, -4)),
}


CASES = [*((s, torch.float64) for s in SHAPES), ("up_4", torch.float16), ("several_tiles", torch.float16)]


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_forward_and_both_linear_maps(shape, dtype):
    up, down, taps, h, w, (x0, x1, y0, y1) = SHAPES[shape]
    x, bias = random(1, 2, h, w, dtype=dtype), random(2)
    fu, fd = (random(n, dtype=torch.float32) / n**0.5 for n in taps)
    flip, slope = shape == "down_4", 0.0 if shape == "coprime" else 0.2
    args = (bias, fu, fd, up, down, x0, x1, y0, y1, flip, 1.3, slope, 0.9, True)
    with guarded_allocations():
        y, mask = filtered_lrelu.forward(x, *args)
        bare, nothing = filtered_lrelu.forward(x, *args[:-1], False)
    expected, expected_mask = _forward_composite(x.double(), *args)
    assert torch.equal(bare, y) and nothing.numel() == 0
    # fp16 is rounded once, where a value of 2 ** -11 is small beside the sum's terms; fp64 twice a tap.
    error = 1e-12 if dtype == torch.float64 else 2**-10
    torch.testing.assert_close(y.double(), expected, rtol=error, atol=error)
    if dtype == torch.float64:  # in fp32 a value at a kink may fall to either side of it
        assert torch.equal(mask, expected_mask)

    linear = (fu, fd, up, down, x0, y0, 0, 0, *_grid(expected, fd, down), *expected.shape[2:], flip, 1.3, slope)
    for t, options in ((x, linear), (expected.to(dtype), _adjoint(h, w, *linear))):
        with guarded_allocations():
            actual = filtered_lrelu.masked(t, expected_mask, *options)
        exact = _masked_composite(t.double(), expected_mask, *options)
        torch.testing.assert_close(actual.double(), exact, rtol=error, atol=error * (1 + exact.abs().max().item()))


def test_infinities_and_nan_reach_what_their_taps_reach():
    """No tile's neighbours: every value that no tap multiplies is left alone, in the last chunk of taps too."""
    x = random(1, 1, 9, 9)
    x[0, 0, 1, 1], x[0, 0, 7, 2], x[0, 0, 4, 8] = float("inf"), float("-inf"), float("nan")
    for slope, clamp in ((0.0, None), (0.2, 2.0)):
        args = (None, random(5).abs(), random(5).abs(), 2, 1, 3, 3, 3, 3, False, 1.0, slope, clamp, False)
        actual, expected = filtered_lrelu.forward(x, *args)[0], _forward_composite(x, *args)[0]
        assert not expected.isfinite().all() and expected.isfinite().any()
        torch.testing.assert_close(actual, expected, equal_nan=True)


def test_a_mask_of_another_size_and_what_no_tile_fits_are_refused():
    x, one = random(1, 1, 4, 4), torch.ones(1)
    with pytest.raises(ValueError, match="the mask is not one of this size"):
        mask = torch.zeros(1, 1, 1, 1, 3, dtype=torch.uint8)
        filtered_lrelu.masked(x, mask, one, one, 1, 1, 0, 0, 0, 0, 4, 4, 4, 4, False, 1.0, 0.2)
    with pytest.raises(ValueError, match="at most 24 taps and factors up to 4"):
        filtered_lrelu.forward(x, None, torch.ones(25), one, 1, 1, 12, 12, 12, 12, False, 1.0, 0.2, None, True)


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_every_factor_and_filter_has_a_tile(itemsize):
    """And of StyleGAN3's, in what people train in, no more than 1.5 times the products of one without a border."""
    for up in (1, 2, 3, 4):
        for down in (1, 2, 3, 4):
            for taps in (1, 11, 24):
                tile = choose_tile(up, down, taps, taps, 500, 500, 3, itemsize)
                assert tile.h > 0 and tile.w > 0 and tile.h * down % 4 == 0
    if itemsize < 8:
        for up, down, up_taps, down_taps in ((2, 2, 12, 12), (4, 2, 24, 12)):
            tile = choose_tile(up, down, up_taps, down_taps, 500, 500, 0, itemsize)
            rows, columns = down * down * up_taps / up / up, down * down * up_taps / up
            least = tile.h * tile.w * (rows + columns + down * down_taps + down_taps)
            assert tile.operations(up, up_taps, down_taps) <= 1.5 * least
