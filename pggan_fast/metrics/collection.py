"""Metrics by name, fed together from one stream of images."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pggan_fast.metrics.features import STATISTICS, EfficientNetLite0, FeatureMetrics, Inception
from pggan_fast.metrics.msssim import Variation
from pggan_fast.metrics.pixels import PixelMetrics
from pggan_fast.metrics.swd import SlicedWasserstein
from pggan_fast.utils.errors import nearest

METRICS = {
    "swd": "sliced Wasserstein distance x 1000 by scale of detail, the paper's; low is good",
    "ms-ssim": "MS-SSIM between generated images, the paper's measure of variation; low is varied",
    "kid-lite0": "KID (EfficientNet-Lite0): kernel distance of ImageNet features; low is good",
    "fid": "Frechet Inception distance; low is good",
    "kid": "kernel Inception distance; low is good",
    "inception-score": "Inception Score, 10 splits; high is good",
    "precision-recall": "share of generated images that are realistic, and of reals that are covered",
    "mmd": "squared maximum mean discrepancy of small images' pixels; low is good",
    "parzen": "Parzen-window log-likelihood of small images' pixels, in nats; high is good",
}


class Metric(Protocol):
    """A consumer of batches uint8 [N, C, H, W] of two sets of images that gives values by name."""

    def add_reals(self, images: Tensor) -> None: ...

    def add_fakes(self, images: Tensor) -> None: ...

    def clear_fakes(self) -> None: ...

    def settings(self) -> dict[str, object]: ...

    def values(self) -> dict[str, float]: ...

    def close(self) -> None: ...


def metric_names(text: str) -> list[str]:
    """Return the metrics of a list with commas, in the order of METRICS. Raises ValueError for an unknown name."""
    asked = [name.strip() for name in text.split(",") if name.strip()]
    for name in asked:
        if name not in METRICS:
            raise ValueError(f"metric {name}: must be one of: {', '.join(METRICS)}{nearest(name, METRICS)}")
    return [name for name in METRICS if name in asked]


class MetricSet:
    """The metrics `names` of one pair of sets of images.

    Raises ValueError, in a line that says how to get it, if one needs a library or weights that are not there.
    Their temporary files go with `close`, or at the end of a with block.
    """

    def __init__(
        self,
        names: Collection[str],
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
        inception_weights: Path | None = None,
    ) -> None:
        device = torch.device(device)
        self._metrics: dict[str, Metric] = {}
        if "swd" in names:
            self._metrics["swd"] = SlicedWasserstein(seed=seed, device=device)
        if "ms-ssim" in names:
            self._metrics["ms-ssim"] = Variation(device)
        if "kid-lite0" in names:
            lite0 = EfficientNetLite0(device)
            self._metrics["kid-lite0"] = FeatureMetrics(lite0, ["kid"], seed=seed, device=device, suffix="_lite0")
        if through_inception := [name for name in STATISTICS if name in names]:
            inception = Inception(device, inception_weights)
            self._metrics["inception"] = FeatureMetrics(inception, through_inception, seed=seed, device=device)
        if on_pixels := [name for name in ("mmd", "parzen") if name in names]:
            self._metrics["pixels"] = PixelMetrics(on_pixels, seed=seed)

    def add_reals(self, images: Tensor | np.ndarray, rows: Mapping[str, dict[str, Tensor]] | None = None) -> None:
        """Add reals. `rows`, if given, is what `look` found in them; {} for none that is to be added."""
        for name, metric in self._metrics.items():
            if rows is None or not isinstance(metric, FeatureMetrics):
                metric.add_reals(_tensor(images))
            elif name in rows:
                metric.add_real_rows(rows[name]["features"])

    def add_fakes(self, images: Tensor | np.ndarray, rows: Mapping[str, dict[str, Tensor]] | None = None) -> None:
        """Add generated images. `rows`, if given, is what `look` found in them."""
        for name, metric in self._metrics.items():
            if rows is None or not isinstance(metric, FeatureMetrics):
                metric.add_fakes(_tensor(images))
            else:
                metric.add_fake_rows(rows[name])

    def feature_metrics(self) -> dict[str, FeatureMetrics]:
        """Return those that look at images through a network, by name."""
        return {name: metric for name, metric in self._metrics.items() if isinstance(metric, FeatureMetrics)}

    def needs_images(self) -> bool:
        """Return whether a metric looks at the pixels themselves."""
        return len(self.feature_metrics()) < len(self._metrics)

    def look(self, images: Tensor | np.ndarray) -> dict[str, dict[str, Tensor]]:
        """Return what each network finds in uint8 [N, C, H, W], by metric."""
        return {name: metric.look(_tensor(images)) for name, metric in self.feature_metrics().items()}

    def clear_fakes(self) -> None:
        """Forget the generated images, to compare others with the same reals."""
        for metric in self._all():
            metric.clear_fakes()

    def values(self) -> dict[str, float]:
        """Return all values by name; the distance's are swd_64, swd_32, ... and swd_average."""
        values = {}
        for name, metric in self._metrics.items():
            prefix = "swd_" if name == "swd" else ""
            values |= {prefix + key: value for key, value in metric.values().items()}
        return values

    def settings(self) -> dict[str, dict[str, object]]:
        """Return what the values depend on besides images and seed, by metric."""
        return {name: metric.settings() for name, metric in self._metrics.items()}

    def close(self) -> None:
        for metric in self._all():
            metric.close()

    def __enter__(self) -> MetricSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _all(self) -> Iterable[Metric]:
        return self._metrics.values()


def _tensor(images: Tensor | np.ndarray) -> Tensor:
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.require(images, requirements="CW"))  # mapped files may be read-only
    return images
