"""Metrics on the pixels themselves: MMD, and the Parzen-window log-likelihood of the first papers on GANs.

Both see an image as a point: its pixels in 0..1, averaged down to at most 32 px a side. At such sizes they say
something about digits and textures, and little about photographs; they are here to compare with published figures.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast.metrics.rows import RowStore

SIDE = 32  # pixels
MOST = 10_000  # images of each set that count; the first ones, as the cost grows with the square
SIGMAS = tuple(np.logspace(-1, 0, 10).tolist())  # window widths tried, as in the published code
VALIDATION = 0.1  # share of the reals that chooses among them
_BLOCK = 512  # rows against all others at once: 40 MB of distances


def pixel_rows(images: Tensor) -> Tensor:
    """float32 [N, D] in 0..1 of uint8 [N, C, H, W]: the means of areas, so that no side is above 32."""
    size = [min(SIDE, side) for side in images.shape[2:]]
    return (F.adaptive_avg_pool2d(images.float(), size) / 255).flatten(1)


def squared_distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """float64 [n, M] blocks of the squared distances of rows a [N, D] to rows b [M, D], in order."""
    b = b.double()
    norms = b.square().sum(1)
    for block in a.split(_BLOCK):
        block = block.double()
        products = torch.addmm(norms, block, b.T, alpha=-2)
        yield products.add_(block.square().sum(1, keepdim=True)).clamp_(min=0)


def median_distance(rows: Tensor, seed: int = 0) -> float:
    """The median distance between two of rows [N, D], of at most 1,000 random ones."""
    chosen = np.random.Generator(np.random.PCG64([seed, 2])).permutation(len(rows))[:1000]
    some = rows[torch.from_numpy(chosen)]
    distances = torch.cat(list(squared_distances(some, some))).sqrt()
    above = torch.triu_indices(len(some), len(some), offset=1)
    return distances[above[0], above[1]].median().item()


def mmd2(a: Tensor, b: Tensor, bandwidth: float) -> float:
    """The unbiased estimate of the squared maximum mean discrepancy of rows a [N, D] and b [M, D].

    Under the Gaussian kernel exp(-d**2 / (2 * bandwidth**2)) (Gretton et al. 2012, equation 3). Around 0, and below as
    well, for samples of one distribution. Raises ValueError for less than 2 rows.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"{len(a)} and {len(b)} images: MMD needs 2 or more of each")

    def total(x: Tensor, y: Tensor) -> float:
        return sum((block / (-2 * bandwidth**2)).exp_().sum().item() for block in squared_distances(x, y))

    n, m = len(a), len(b)
    within_a, within_b = (total(a, a) - n) / (n * (n - 1)), (total(b, b) - m) / (m * (m - 1))
    return within_a + within_b - 2 * total(a, b) / (n * m)


def parzen_log_likelihood(samples: Tensor, points: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Log density (nats) at points [N, D] under Gaussians around samples [M, D], of each width: float64 [widths, N]."""
    scales = [math.log(len(samples)) + samples.shape[1] * math.log(s * math.sqrt(2 * math.pi)) for s in sigmas]
    parts = [
        torch.stack([(block / (-2 * s**2)).logsumexp(1) - scale for s, scale in zip(sigmas, scales, strict=True)])
        for block in squared_distances(points, samples)
    ]
    return torch.cat(parts, dim=1)


class PixelMetrics:
    """MMD and Parzen log-likelihood (`names`: "mmd", "parzen") of two sets of images, uint8 [N, C, H, W].

    MMD's bandwidth is the median distance between reals. The windows lie around the generated images; their width is
    the one of ten that is best for a tenth of the reals, and the value is the mean over the others, with its standard
    error, as Goodfellow et al. (2014) did.
    """

    def __init__(self, names: Collection[str], *, seed: int = 0) -> None:
        self.names = names
        self.seed = seed
        self._reals, self._fakes = RowStore(), RowStore()
        self._found: dict[str, object] = {}

    def add_reals(self, images: Tensor) -> None:
        self._reals.append(pixel_rows(images[: max(0, MOST - self._reals.count)]))

    def add_fakes(self, images: Tensor) -> None:
        self._fakes.append(pixel_rows(images[: max(0, MOST - self._fakes.count)]))

    def clear_fakes(self) -> None:
        self._fakes.close()
        self._fakes = RowStore()

    def settings(self) -> dict[str, object]:
        """Return what the values depend on beside images and seed; once there are values, also what was chosen."""
        return {"most_images": MOST, "largest_side": SIDE, **self._found}

    def values(self) -> dict[str, float]:
        """By name: mmd2; parzen_log_likelihood and parzen_standard_error, in nats. ValueError for too few images."""
        if min(self._reals.count, self._fakes.count) < 3:
            raise ValueError(
                f"{self._reals.count} real and {self._fakes.count} generated images: MMD and Parzen windows need 3 or"
                " more of each"
            )
        reals, fakes = (torch.from_numpy(store.array().copy()) for store in (self._reals, self._fakes))
        values = {}
        if "mmd" in self.names:
            bandwidth = self._found["mmd_bandwidth"] = median_distance(reals, self.seed)
            values["mmd2"] = mmd2(reals, fakes, bandwidth or 1.0)
        if "parzen" in self.names:
            validation = max(1, int(VALIDATION * len(reals)))
            tried = parzen_log_likelihood(fakes, reals[:validation], SIGMAS).mean(dim=1)
            sigma = SIGMAS[int(tried.argmax())]
            self._found |= {"parzen_sigma": sigma, "parzen_dimensions": reals.shape[1]}
            (found,) = parzen_log_likelihood(fakes, reals[validation:], [sigma])
            values["parzen_log_likelihood"] = found.mean().item()
            values["parzen_standard_error"] = (found.std() / math.sqrt(len(found))).item()
        return values

    def close(self) -> None:
        self._reals.close()
        self._fakes.close()
