"""Patches: cutting, normalising and projecting against official values, and the store."""

import numpy as np
import pytest
import torch

from pggan_fast.metrics import patches
from pggan_fast.metrics.patches import PatchStore, Positions, cut_patches
from pggan_fast.metrics.swd import distance, project
from tests.metrics.golden import golden, images

ROUNDINGS = 2e-6  # of normalised values up to 10 in float32
SIZES = [(32, 32), (16, 16)]


def store_of(*pieces: np.ndarray) -> PatchStore:
    """A store of patches [n, C, 7, 7], as the official code has them."""
    store = PatchStore(pieces[0].shape[1])
    for piece in pieces:
        store.append(torch.tensor(piece.transpose(0, 2, 3, 1)))
    return store


def rows_of(patches: np.ndarray) -> np.ndarray:
    """Patches [n, C, 7, 7] as a store has them: [n, 49*C]."""
    return patches.transpose(0, 2, 3, 1).reshape(len(patches), -1)


def official_directions(seed: int) -> torch.Tensor:
    """The 4 repeats of 128 directions that the official function sampled, side by side."""
    random = np.random.RandomState(seed)
    repeats = [random.randn(147, 128) for _ in range(4)]
    directions = np.hstack([r / np.linalg.norm(r, axis=0) for r in repeats]).T
    return torch.tensor(rows_of(directions.reshape(-1, 3, 7, 7)).T, dtype=torch.float32)


def test_patches_are_the_official_ones():
    random = np.random.RandomState(5)
    x, y = (torch.tensor(random.randint(3, 32 - 3, size=12)).view(3, 4) - 3 for _ in range(2))  # its are centers
    found = cut_patches(torch.tensor(images(32, "A")[:3]).float(), y, x)
    # The official patches are transposed, which random directions do not see.
    np.testing.assert_array_equal(found.permute(0, 3, 2, 1).numpy(), golden()["descriptors/seed5_A_first3_n4"])


@pytest.mark.parametrize("name", ["a", "b"])
def test_normalised_patches_are_the_official_ones(name):
    store = store_of(golden()[f"desc/in_{name}"])
    normalised = projected(store, torch.eye(147), *store.mean_std()).T
    expected = rows_of(golden()[f"desc/final_{name}"].reshape(-1, 3, 7, 7))
    np.testing.assert_allclose(normalised.numpy(), expected, rtol=0, atol=ROUNDINGS)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_distance_is_the_official_one(seed, monkeypatch):
    a, b = (store_of(golden()[f"desc/in_{name}"]) for name in "ab")
    directions = official_directions(seed)
    assert distance(a, b, directions) == pytest.approx(golden()["desc/sw_final"][seed], rel=1e-6)


def projected(store: PatchStore, directions: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    found = torch.empty(directions.shape[1], store.count)
    offset = project(store, directions, mean, std, found)
    return found - offset[:, None]


def test_statistics_do_not_depend_on_the_pieces(monkeypatch):
    values = np.random.RandomState(0).normal(200, 3, (500, 2, 7, 7)).astype(np.float32)
    exact = values.astype(np.float64).mean(axis=(0, 2, 3)), values.astype(np.float64).std(axis=(0, 2, 3))
    for store in (store_of(values), store_of(values[:7], values[7:300], values[300:])):
        mean, std = store.mean_std()
        np.testing.assert_allclose(mean.numpy(), exact[0], rtol=1e-7)
        np.testing.assert_allclose(std.numpy(), exact[1], rtol=1e-6)


def test_a_constant_channel_projects_to_zero():
    values = np.random.RandomState(0).normal(0, 1, (300, 2, 7, 7)).astype(np.float32)
    values[:, 1] = 77.7
    store = store_of(values[:100], values[100:])
    mean, std = store.mean_std()
    assert std[1] == 0
    assert (projected(store, torch.eye(98)[:, 1::2], mean, std) == 0).all()


def test_what_memory_does_not_hold_comes_back_from_the_file(monkeypatch):
    values = np.random.RandomState(0).normal(0, 1, (100, 3, 7, 7)).astype(np.float32)
    pieces = np.split(values, [10, 45, 50, 90])
    monkeypatch.setattr(patches, "HELD", 40 * 147 * 4)
    monkeypatch.setattr(patches, "_ROWS", 17)
    store = PatchStore(3)
    for number, piece in enumerate(pieces):
        store.append(torch.tensor(piece.transpose(0, 2, 3, 1)))
        if number == 1:  # what is in the file by now is read in part, which does not disturb
            assert next(store.chunks()).shape == (17, 147)
    assert 0 < sum(len(rows) for rows in store._held) < 45
    np.testing.assert_array_equal(torch.cat(list(store.chunks())).numpy(), rows_of(values))


def test_positions_follow_from_seed_and_image():
    batch = torch.tensor(images(32, "A")[:20])
    drawn = Positions(0).draw(batch, SIZES)
    assert drawn.shape == (2, 2, 20, 128)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    again = Positions(0)
    parts = [again.draw(part, SIZES) for part in batch[order].split(7)]
    assert torch.equal(torch.cat(parts, dim=2), drawn[:, :, order])
    assert not torch.equal(Positions(1).draw(batch, SIZES), drawn)


def test_copies_of_an_image_in_a_set_get_positions_of_their_own():
    batch = torch.tensor(images(32, "A")[:1])
    positions = Positions(0)
    first, second = positions.draw(batch, SIZES), positions.draw(batch, SIZES)
    assert not torch.equal(first, second)
    assert torch.equal(Positions(0).draw(batch.repeat(2, 1, 1, 1), SIZES), torch.cat([first, second], dim=2))


def test_positions_cover_the_image_evenly():
    drawn = Positions(0).draw(torch.tensor(images(32, "A")), [(32, 20)])[0]
    for corners, size in zip(drawn, (32, 20), strict=True):
        places = size - 6
        counts = torch.bincount(corners.flatten(), minlength=places)
        expected = corners.numel() / places
        assert len(counts) == places
        # The chi-squared statistic has mean places - 1 and variance 2 * (places - 1): five deviations.
        assert ((counts - expected) ** 2 / expected).sum() < places - 1 + 5 * (2 * (places - 1)) ** 0.5
