"""MS-SSIM against the official values."""

import numpy as np
import pytest
import torch

from pggan_fast.metrics import ms_ssim, msssim
from pggan_fast.metrics.pyramid import pyr_down, pyr_up
from tests.metrics.golden import check, golden, images

SETS = {32: "A", 64: "A", 128: "M"}
NEARNESS = {"raw": 0, "half": 4, "near": 7}
TOLERANCE = 1e-5  # the official maps are float32 from the second scale on; what other definitions change is 1e-3 and up


def pairs(resolution: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    batch = images(resolution, SETS[resolution])[:32].astype(np.int64)
    even, k = batch[0::2], NEARNESS[name]
    batch[1::2] = (k * even + (8 - k) * batch[1::2]) // 8
    batch = batch.astype(np.uint8)
    check(batch, f"msssim/res{resolution}/{name}")
    return torch.tensor(batch[0::2]), torch.tensor(batch[1::2])


@pytest.mark.parametrize("name", NEARNESS)
@pytest.mark.parametrize("resolution", SETS)
def test_values_are_the_official_ones(resolution, name, monkeypatch):
    monkeypatch.setattr(msssim, "_PIECE", 5 * 3 * resolution**2)  # pieces of 5, 5, 5 and 1
    values = ms_ssim(*pairs(resolution, name)).numpy()
    expected = golden()[f"msssim/res{resolution}/{name}/per_pair"]
    np.testing.assert_allclose(values, expected, rtol=0, atol=TOLERANCE)
    assert ((values == 0) == (expected == 0)).all()
    assert values.mean() == pytest.approx(golden()[f"msssim/res{resolution}/{name}/api"], abs=TOLERANCE)


def test_equal_images_give_one():
    batch = torch.tensor(images(32, "A")[:4])
    torch.testing.assert_close(ms_ssim(batch, batch), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-9)


def test_noise_and_blur_lower_it():
    batch = torch.tensor(images(64, "B")[:8])
    noise = torch.randn(batch.shape, generator=torch.Generator().manual_seed(0))
    blurred, values = batch.float(), []
    for sigma in (0, 4, 8, 16, 32, 64):
        values.append(ms_ssim(batch, (batch + sigma * noise).round().clamp(0, 255)))
    assert (torch.stack(values).diff(dim=0) < 0).all()
    values = [ms_ssim(batch, blurred)]
    for _ in range(3):
        blurred = pyr_up(pyr_down(blurred))
        values.append(ms_ssim(batch, blurred))
    assert (torch.stack(values).diff(dim=0) < 0).all()


def test_the_order_of_a_pair_does_not_matter_and_dtypes_neither():
    a, b = pairs(32, "half")
    torch.testing.assert_close(ms_ssim(b.float(), a.float()), ms_ssim(a, b), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 1, 16, 16), (2, 4, 32, 48), (0, 3, 32, 32)])
def test_small_gray_oblong_and_empty_batches(shape):
    random = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
    b = a // 2 + torch.randint(0, 128, shape, generator=random, dtype=torch.uint8)
    values = ms_ssim(a, b)
    assert values.shape == (shape[0],) and values.dtype == torch.float64
    assert ((values >= 0) & (values < 1)).all()


@pytest.mark.parametrize(
    ("a", "b", "complaint"),
    [
        ((2, 3, 32, 32), (1, 3, 32, 32), "must be"),
        ((3, 32, 32), (3, 32, 32), r"must be \[N, C, H, W\]"),
        ((2, 3, 8, 8), (2, 3, 8, 8), "images 8x8: sides must be multiples of 16 px"),
        ((2, 3, 32, 40), (2, 3, 32, 40), "images 32x40"),
    ],
)
def test_wrong_shapes_are_refused_in_a_line(a, b, complaint):
    with pytest.raises(ValueError, match=complaint) as error:
        ms_ssim(torch.zeros(a), torch.zeros(b))
    assert "\n" not in str(error.value)
