"""Metrics that judge images: the paper's sliced Wasserstein distance and MS-SSIM."""

from pggan_fast.metrics.msssim import ms_ssim
from pggan_fast.metrics.swd import SlicedWasserstein, sliced_wasserstein, sliced_wasserstein_of

__all__ = ["SlicedWasserstein", "ms_ssim", "sliced_wasserstein", "sliced_wasserstein_of"]
