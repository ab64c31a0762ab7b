"""The schedule against the official implementation's rows and against PGGAN's published table."""

from pathlib import Path

import numpy as np
import pytest

from pggan_fast.training.schedule import Schedule, Stage
from pggan_fast.utils.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "data_pipeline.npz"

# The settings behind the golden rows, in our notation of a table ("from this resolution on").
SETTINGS = {
    "resolution": 32,
    "batch_sizes": {4: 128, 8: 64, 16: 24, 32: 16},
}
G_RATES = {4: 0.001, 16: 0.0015, 32: 0.002}
D_RATES = {4: 0.001, 16: 0.0025, 32: 0.003}


def golden_rows():
    with np.load(GOLDEN) as golden:
        return list(zip(golden["schedule/kimg"], golden["schedule/rows"], strict=True))


@pytest.mark.parametrize(("kimg", "row"), golden_rows())
def test_matches_the_official_schedule(kimg, row):
    lod, resolution, batch_size, g_rate, d_rate, _tick = row
    stages = [Schedule(**SETTINGS, learning_rates=rates).at(round(kimg * 1000)) for rates in (G_RATES, D_RATES)]
    for stage, rate in zip(stages, (g_rate, d_rate), strict=True):
        assert stage.resolution == resolution
        assert stage.batch_size == batch_size
        assert stage.learning_rate == rate
        # lod counts down in levels; both sides round it in float64.
        assert np.log2(32 / stage.resolution) + 1 - stage.alpha == pytest.approx(lod, abs=1e-12)
        assert stage.fading == (lod % 1 != 0)


@pytest.mark.parametrize(
    ("kimg", "resolution", "batch_size", "learning_rate"),
    [
        (0, 4, 128, 1e-3),
        (1800, 8, 128, 1e-3),
        (3000, 16, 128, 1e-3),
        (4200, 32, 64, 1e-3),
        (5400, 64, 32, 1e-3),
        (6600, 128, 16, 1e-3),
        (7800, 256, 8, 1e-3),
        (9000, 512, 4, 1e-3),
        (10200, 1024, 4, 1.5e-3),
    ],
)
def test_defaults_are_the_papers(kimg, resolution, batch_size, learning_rate):
    schedule = Schedule(resolution=1024)
    assert schedule.total_images == 12_000_000
    assert schedule.at(kimg * 1000) == Stage(resolution, 1.0, batch_size, learning_rate)


def test_live_layers_change_at_both_ends_of_a_transition():
    schedule = Schedule(resolution=8, stable_images=10, transition_images=10)
    live = [schedule.at(images).active_layers for images in range(31)]
    changes = [images for images in range(1, 31) if live[images] != live[images - 1]]
    assert changes == [11, 20]
    assert [schedule.at(images).alpha for images in (10, 11, 15, 19, 20)] == [1, 0.1, 0.5, 0.9, 1]


def test_without_transitions_it_jumps():
    schedule = Schedule(resolution=16, stable_images=10, transition_images=0)
    assert [schedule.at(images).resolution for images in (0, 9, 10, 20, 99)] == [4, 4, 8, 16, 16]
    assert all(schedule.at(images).alpha == 1 for images in range(40))


def test_without_stable_phases_it_always_fades():
    schedule = Schedule(resolution=8, stable_images=0, transition_images=10)
    assert schedule.at(0) == Stage(4, 1.0, 128, 1e-3)
    assert (schedule.at(1).resolution, schedule.at(1).alpha) == (8, 0.1)
    assert schedule.at(10).alpha == 1


def test_starting_at_the_full_resolution_never_fades():
    schedule = Schedule(resolution=32, start_resolution=32, stable_images=10)
    assert {schedule.at(images).active_layers for images in range(0, 2_000_000, 9999)} == {(32, False)}


def test_a_first_phase_of_another_length_moves_the_others():
    settings = {"resolution": 16, "start_resolution": 4, "stable_images": 10, "transition_images": 10}
    usual = Schedule(**settings)
    for first in (0, 3, 25):
        other = Schedule(**settings, first_images=first)
        assert other.total_images == usual.total_images + first - 10
        assert [other.at(images) for images in range(first, 90)] == [usual.at(10 + n) for n in range(90 - first)]
        assert all(other.at(images) == usual.at(0) for images in range(first))


def test_without_growth_it_stays_at_the_full_resolution_for_as_long():
    schedule = Schedule(resolution=64, progressive=False)
    assert schedule.total_images == Schedule(resolution=64).total_images
    assert {schedule.at(images) for images in range(0, 8_000_000, 99_999)} == {Stage(64, 1.0, 32, 1e-3)}
    assert schedule.images_per_resolution(1000) == {64: schedule.total_images - 1000}


@pytest.mark.parametrize(
    "settings",
    [
        {"resolution": 32},
        {"resolution": 32, "first_images": 0},
        {"resolution": 32, "first_images": 900_000},
        {"resolution": 16, "start_resolution": 8, "total_images": 1_000_000},
        {"resolution": 8, "stable_images": 0},
        {"resolution": 64, "transition_images": 0, "total_images": 1_500_000},
    ],
)
@pytest.mark.parametrize("seen", [0, 1, 599_999, 700_000, 1_200_001])
def test_images_per_resolution_adds_up(settings, seen):
    schedule = Schedule(**settings)
    left = schedule.images_per_resolution(seen)
    assert sum(left.values()) == max(0, schedule.total_images - seen)
    probes = range(seen, schedule.total_images, 1000)
    # Counted by asking the schedule itself at every thousandth image.
    counted = {resolution: 0 for resolution in left}
    for images in probes:
        counted[schedule.at(images).resolution] += 1000
    assert all(abs(counted[r] - left[r]) <= 2000 for r in left)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"resolution": 48}, "resolution 48: must be a power of two"),
        ({"resolution": 2}, "resolution 2: must be a power of two, 4 to 1024"),
        ({"resolution": 2048}, "resolution 2048: must be a power of two, 4 to 1024"),
        ({"resolution": 8, "first_images": -1}, "first_images -1"),
        ({"resolution": 8, "start_resolution": 16}, "start_resolution 16: must not be above"),
        ({"resolution": 8, "stable_images": 0, "transition_images": 0}, "phases of 0 stable"),
        ({"resolution": 8, "transition_images": -1}, "neither may be negative"),
        ({"resolution": 8, "batch_sizes": {8: 16}}, "batch_sizes {8: 16}"),
        ({"resolution": 8, "learning_rates": {4: 0.0}}, "positive values"),
        ({"resolution": 8, "total_images": 0}, "total_images 0"),
    ],
)
def test_mistakes_are_named_in_one_line(settings, words):
    with pytest.raises(UserError, match=words.replace("{", r"\{").replace("}", r"\}")) as error:
        Schedule(**settings)
    assert "\n" not in str(error.value)
