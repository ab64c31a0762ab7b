"""The sliced Wasserstein distance against NumPy and SciPy, on as many threads as torch has."""

import importlib.util

import numpy as np
import pytest

from bench.baseline import numpy_swd
from bench.harness.timing import Case
from pggan_fast.metrics import sliced_wasserstein

SHAPES = ((256, 3, 64, 64), (64, 3, 128, 128))
SECONDS = 10.0
SPREAD = 0.15  # of one run around the mean over random positions and directions, at these counts


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_distance(shape: tuple[int, ...], timed, record) -> None:
    record(timed(distance_case(shape), seconds=SECONDS))


def distance_case(shape: tuple[int, ...]) -> Case:
    """Two sets of `shape`, the second one smoother; all providers measure them with seed 0."""
    random = np.random.default_rng(0)
    reals = random.integers(0, 256, shape, dtype=np.uint8)
    fakes = (reals // 2 + np.roll(reals, 1, axis=-1) // 2).astype(np.uint8)
    variants = {
        "ours": lambda _: list(sliced_wasserstein(reals, fakes, seed=0).values())[:-1],
        "numpy": lambda _: numpy_swd.sliced_wasserstein(reals, fakes, seed=0),
    }
    if importlib.util.find_spec("scipy"):
        variants["scipy"] = lambda _: numpy_swd.sliced_wasserstein(reals, fakes, seed=0, blur=numpy_swd.scipy_blur)

    def check() -> None:
        values = {name: np.array(variant(0)) for name, variant in variants.items()}
        for name, found in values.items():
            error = np.abs(found / values["numpy"] - 1).max()
            assert error <= SPREAD, f"{name}: distance off by {error:.0%}, allowed {SPREAD:.0%}"

    labels = {
        "suite": "sliced Wasserstein distance",
        "shape": "x".join(map(str, shape)),
        "dtype": "uint8",
        "layout": "nchw",
        "pass": "both sets",
    }
    return Case(labels, variants, check)
