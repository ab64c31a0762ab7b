"""The Laplacian pyramid against the official one."""

import numpy as np
import pytest
import torch

from pggan_fast.metrics.pyramid import laplacian_pyramid, level_sizes, pyr_down, pyr_up
from tests.metrics.golden import golden, images

# The sums are the same numbers in another order; they are exact except from the second level on, where they need
# more than 24 bits: two roundings of values up to 255.
ROUNDINGS = 2 * 255 * 2**-23


def test_levels_are_the_official_ones():
    levels = laplacian_pyramid(torch.tensor(images(64, "A")[:2]))
    assert [level.shape[-1] for level in levels] == [64, 32, 16]
    for number, level in enumerate(levels):
        assert level.dtype == torch.float32
        np.testing.assert_allclose(level.numpy(), golden()[f"pyramid/level{number}"], rtol=0, atol=ROUNDINGS)


def test_down_and_up_are_the_official_ones():
    batch = torch.tensor(images(32, "B")[:2]).float()
    np.testing.assert_array_equal(pyr_down(batch).numpy(), golden()["pyr_down/out"])
    np.testing.assert_array_equal(pyr_up(batch[:, :, :8, :8]).numpy(), golden()["pyr_up/out"])


def test_levels_add_up_to_the_image():
    batch = torch.tensor(images(64, "B")[:2, :, :32])  # not square
    image = None
    for level in reversed(laplacian_pyramid(batch)):
        image = level if image is None else level + pyr_up(image)
    torch.testing.assert_close(image, batch.float(), rtol=0, atol=ROUNDINGS)


@pytest.mark.parametrize("value", [0, 37, 255])
def test_an_even_image_has_no_details(value):
    *details, rest = laplacian_pyramid(torch.full((1, 1, 64, 64), value, dtype=torch.uint8))
    assert all((level == 0).all() for level in details)
    assert (rest == value).all()


def test_sizes_end_at_16_pixels():
    assert level_sizes(128, 128) == [(128, 128), (64, 64), (32, 32), (16, 16)]
    assert level_sizes(16, 16) == [(16, 16)]
    assert level_sizes(48, 96) == [(48, 96), (24, 48)]
    assert level_sizes(17, 31) == [(17, 31)]


@pytest.mark.parametrize(("size", "complaint"), [((8, 8), "16 px or more"), ((64, 15), "16 px"), ((66, 66), "even")])
def test_sizes_without_a_pyramid_are_refused(size, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        level_sizes(*size)
    assert f"{size[0]}x{size[1]}" in str(error.value) and "\n" not in str(error.value)
