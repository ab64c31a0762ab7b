"""Metrics of images: the paper's sliced Wasserstein distance and MS-SSIM, and others' by kept libraries."""

from pggan_fast.metrics.collection import METRICS, MetricSet, metric_names
from pggan_fast.metrics.msssim import ms_ssim
from pggan_fast.metrics.pixels import mmd2, parzen_log_likelihood
from pggan_fast.metrics.swd import SlicedWasserstein, sliced_wasserstein, sliced_wasserstein_of

__all__ = [
    "METRICS",
    "MetricSet",
    "SlicedWasserstein",
    "metric_names",
    "mmd2",
    "ms_ssim",
    "parzen_log_likelihood",
    "sliced_wasserstein",
    "sliced_wasserstein_of",
]
