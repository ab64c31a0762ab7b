"""The sliced Wasserstein distance: official values, properties, and what it refuses."""

import warnings

import numpy as np
import pytest
import torch

from bench.baseline import numpy_swd
from pggan_fast.metrics import SlicedWasserstein, sliced_wasserstein, sliced_wasserstein_of, swd
from pggan_fast.metrics.pyramid import pyr_down, pyr_up
from tests.metrics.golden import golden, images

SEEDS = 4
ROUNDINGS = 1e-4  # relative: matrix products in other blocks move a sorted value by 1e-6 of differences of 1e-2


def distances(fakes: np.ndarray, reals: np.ndarray, seed: int = 0) -> list[float]:
    return list(sliced_wasserstein(reals, fakes, seed=seed).values())


@pytest.mark.parametrize("resolution", [32, 64])
def test_values_lie_in_the_spread_of_the_official_ones(resolution):
    """Random positions and directions are ours, so what agrees is the mean over seeds."""
    found = {"A2": [], "B": []}
    for seed in range(SEEDS):
        with SlicedWasserstein(seed=seed) as metric:
            metric.add_reals(images(resolution, "A"))
            for name, values in found.items():
                metric.add_fakes(images(resolution, name))
                values.append(metric.values())
                metric.clear_fakes()
    names = [name.removeprefix("SWDx1e3_").replace("avg", "average") for name in golden()[f"swd/res{resolution}/names"]]
    for name, values in found.items():
        assert [list(v) for v in values] == [names] * SEEDS
        ours = np.array([list(v.values()) for v in values])
        official = golden()[f"swd/res{resolution}/A_vs_{name}"]
        mean = official.mean(axis=0)
        # Four standard errors of the difference of two means of so many runs; there are 14 values.
        allowed = 4 * official.std(axis=0, ddof=1) * np.sqrt(1 / len(official) + 1 / SEEDS)
        assert (abs(ours.mean(axis=0) - mean) < allowed).all()
        assert (abs(ours - mean) < 0.15 * mean).all()  # one run alone


def test_equal_sets_are_at_distance_zero_in_any_order():
    reals = images(32, "A")[:50]
    assert distances(reals, reals) == [0, 0, 0]
    assert max(distances(reals[::-1], reals)) < 1e-3  # sums of statistics in another order


def test_equal_seeds_give_equal_results():
    reals, fakes = images(32, "A")[:40], images(32, "B")[:40]
    first = distances(fakes, reals, seed=3)
    assert distances(fakes, reals, seed=3) == first
    assert distances(fakes, reals, seed=4) != first


def test_batches_and_order_do_not_matter(monkeypatch):
    reals, fakes = images(64, "A")[:70], images(64, "B")[:70]
    expected = distances(fakes, reals)
    order = np.random.RandomState(0).permutation(70)
    for sizes in ([1, 2, 67], [70], [35, 0, 35]):
        parts = np.split(fakes[order], np.cumsum(sizes)[:-1])
        values = sliced_wasserstein(iter([torch.tensor(reals)]), (part for part in parts))
        assert list(values.values()) == pytest.approx(expected, rel=ROUNDINGS)
    monkeypatch.setattr(swd, "WORKSPACE", 2 * 70 * 128 * 4 * 50)  # 50 directions at once
    monkeypatch.setattr(swd, "PIECE_VALUES", 1)  # one image at once
    assert distances(fakes, reals) == pytest.approx(expected, rel=ROUNDINGS)


def test_more_noise_is_farther():
    """At every step on average; the coarse level hardly sees weak noise, which is blurred away on the way to it."""
    reals = images(32, "A")[:64]
    noise = np.random.RandomState(0).normal(size=reals.shape)
    noisy = [np.clip(np.rint(reals + sigma * noise), 0, 255).astype(np.uint8) for sigma in (0, 4, 8, 16, 32, 64)]
    fine, coarse, average = np.transpose([distances(fakes, reals) for fakes in noisy])
    assert fine[0] == coarse[0] == 0
    assert (np.diff(fine) > 0).all() and (np.diff(average) > 0).all()
    assert coarse[-1] > coarse[-2] > coarse[1] > 0


def test_more_blur_is_farther():
    reals = images(64, "B")[:64]
    values = []
    for times in range(4):
        fakes = torch.tensor(reals).float()
        for _ in range(times):
            fakes = pyr_down(fakes)
        for _ in range(times):
            fakes = pyr_up(fakes)
        values.append(distances(fakes.round().byte().numpy(), reals)[-1])
    assert values[0] == 0 and (np.diff(values) > 0).all()


def test_one_channel_gives_what_three_equal_ones_give():
    """On average over directions; one run of either has the spread of the official runs."""
    reals, fakes = images(32, "A")[:, :1], images(32, "B")[:, :1]
    gray = np.mean([distances(fakes, reals, seed) for seed in range(3)], axis=0)
    color = np.mean([distances(fakes.repeat(3, 1), reals.repeat(3, 1), seed) for seed in range(3)], axis=0)
    assert gray == pytest.approx(color, rel=0.1)


@pytest.mark.parametrize("channels", [1, 4])
def test_plain_numpy_gives_the_same(channels):
    reals, fakes = (images(32, name).reshape(-1, channels, 32, 32)[:180] for name in "AB")
    assert distances(fakes, reals)[:-1] == pytest.approx(numpy_swd.sliced_wasserstein(reals, fakes, seed=0), rel=0.15)


def test_sets_without_contrast_give_numbers():
    """What a collapsed generator may give."""
    reals, flat = images(32, "A")[:10], np.full((10, 3, 32, 32), 100, np.uint8)
    assert np.isfinite(distances(flat, reals)).all()
    assert distances(flat + 1, flat) == [0, 0, 0]


def test_a_generator_against_data():
    data, pool = images(32, "A"), iter(images(32, "B"))
    asked = []

    def generate(count: int) -> torch.Tensor:
        asked.append(count)
        return torch.tensor(np.stack([next(pool) for _ in range(count)]))

    values = sliced_wasserstein_of(generate, data, count=100, batch_size=30, seed=1)
    assert asked == [30, 30, 30, 10]
    whole = golden()["swd/res32/A_vs_B"].mean(axis=0)
    assert list(values.values()) == pytest.approx(whole, rel=0.5)  # fewer images
    equal = sliced_wasserstein_of(lambda count: data, data, count=len(data), batch_size=len(data))
    assert set(equal.values()) == {0.0}


def test_chosen_data_follow_from_the_seed():
    data, fakes = images(32, "A"), images(32, "B")[:20]
    first, again, other = (sliced_wasserstein_of(lambda _: fakes, data, count=20, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_mapped_files_are_read_without_a_warning(tmp_path):
    np.save(tmp_path / "images.npy", images(32, "A")[:4])
    data = np.load(tmp_path / "images.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert distances(data, data) == [0, 0, 0]


@pytest.mark.parametrize(
    ("batch", "complaint"),
    [
        (np.zeros((2, 3, 32, 32), np.float32), r"reals float32 \[2, 3, 32, 32\]: must be uint8"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), r"reals uint8 \[3, 32, 32\]: must be uint8 \[N, C, H, W\]"),
        (np.zeros((2, 0, 32, 32), np.uint8), r"\[2, 0, 32, 32\]: must be"),
        (np.zeros((2, 3, 8, 8), np.uint8), "images 8x8: sides must be 16 px or more"),
        (np.zeros((2, 3, 66, 66), np.uint8), "images 66x66: sides must stay even"),
        (np.zeros((2, 1, 64, 64), np.uint8), r"reals \[1, 64, 64\]: must be \[3, 32, 32\]"),
    ],
)
def test_wrong_images_are_refused_in_a_line(batch, complaint):
    with SlicedWasserstein() as metric:
        if batch.shape[1:] == (1, 64, 64):  # wrong only after these
            metric.add_fakes(images(32, "A")[:1])
        with pytest.raises(ValueError, match=complaint) as error:
            metric.add_reals(batch)
        assert "\n" not in str(error.value)


def test_wrong_counts_and_settings_are_refused_in_a_line():
    some = images(32, "A")[:3]
    with pytest.raises(ValueError, match="3 real and 2 generated images: must be as many"):
        sliced_wasserstein(some, some[:2])
    with pytest.raises(ValueError, match="0 real and 0 generated images"):
        sliced_wasserstein([], [])
    with pytest.raises(ValueError, match="seed -1: must be 0 or more"):
        sliced_wasserstein(some, some, seed=-1)
    with pytest.raises(ValueError, match="count 4: must be from 1 to 3"):
        sliced_wasserstein_of(lambda count: some, some, count=4)
    with pytest.raises(ValueError, match="batch_size 0: must be 1 or more"):
        sliced_wasserstein_of(lambda count: some, some, count=2, batch_size=0)
