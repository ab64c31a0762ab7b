"""Videos of walks from latent to latent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast.generation.editing import latents_option, read_latents
from pggan_fast.generation.images import check_seeds, labels_of_seeds
from pggan_fast.generation.trained import (
    alpha_of,
    check_run_or_weights,
    fixed_label,
    run_option,
    trained_generator,
    weights_option,
)
from pggan_fast.generation.video import FASTEST, OUT_HELP, save_video, video_path
from pggan_fast.networks import Generator
from pggan_fast.networks.sampling import generate, latents
from pggan_fast.utils.device import find_device
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.images import grid, rgb_array
from pggan_fast.utils.memory import advice_when_out_of_memory
from pggan_fast.utils.options import check_options, option
from pggan_fast.utils.progress_bar import bar_over

MOST = 100_000  # latents, walks, frames between two latents: a video of weeks


@dataclass(frozen=True)
class InterpolateConfig:
    """Settings of `pggan-fast interpolate`."""

    out: Path = option(help=OUT_HELP, metavar="FILE", group="generator and output")
    run: Path | None = run_option()
    weights: Path | None = weights_option()
    device: str = option("auto", help="Device to generate on: auto, cpu, cuda, cuda:N, xpu or mps.", metavar="NAME")
    seed: int = option(0, help="Seed of the first latent; the following ones count up.", group="walks and frames")
    latents: str | None = latents_option(
        "Latents that one walk passes through, .npy files as project writes them, in place of seeds."
    )
    keys: int = option(
        6, min=2, max=MOST, help="Number of latents that each walk passes through; it ends where it begins."
    )
    count: int = option(1, min=1, max=MOST, help="Number of walks that are shown side by side.")
    frames: int = option(60, min=1, max=MOST, help="Number of frames from one latent to the next.")
    fps: float = option(30.0, above=0, max=FASTEST, help="Frames per second.")
    label: str | None = option(None, help="Name or number of a class (default: by seed, in turn).", metavar="CLASS")

    def __post_init__(self) -> None:
        check_options(self)
        check_seeds(self.seed, self.keys * self.count)
        if self.latents is not None:
            for name in ("seed", "keys", "count"):
                if getattr(self, name) != getattr(InterpolateConfig, name):
                    raise UserError(f"--{name} {getattr(self, name)}: not with --latents")
        check_run_or_weights(self.run, self.weights)


def interpolate(config: InterpolateConfig) -> Path:
    """Write the video and return its path. Raises UserError, with advice, if memory runs out."""
    with advice_when_out_of_memory("a lower --count, --frames or --keys, --device cpu"):
        return _interpolate(config)


def _interpolate(config: InterpolateConfig) -> Path:
    out = video_path(config.out, config.fps)
    G, metadata = trained_generator(config.run, config.weights)
    device = find_device(config.device)
    G = G.to(device, memory_format=torch.channels_last).eval()
    if config.latents is not None:
        keys, labels = _keys_from_files(config, config.latents, G, metadata["classes"], device)
    else:
        label = fixed_label(config.label, metadata["classes"], G.label_dim)
        # The class of a walk follows from its first seed; in steps of `keys`, so that walks side by side take turns.
        turns = [config.seed // config.keys + index for index in range(config.count)]
        labels = labels_of_seeds(turns, G.label_dim, label, device)
        seeds = range(config.seed, config.seed + config.keys * config.count)
        keys = torch.cat([latents(G, 1, seed) for seed in seeds]).unflatten(0, (config.count, config.keys))
    alpha = alpha_of(metadata, device)
    walks = torch.stack([walk(each, config.frames) for each in keys])

    def frames() -> Iterator[np.ndarray]:
        for step in bar_over(range(walks.shape[1]), "frames"):
            images = generate(G, walks[:, step], labels, resolution=metadata["resolution"], alpha=alpha)
            yield rgb_array(grid(images, columns=math.ceil(math.sqrt(config.count))))

    save_video(out, frames(), config.fps)
    return out


def _keys_from_files(
    config: InterpolateConfig, files: str, G: Generator, classes: list[str], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Return the latents of one walk [1, K, latent_dim] and its class [1]; None without classes. Raises UserError."""
    z, labels = read_latents(files, G, classes, config.label)
    if len(z) < 2:
        raise UserError(f"--latents {files}: one latent, must be two or more to walk between")
    if labels is None:
        return z[None].to(device), None
    if len(set(labels)) > 1:
        raise UserError(f"--latents {files}: are of several classes; give --label CLASS for the whole walk")
    return z[None].to(device), torch.tensor(labels[:1], device=device)


def walk(keys: Tensor, frames: int) -> Tensor:
    """Return latents [K * frames, D] that go from each of `keys` [K, D] to the next and from the last to the first.

    Along great circles, with the length going evenly from one's to the other's: the middle of two Gaussian
    latents is shorter than any latent the generator was trained on.
    """
    share = torch.arange(frames, device=keys.device, dtype=keys.dtype)[:, None] / frames
    parts = []
    for start, end in zip(keys, keys.roll(-1, dims=0), strict=True):
        a, b = F.normalize(start, dim=0), F.normalize(end, dim=0)  # zeros, which a file may hold, stay zeros
        angle = torch.acos((a @ b).clamp(-1, 1))
        rotated = torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b
        # Equal or opposite latents have no one great circle; they are as good as never sampled.
        direction = rotated / torch.sin(angle) if torch.sin(angle) > 1e-6 else a.expand(frames, -1)
        parts.append(direction * torch.lerp(start.norm(), end.norm(), share))
    return torch.cat(parts)
