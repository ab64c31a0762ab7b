"""The studies of training: their settings are allowed, and their tables are right."""

from pathlib import Path

import pytest

from experiments import recipes


@pytest.mark.parametrize("name", recipes.RECIPES)
@pytest.mark.parametrize("resolution", [32, 64])
def test_recipes_are_allowed_settings(name, resolution):
    config = recipes.settings(name, 1, Path("data"), Path("out"), resolution)
    assert config.seed == 1 and config.resolution == resolution
    assert all(getattr(config, key) == value for key, value in recipes.RECIPES[name].items())


def line(seconds: float, distance: float, resolution: int = 32) -> dict[str, float]:
    return {"seconds": seconds, "resolution": resolution, "kid_lite0": distance}


def test_a_recipe_is_timed_to_where_the_papers_ended():
    runs = {
        "paper": [[line(10, 0.9), line(20, 0.5)], [line(10, 0.8), line(20, 0.5)]],
        "relativistic": [[line(5, 0.5), line(20, 0.2)], [line(15, 0.4), line(20, 0.1)]],
        "non-saturating": [[line(20, 0.7)], [line(20, 0.6)]],
    }
    rows = recipes.table(runs, "kid_lite0").splitlines()[2:]
    assert rows == [
        "| paper | 2 | 0.5 | 20 | 1.00 |",
        "| relativistic | 2 | 0.15 | 10 | 2.00 |",
        "| non-saturating | 2 | 0.65 | never |  |",
    ]


def test_only_the_full_resolution_counts(tmp_path):
    lines = '{"seconds": 1, "resolution": 16, "kid_lite0": 0.1}\n{"seconds": 2, "resolution": 32, "kid_lite0": 0.3}\n'
    (tmp_path / "paper-0.jsonl").write_text(lines)
    assert recipes.found(tmp_path) == {"paper": [[line(2, 0.3)]]}
