"""Values of the official metrics, and the images they were computed for."""

import hashlib
from functools import cache
from pathlib import Path

import numpy as np

PATH = Path(__file__).parents[1] / "golden" / "metrics.npz"

# (seed, images, weights of the octaves) by resolution and name
SETS = {
    (32, "A"): (1032, 256, (8, 4, 2, 1)),
    (32, "A2"): (2032, 256, (8, 4, 2, 1)),
    (32, "B"): (3032, 256, (4, 4, 3, 3)),
    (64, "A"): (1064, 256, (8, 4, 2, 1, 1)),
    (64, "A2"): (2064, 256, (8, 4, 2, 1, 1)),
    (64, "B"): (3064, 256, (4, 4, 3, 3, 2)),
    (128, "M"): (4000, 32, (8, 4, 2, 1, 1, 1)),
}


@cache
def golden() -> dict[str, np.ndarray]:
    with np.load(PATH, allow_pickle=False) as file:
        return dict(file)


@cache
def images(resolution: int, name: str) -> np.ndarray:
    """A set of smooth random color images, uint8 [N, 3, resolution, resolution], as the official metrics saw it."""
    seed, count, weights = SETS[resolution, name]
    random = np.random.RandomState(seed)
    total = np.zeros((count, 3, resolution, resolution), np.int64)
    for octave, weight in enumerate(weights):
        cells = 4 * 2**octave
        size = resolution // cells
        noise = random.randint(0, 256, size=(count, 3, cells, cells)).astype(np.int64)
        noise = noise.repeat(size, axis=2).repeat(size, axis=3)
        for axis in (2, 3):
            noise = sum(np.roll(noise, shift, axis) for shift in range(size))
        total += weight * (noise // size**2)
    result = np.clip((total // sum(weights) - 128) * 3 // 2 + 128, 0, 255).astype(np.uint8)
    check(result, f"images/res{resolution}/{name}")
    result.flags.writeable = False  # shared by the tests
    return result


def check(result: np.ndarray, key: str) -> None:
    """The images are the ones of the file."""
    assert hashlib.sha256(result.tobytes()).hexdigest() == str(golden()[f"{key}/sha256"])
