"""MMD and Parzen windows against formulas that others wrote down or implemented."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from pggan_fast.metrics import mmd2, parzen_log_likelihood, pixels
from pggan_fast.metrics.pixels import PixelMetrics, median_distance, pixel_rows
from tests.metrics.golden import images


def points(count, dimensions=3, seed=0, shift=0.0):
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_mmd_of_gaussians_has_its_closed_form(shift):
    """E k(x, y) for x ~ N(0, 1), y ~ N(d, 1) in one dimension is b / sqrt(b^2 + 2) exp(-d^2 / (2 b^2 + 4))."""
    bandwidth = 0.8
    near = bandwidth / math.sqrt(bandwidth**2 + 2)
    far = near * math.exp(-(shift**2) / (2 * bandwidth**2 + 4))
    estimates = [mmd2(points(500, 1, s), points(500, 1, 100 + s, shift), bandwidth) for s in range(20)]
    allowed = 4 * np.std(estimates, ddof=1) / math.sqrt(20)  # four standard errors; unbiased, so nothing else
    assert np.mean(estimates) == pytest.approx(2 * near - 2 * far, abs=allowed)
    if shift == 0:
        assert min(estimates) < 0 < max(estimates)


def test_mmd_is_its_definition_for_any_blocks(monkeypatch):
    a, b = points(7), points(5, seed=1)

    def kernel(x, y):
        return math.exp(-sum((p - q) ** 2 for p, q in zip(x.tolist(), y.tolist(), strict=True)) / (2 * 1.3**2))

    expected = sum(kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j) / (7 * 6)
    expected += sum(kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j) / (5 * 4)
    expected -= 2 * sum(kernel(x, y) for x in a for y in b) / (7 * 5)
    for block in (512, 3):
        monkeypatch.setattr(pixels, "_BLOCK", block)
        assert mmd2(a, b, 1.3) == pytest.approx(expected, abs=1e-12)


def test_parzen_windows_are_a_mixture_of_gaussians(monkeypatch):
    samples, found_at = points(40).double(), points(9, seed=1, shift=0.3).double()
    monkeypatch.setattr(pixels, "_BLOCK", 4)
    sigmas = (0.1, 0.7)
    for sigma, found in zip(sigmas, parzen_log_likelihood(samples, found_at, sigmas), strict=True):
        windows = Independent(Normal(samples, sigma), 1)
        density = MixtureSameFamily(Categorical(logits=torch.zeros(40).double()), windows)
        torch.testing.assert_close(found, density.log_prob(found_at), rtol=1e-10, atol=1e-10)


def test_rows_are_means_of_areas_in_0_to_1():
    batch = torch.tensor(images(64, "A")[:3])
    expected = batch.double().view(3, 3, 32, 2, 32, 2).mean(dim=(3, 5)).flatten(1) / 255
    torch.testing.assert_close(pixel_rows(batch).double(), expected, rtol=0, atol=1e-6)
    assert torch.equal(pixel_rows(batch[:, :1, :16, :8]), batch[:, :1, :16, :8].flatten(1) / 255)


def test_median_distance():
    rows = torch.tensor([[0.0], [1.0], [3.0]])
    assert median_distance(rows) == 2  # of 1, 2 and 3


def values(reals, fakes, seed=0, size=64):
    metric = PixelMetrics(["mmd", "parzen"], seed=seed)
    for start in range(0, len(reals), size):
        metric.add_reals(torch.tensor(reals[start : start + size]))
    metric.add_fakes(torch.tensor(images(32, "B")))
    metric.clear_fakes()
    for start in range(0, len(fakes), size):
        metric.add_fakes(torch.tensor(fakes[start : start + size]))
    found = metric.values()
    metric.close()
    return found, metric.settings()


def test_noise_moves_both():
    reals, fakes = images(32, "A"), images(32, "A2")
    noise = np.random.RandomState(0).normal(size=fakes.shape)
    noisy = [np.clip(np.rint(fakes + sigma * noise), 0, 255).astype(np.uint8) for sigma in (0, 32, 96)]
    found = [values(reals, some)[0] for some in noisy]
    assert abs(found[0]["mmd2"]) < 0.2 * found[1]["mmd2"] < 0.2 * found[2]["mmd2"]
    likelihoods = [f["parzen_log_likelihood"] for f in found]
    assert likelihoods[0] > likelihoods[1] > likelihoods[2]


def test_values_depend_on_images_and_seed_alone():
    reals, fakes = images(32, "A"), images(32, "B")
    first, settings = values(reals, fakes)
    assert values(reals, fakes, size=7) == (first, settings)
    assert settings["parzen_sigma"] in pixels.SIGMAS and settings["parzen_dimensions"] == 3072


def test_the_width_is_the_best_for_reals_that_are_not_evaluated():
    reals, fakes = images(32, "A"), images(32, "A2")
    found, settings = values(reals, fakes)
    rows = [pixel_rows(torch.tensor(some)) for some in (fakes, reals)]
    means = [parzen_log_likelihood(rows[0], rows[1][:25], [s]).mean().item() for s in pixels.SIGMAS]
    assert settings["parzen_sigma"] == pixels.SIGMAS[int(np.argmax(means))]
    rest = parzen_log_likelihood(rows[0], rows[1][25:], [settings["parzen_sigma"]])
    assert found["parzen_log_likelihood"] == pytest.approx(rest.mean().item(), rel=1e-12)
    assert found["parzen_standard_error"] == pytest.approx(rest.std().item() / math.sqrt(231), rel=1e-12)


def test_only_the_first_images_count(monkeypatch):
    monkeypatch.setattr(pixels, "MOST", 100)
    few, _ = values(images(32, "A"), images(32, "B"), size=30)
    assert few == values(images(32, "A")[:100], images(32, "B")[:100])[0]


def test_too_few_images_are_refused_in_a_line():
    with pytest.raises(ValueError, match="1 and 3 images: MMD needs 2") as error:
        mmd2(points(1), points(3), 1.0)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="2 real and 256 generated images"):
        values(images(32, "A")[:2], images(32, "B"))
