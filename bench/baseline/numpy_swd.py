"""The sliced Wasserstein distance in NumPy, and with SciPy's convolution as in the official code: what ours is timed
against. Nothing here is from pggan_fast."""

from collections.abc import Callable

import numpy as np

BINOMIAL = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]).astype(np.float32) / 256

Blur = Callable[[np.ndarray, np.ndarray], np.ndarray]


def blur(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """5x5 filter of [N, C, H, W], mirrored at the border, as 25 shifted sums."""
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    return sum(kernel[i, j] * padded[:, :, i : i + height, j : j + width] for i in range(5) for j in range(5))


def scipy_blur(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The same by SciPy, which is what the official code calls."""
    from scipy import ndimage

    return ndimage.convolve(x, kernel[None, None], mode="mirror")


def pyramid(images: np.ndarray, blur: Blur) -> list[np.ndarray]:
    levels = [images.astype(np.float32)]
    while levels[-1].shape[-1] >= 32:
        smaller = blur(levels[-1], BINOMIAL)[:, :, ::2, ::2]
        stuffed = np.zeros_like(levels[-1])
        stuffed[:, :, ::2, ::2] = smaller
        levels[-1] = levels[-1] - blur(stuffed, 4 * BINOMIAL)
        levels.append(smaller)
    return levels


def patches(level: np.ndarray, random: np.random.Generator) -> np.ndarray:
    count, channels, height, width = level.shape
    n, c, y, x = np.ogrid[0 : 128 * count, 0:channels, 0:7, 0:7]
    y = y + random.integers(0, height - 6, (128 * count, 1, 1, 1))
    x = x + random.integers(0, width - 6, (128 * count, 1, 1, 1))
    return level[n // 128, c, y, x]


def descriptors(images: np.ndarray, random: np.random.Generator, blur: Blur) -> list[np.ndarray]:
    batches = [pyramid(images[start : start + 64], blur) for start in range(0, len(images), 64)]
    result = []
    for level in zip(*batches, strict=True):
        found = np.concatenate([patches(batch, random) for batch in level])
        found -= found.mean(axis=(0, 2, 3), keepdims=True)
        found /= found.std(axis=(0, 2, 3), keepdims=True)
        result.append(found.reshape(len(found), -1))
    return result


def sliced_wasserstein(reals: np.ndarray, fakes: np.ndarray, seed: int, blur: Blur = blur) -> list[float]:
    """Distance x 1000 of each level."""
    random = np.random.default_rng(seed)
    values = []
    for a, b in zip(*(descriptors(images, random, blur) for images in (reals, fakes)), strict=True):
        repeats = []
        for _ in range(4):
            directions = random.standard_normal((a.shape[1], 128))
            directions = (directions / np.linalg.norm(directions, axis=0)).astype(np.float32)
            repeats.append(np.abs(np.sort(a @ directions, axis=0) - np.sort(b @ directions, axis=0)).mean())
        values.append(1000 * float(np.mean(repeats)))
    return values
