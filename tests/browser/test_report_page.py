"""report.html of a run in Chromium, at the widths of a desk and of a phone."""

import json
import os

import numpy as np
import pytest

from pggan_fast.training import RunFolder
from pggan_fast.training.logging.report import Report
from pggan_fast.utils.images import save_png
from tests.browser.chromium import Browser, find_browser
from tests.training.runs import config, write_data

pytestmark = [
    pytest.mark.skipif("PGGAN_FAST_TEST_BROWSER" not in os.environ, reason="make test-browser runs it"),
    pytest.mark.skipif(find_browser() is None, reason="needs Chromium: apt-get install chromium"),
]

LINES = 60
BOXES = (
    "[...document.querySelectorAll({!r})].map((e) => {{ const r = e.getBoundingClientRect(); return [r.x, r.right]; }})"
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a run with a long name, many curves and wide sample grids."""
    folder = tmp_path_factory.mktemp("report")
    data = write_data(folder / "data")
    run = RunFolder.create(
        config(data, folder / "a-run-of-which-the-name-is-long-and-has-no-place-to-break", metrics="swd")
    )
    random = np.random.default_rng(0)
    with open(run.stats_file, "w", encoding="utf-8") as file:
        for index in range(1, LINES + 1):
            resolution = 4 if index < 20 else 8 if index < 40 else 16
            line = {"images": 4000 * index, "resolution": resolution, "alpha": 1.0 if index % 20 > 9 else 0.5}
            line |= {"batch_size": 16, "learning_rate": 0.001, "seconds": 9.5 * index, "images_per_second": 420.5}
            names = ("d_loss", "g_loss", "real_score", "fake_score", "gradient_norm", "peak_memory_mib", "swd_average")
            line |= {name: float(random.normal()) for name in names}
            file.write(json.dumps(line) + "\n")
    for index in range(3):
        image = random.integers(0, 256, (512, 768, 3), dtype=np.uint8)
        save_png(run.samples / f"{80_000 * (index + 1):09d}.png", image)
    Report(run).write(running=False)
    return run.path / "report.html"


@pytest.mark.parametrize("width", [1200, 390, 320])
def test_nothing_is_wider_than_the_window(report, screenshots, width):
    with Browser() as browser:
        page = browser.open(report, width=width, height=900)
        page.screenshot(screenshots / f"report-{width}.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for selector in (".chart", "img", "table", "h1"):
            boxes = page.evaluate(BOXES.format(selector))
            assert boxes and all(left >= 0 and right <= width for left, right in boxes), selector
        assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
        assert len(page.evaluate(BOXES.format(".line"))) >= 7
        assert page.problems() == []
