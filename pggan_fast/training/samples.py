"""The sample grids of a run: the same latents every time, drawn with the averaged generator."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pggan_fast.networks import Generator
from pggan_fast.ops import kept_weights
from pggan_fast.training.dataset import LOWEST
from pggan_fast.training.images import SMALLEST_TILE, grid, to_uint8
from pggan_fast.training.schedule import Stage

GRID_PIXELS = 1024  # as wide as this, with at least 3 and at most 12 columns
CHUNK = 16  # images at once


def generate(
    G: Generator,
    z: Tensor,
    labels: Tensor | None,
    *,
    resolution: int | None = None,
    alpha: float | Tensor = 1.0,
) -> np.ndarray:
    """uint8 images [N, H, W, C] of latents z [N, latent_dim]; labels int64 [N] if G takes any."""
    images = []
    with torch.no_grad(), kept_weights():
        for start in range(0, len(z), CHUNK):
            part = slice(start, start + CHUNK)
            chosen = labels[part] if labels is not None else None
            images.append(to_uint8(G(z[part], chosen, resolution=resolution, alpha=alpha)))
    return np.concatenate(images)


def latents(G: Generator, count: int, seed: int) -> Tensor:
    """[count, latent_dim] on G's device; drawn on the CPU, so that every device gets the same."""
    random = torch.Generator().manual_seed(seed)
    z = torch.randn(count, G.latent_dim, generator=random)
    return z.to(next(G.parameters()).device)


class SampleGrid:
    """Fixed latents and labels; with classes, one row of the grid for each."""

    def __init__(self, G: Generator, seed: int) -> None:
        side = max(SMALLEST_TILE, G.resolution)
        self.columns = min(12, max(3, GRID_PIXELS // (side * G.base[1] // LOWEST)))
        rows = G.label_dim or max(2, self.columns * 2 // 3)
        self.z = latents(G, rows * self.columns, seed)
        self.labels = None
        if G.label_dim:
            self.labels = torch.arange(rows, device=self.z.device).repeat_interleave(self.columns)
        self.tile = side

    def draw(self, G: Generator, stage: Stage, alpha: float | Tensor) -> np.ndarray:
        """The grid as uint8 [H, W, C]; smaller resolutions are enlarged to G's own."""
        images = generate(G, self.z, self.labels, resolution=stage.resolution, alpha=alpha)
        return grid(images, self.columns, self.tile)
