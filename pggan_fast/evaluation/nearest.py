"""The real images nearest to generated ones, as a grid: a generator that copies its data shows it there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pggan_fast.evaluation.sources import Source, TooFewImages
from pggan_fast.metrics.features import EfficientNetLite0
from pggan_fast.utils.images import grid, save_png
from pggan_fast.utils.progress_bar import bar_over

ROWS, NEIGHBOURS = 10, 7
Rows = Callable[[np.ndarray], Tensor]


def save_nearest(
    path: Path, images: Source, reals: Source, *, count: int, device: torch.device, batch_size: int
) -> str:
    """Write a grid: the first ROWS of `count` images, each followed by its NEIGHBOURS nearest among all of `reals`.

    Distances are of EfficientNet-Lite0's features where it is installed and takes the images, else of pixels; the one
    that was taken is returned.
    """
    rows, kind = _find_rows(images.channels, device)
    shown = images.take(0, min(ROWS, count))  # [rows, C, H, W]
    shown_rows = rows(shown)
    distances = torch.full((len(shown), 0), torch.inf)
    found: list[list[np.ndarray]] = [[] for _ in shown]  # of each row its nearest so far
    for start in bar_over(range(0, reals.count, batch_size), "nearest reals, in batches"):
        try:
            batch = reals.take(start, min(start + batch_size, reals.count))
        except TooFewImages as error:  # files that cannot be read: the others count
            if error.count <= start:
                break
            batch = reals.take(start, error.count)
        distances = torch.cat([distances, torch.cdist(shown_rows, rows(batch))], dim=1)
        order = distances.argsort(dim=1, stable=True)[:, :NEIGHBOURS]
        distances = distances.gather(1, order)
        found = [
            [row[index] if index < len(row) else batch[index - len(row)] for index in chosen]
            for row, chosen in zip(found, order.tolist(), strict=True)
        ]
    table = np.stack([np.stack([image, *row]) for image, row in zip(shown, found, strict=True)])
    # [rows, 1 + neighbours, C, H, W] to [images, H, W, C], row by row
    save_png(path, grid(table.reshape(-1, *table.shape[2:]).transpose(0, 2, 3, 1), columns=table.shape[1]))
    return kind


def _find_rows(channels: int, device: torch.device) -> tuple[Rows, str]:
    """Return a function from uint8 [N, C, H, W] to rows [N, D] that are compared, and its name."""
    if channels in (1, 3):
        try:
            network = EfficientNetLite0(device)
        except ValueError:
            pass
        else:

            def features(images: np.ndarray) -> Tensor:
                pixels = torch.from_numpy(np.ascontiguousarray(images)).to(device).expand(-1, 3, -1, -1)
                with torch.no_grad():
                    return torch.cat([network(part)["features"].float().cpu() for part in pixels.split(32)])

            return features, f"features of {network.name}"
    return lambda images: torch.from_numpy(images.reshape(len(images), -1).astype(np.float32)), "pixels"
