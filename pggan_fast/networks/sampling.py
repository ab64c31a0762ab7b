"""Latents from a seed, and images from latents."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pggan_fast.networks.generator import Generator
from pggan_fast.ops import cache_folded_weights
from pggan_fast.utils.images import to_uint8

CHUNK = 16  # images at once


def generate(
    G: Generator,
    z: Tensor,
    labels: Tensor | None,
    *,
    resolution: int | None = None,
    alpha: float | Tensor = 1.0,
    batch_size: int = CHUNK,
) -> np.ndarray:
    """Return uint8 images [N, H, W, C] of latents z [N, latent_dim]; labels int64 [N] if G takes any."""
    images = []
    with torch.no_grad(), cache_folded_weights():
        for start in range(0, len(z), batch_size):
            part = slice(start, start + batch_size)
            chosen = labels[part] if labels is not None else None
            images.append(to_uint8(G(z[part], chosen, resolution=resolution, alpha=alpha)))
    return np.concatenate(images)


def latents(G: Generator, count: int, seed: int) -> Tensor:
    """[count, latent_dim] on G's device; sampled on the CPU, so that every device gets the same."""
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(count, G.latent_dim, generator=random)
    return z.to(next(G.parameters()).device)
