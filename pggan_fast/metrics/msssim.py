"""MS-SSIM as the paper measures variation with it: the higher between generated images, the less they vary.

Wang, Simoncelli and Bovik's (2003) with the choices of the official implementation: at small scales the window
shrinks with the image, and negative scale means are clipped to 0. So images of 16 px do, and other libraries,
which refuse small images or pad them, give other numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales; they do not add up to 1 exactly, as published
WINDOW = 11  # pixels
SIGMA = 1.5  # of a window of 11 pixels
C1 = (0.01 * 255) ** 2
C2 = (0.03 * 255) ** 2
_PIECE = 2**20  # pixel values compared at once: 8 MB each for some ten maps


@torch.no_grad()
def ms_ssim(images_a: Tensor, images_b: Tensor) -> Tensor:
    """MS-SSIM of each pair: float64 [N] in 0..1 for images [N, C, H, W] of any dtype with values in 0..255.

    H and W are multiples of 16. Computed in float64 on the images' device: the variances are differences of large
    numbers, and the weighted powers are steep near 0. Raises ValueError for other shapes.
    """
    if images_a.shape != images_b.shape or images_a.ndim != 4:
        raise ValueError(
            f"images {list(images_a.shape)} and {list(images_b.shape)}: must be [N, C, H, W], of one shape"
        )
    channels, height, width = images_a.shape[1:]
    if height % 16 or width % 16 or 0 in (channels, height, width):
        raise ValueError(f"images {height}x{width}: sides must be multiples of 16 px, which 5 scales need")
    at_once = max(1, _PIECE // images_a.shape[1:].numel())
    pairs = zip(images_a.split(at_once), images_b.split(at_once), strict=True)
    return torch.cat([_ms_ssim(a.double(), b.double()) for a, b in pairs])


class Variation:
    """Mean MS-SSIM of pairs within a set, which are each two images that follow one another.

    The paper's measure if the images come in random order; it takes 10,000 pairs. Batches are uint8 [N, C, H, W].
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self._sets = {"reals": _Pairs(), "fakes": _Pairs()}

    def add_reals(self, images: Tensor) -> None:
        self._sets["reals"].add(images.to(self.device))

    def add_fakes(self, images: Tensor) -> None:
        self._sets["fakes"].add(images.to(self.device))

    def clear_fakes(self) -> None:
        self._sets["fakes"] = _Pairs()

    def settings(self) -> dict[str, object]:
        """How many pairs there were."""
        return {"pairs": self._sets["fakes"].count}

    def values(self) -> dict[str, float]:
        """Return the values of the generated images and of the reals; ValueError for a set without a pair."""
        for name, pairs in self._sets.items():
            if not pairs.count:
                raise ValueError(f"{name}: MS-SSIM needs 2 images or more")
        return {
            "ms_ssim": self._sets["fakes"].total / self._sets["fakes"].count,
            "ms_ssim_reals": self._sets["reals"].total / self._sets["reals"].count,
        }

    def close(self) -> None:
        """Nothing is kept."""


class _Pairs:
    """A sum over pairs, and the image that waits for a partner."""

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0
        self._waiting: Tensor | None = None

    def add(self, images: Tensor) -> None:
        if self._waiting is not None:
            images = torch.cat([self._waiting, images])
        paired = len(images) // 2 * 2
        self._waiting = images[paired:] if paired < len(images) else None
        if paired:
            values = ms_ssim(images[0:paired:2], images[1:paired:2])
            self.total += values.sum().item()
            self.count += len(values)


def _ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    result = torch.ones(len(a), dtype=torch.float64, device=a.device)
    for weight in WEIGHTS[:-1]:
        _, contrast = _similarity(a, b)
        result *= contrast.clamp(min=0) ** weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    similarity, _ = _similarity(a, b)
    return result * similarity.clamp(min=0) ** WEIGHTS[-1]


def _similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast and structure part, each the mean over one image: [N]."""
    window = _window(min(WINDOW, *a.shape[2:]))
    mean_a, mean_b = _filter(a, window), _filter(b, window)
    variances = _filter(a * a + b * b, window) - mean_a**2 - mean_b**2
    covariance = _filter(a * b, window) - mean_a * mean_b
    contrast = (2 * covariance + C2) / (variances + C2)
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return (luminance * contrast).mean(dim=(1, 2, 3)), contrast.mean(dim=(1, 2, 3))


def _window(size: int) -> list[float]:
    """A Gaussian of `size` pixels, whose sigma shrinks with it, and which adds up to 1."""
    distance = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    window = torch.exp(-(distance**2) / (2 * (SIGMA * size / WINDOW) ** 2))
    return (window / window.sum()).tolist()


def _filter(x: Tensor, window: list[float]) -> Tensor:
    """Filter rows and columns where the whole window lies in the image.

    As shifted sums: torch has no fast float64 convolution on the CPU.
    """
    for axis in (2, 3):
        size = x.shape[axis] - len(window) + 1
        x = sum(weight * x.narrow(axis, i, size) for i, weight in enumerate(window))
    return x
