"""`evaluate` on photographs: memory that does not grow with the number of images, and equal results for equal seeds."""

import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

PHOTOGRAPHS = Path(__file__).parents[2].parent / "shared" / "data" / "clothing"
MORE = 128 << 10  # KiB: patches of 1,700 images at 64 px are 125 MB a level and set, of which 32 MB are held

pytestmark = [
    pytest.mark.skipif("PGGAN_FAST_TEST_METRICS" not in os.environ, reason="slow: run by make test-metrics"),
    pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="the photographs are not there"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The photographs in two folders, none in both."""
    root = tmp_path_factory.mktemp("photographs")
    files = sorted(PHOTOGRAPHS.rglob("*.jpg"))
    random.Random(0).shuffle(files)
    half = len(files) // 2
    for name, part in (("a", files[:half]), ("b", files[half:])):
        (root / name).mkdir()
        for file in part:
            (root / name / f"{file.parent.name}-{file.name}").symlink_to(file)
    return root


def evaluate(folders, out, count, seed=0):
    """The report of a process of its own."""
    command = [sys.executable, "-m", "pggan_fast", "evaluate", "--images", folders / "a", "--reals", folders / "b"]
    command += ["--resolution", "64", "--count", str(count), "--seed", str(seed), "--device", "cpu", "--out", out]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads(out.read_text())


def test_memory_does_not_grow_with_the_images(folders, tmp_path):
    few = evaluate(folders, tmp_path / "few.json", 400)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    many = evaluate(folders, tmp_path / "many.json", 1700)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < peak + MORE
    for level in ("swd_64", "swd_32", "swd_16"):  # two samples of one distribution: the more, the nearer
        assert 0 < many["results"][level] < few["results"][level]


def test_equal_seeds_give_equal_results(folders, tmp_path):
    first, again, other = (
        evaluate(folders, tmp_path / f"{n}.json", 400, seed)["results"] for n, seed in enumerate((3, 3, 4))
    )
    assert first == again and first != other
