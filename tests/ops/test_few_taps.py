"""upfirdn2d's kernel for filters of three and of four taps, at the edges of its strips, blocks and padding."""

import itertools

import pytest
import torch

from pggan_fast import _native, ops
from tests.tolerances import EXACT

pytestmark = pytest.mark.skipif(not _native.cpu_available, reason=_native.cpu_reason)

FOUR = torch.outer(
    torch.tensor([1.0, 3.0, 3.5, 1.5]), torch.tensor([0.5, -2.0, 1.0, 4.0])
)  # no symmetry hides an order
FILTERS = {"three": FOUR[1:, :3], "four": FOUR, "zeros": FOUR * torch.tensor([1.0, 0.0, 1.0, 0.0])}
CHANGES = {"none": dict(), "up": dict(up=2), "down": dict(down=2)}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SHAPES = [
    (1, 1, 1, 1),  # all padding but one pixel
    (2, 3, 5, 7),
    (1, 1, 17, 33),  # just beyond whole vectors of any width
    (1, 70, 9, 6),  # channels beyond whole vectors
    (1, 1, 3, 5000),  # rows of several strips
    (1, 600, 4, 19),  # the same, of pixels
]
PADDINGS = [(2, 1, 2, 1), (1, 1, 2, 2), (3, 3, 3, 3), (4, 5, 6, 7), (-1, 4, 5, -2), (40, 0, 0, 60), (0, 40, 60, 0)]


def is_possible(shape, change, padding) -> bool:
    """Whether an output is left, and an image to crop: torch's padding, in the reference, refuses to leave nothing."""
    up, (x0, x1, y0, y1) = CHANGES[change].get("up", 1), padding
    if min(shape[2] * up + min(y0, y1), shape[3] * up + min(x0, x1)) < 1:
        return False
    return shape[2] * up + y0 + y1 >= 4 and shape[3] * up + x0 + x1 >= 4


CASES = [c for c in itertools.product(SHAPES, CHANGES, PADDINGS) if is_possible(*c)]


@pytest.mark.parametrize("taps", FILTERS)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(("shape", "change", "padding"), CASES, ids=str)
def test_it_is_the_reference(shape, change, padding, layout, taps):
    random = torch.Generator().manual_seed(3)
    x = torch.randn(shape, dtype=torch.float64, generator=random).contiguous(memory_format=FORMATS[layout])
    options, f = dict(**CHANGES[change], padding=padding, gain=1.5), FILTERS[taps]
    for flip_filter in (False, True):
        expected = ops.upfirdn2d(x, f, **options, flip_filter=flip_filter, impl="reference")
        actual = ops.upfirdn2d(x, f, **options, flip_filter=flip_filter, impl="native")
        torch.testing.assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize("f", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_rounds_once(dtype, change, layout, f):
    random = torch.Generator().manual_seed(3)
    x = torch.randn(2, 19, 11, 21, generator=random).to(dtype).contiguous(memory_format=FORMATS[layout])
    options = dict(**CHANGES[change], padding=(2, 1, 2, 1))
    expected = ops.upfirdn2d(x.double(), f, **options, impl="reference")
    actual = ops.upfirdn2d(x, f, **options, impl="native").double()
    # Sums of 16 products in fp32 before it: a few of its eps of the largest, which cancellation makes larger than y's.
    largest = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=torch.finfo(dtype).eps / 2, atol=8 * 2**-23 * largest)


@pytest.mark.parametrize("padding", [(2, 1, 2, 1), (1, 2, 1, 2)], ids=str)  # which output has one tap of three, up 2
@pytest.mark.parametrize("f", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("change", CHANGES)
def test_nothing_reaches_pixels_beyond_the_filter(change, f, padding):
    """A NaN, as what padding or another image's memory holds might be, stays under its own taps."""
    x = torch.randn(1, 1, 12, 40)
    x[0, 0, 5, 17] = float("nan")
    for layout in FORMATS.values():
        images = x.expand(2, 3, -1, -1).contiguous(memory_format=layout)
        images[1] = 1.0
        options = dict(**CHANGES[change], padding=padding)
        actual = ops.upfirdn2d(images, f, **options, impl="native")
        expected = ops.upfirdn2d(images, f, **options, impl="reference")
        # The reference multiplies the zeros between pixels too.
        spread = expected.isnan()
        assert not (actual.isnan() & ~spread).any() and actual.isnan().any()
        torch.testing.assert_close(actual[~spread], expected[~spread], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("f", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("change", CHANGES)
def test_large_images_are_written_past_the_caches(change, layout, f):
    """Large enough for reading ahead and, but for down 2, for other stores: 9 MiB."""
    random = torch.Generator().manual_seed(3)
    size = 96 if change == "up" else 192
    x = torch.randn(1, 64, size, size, generator=random).contiguous(memory_format=FORMATS[layout])
    options = dict(**CHANGES[change], padding=(2, 1, 2, 1))
    expected = ops.upfirdn2d(x, f, **options, impl="reference")
    actual = ops.upfirdn2d(x, f, **options, impl="native")
    # Sums of 16 products in fp32 on both sides.
    torch.testing.assert_close(actual, expected, rtol=0, atol=16 * 2**-23 * expected.abs().max().item())
