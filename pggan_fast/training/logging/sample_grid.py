"""The sample grids of a run: the same latents every time, drawn with the averaged generator."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pggan_fast.networks import Generator
from pggan_fast.networks.resolutions import LOWEST
from pggan_fast.networks.sampling import generate, latents
from pggan_fast.training.schedule import Stage
from pggan_fast.utils.images import SMALLEST_TILE, grid

GRID_PIXELS = 1024  # as wide as this, with at least 3 and at most 12 columns


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
