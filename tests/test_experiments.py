"""The studies of training: their settings are allowed, their tables are right, and their runs continue."""

import json
from pathlib import Path

import pytest

from experiments import recipes, timed_run
from tests.training import runs


@pytest.mark.parametrize("name", recipes.RECIPES)
@pytest.mark.parametrize("resolution", [32, 64])
def test_recipes_are_allowed_settings(name, resolution):
    config = recipes.settings(name, 1, Path("data"), Path("out"), resolution)
    assert config.seed == 1 and config.resolution == resolution
    differing = {
        key: value.format(rate_kimg=160) if key == "learning_rate" and isinstance(value, str) else value
        for key, value in recipes.RECIPES[name].items()
    }
    assert all(getattr(config, key) == value for key, value in differing.items())


def line(seconds: float, distance: float, resolution: int = 32) -> dict[str, float]:
    return {"seconds": seconds, "resolution": resolution, "kid_lite0": distance}


def test_a_recipe_is_timed_to_where_the_papers_ended():
    found = {
        "paper": [[line(10, 0.9), line(20, 0.5)], [line(10, 0.8), line(20, 0.5)]],
        "relativistic": [[line(5, 0.5), line(20, 0.2)], [line(15, 0.4), line(20, 0.1)]],
        "non-saturating": [[line(20, 0.7)], [line(20, 0.6)]],
    }
    rows = recipes.table(found, "kid_lite0").splitlines()[2:]
    assert rows == [
        "| paper | 2 | 0.5 | 20 | 1.00 |",
        "| relativistic | 2 | 0.15 | 10 | 2.00 |",
        "| non-saturating | 2 | 0.65 | never |  |",
    ]


def test_only_the_full_resolution_counts(tmp_path):
    lines = '{"seconds": 1, "resolution": 16, "kid_lite0": 0.1}\n{"seconds": 2, "resolution": 32, "kid_lite0": 0.3}\n'
    (tmp_path / "paper-0.jsonl").write_text(lines)
    assert recipes.found(tmp_path) == {"paper": [[line(2, 0.3)]]}


def test_an_interrupted_run_continues_with_the_time_it_had(tmp_path, monkeypatch):
    data = runs.write_data(tmp_path / "data")
    config = runs.config(data, tmp_path / "run", total_kimg=10, stable_kimg=10, metric_kimg=0.032)
    monkeypatch.setattr(timed_run, "metric_callback_for", lambda run: lambda G, stage, alpha: {"kid_lite0": 0.5})
    first = timed_run.run_for(config, seconds=0.0)
    assert len(first) == 1  # the time was over at the first distance
    file = tmp_path / "run.jsonl"
    # Killed between a distance and its checkpoint: that distance is measured again.
    file.write_text(file.read_text() + json.dumps({**first[0], "seconds": 1e6}) + "\n")
    second = timed_run.run_for(config, seconds=first[0]["seconds"] + 1e-3)
    assert len(second) == 2 and second[0] == first[0]
    assert first[0]["seconds"] < second[1]["seconds"] < 1e3
    assert timed_run.run_for(config, seconds=second[1]["seconds"]) == second  # it has had its time
