"""A film of a walk from latent to latent."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pggan_fast.generation.images import chosen_labels, generator_of_run
from pggan_fast.generation.video import save_video, video_path
from pggan_fast.interop.weights import load_generator
from pggan_fast.networks.sampling import generate, latents
from pggan_fast.utils.device import find_device
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.images import grid, rgb_array
from pggan_fast.utils.options import option
from pggan_fast.utils.progress_bar import bar_over


@dataclass(frozen=True)
class InterpolateConfig:
    """Settings of `pggan-fast interpolate`."""

    out: Path = option(help="the .mp4 or .gif to write (without either: .mp4 if imageio-ffmpeg is installed)")
    run: Path | None = option(None, help="a run: its final weights or, before that, its newest checkpoint")
    weights: Path | None = option(None, help="or a generator.safetensors with its .json beside it")
    seed: int = option(0, help="of the first latent; the next ones count up")
    keys: int = option(6, help="latents that each walk passes through; it ends where it begins")
    count: int = option(1, help="walks side by side")
    frames: int = option(60, help="frames from one latent to the next")
    fps: float = option(30.0, help="frames per second")
    label: str | None = option(None, help="class name or number (default: all classes in turn)")
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")

    def __post_init__(self) -> None:
        for name, least in (("keys", 2), ("count", 1), ("frames", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)}: must be {least} or more")
        if (self.run is None) == (self.weights is None):
            raise UserError("--run or --weights: exactly one of them must be given")


def interpolate(config: InterpolateConfig) -> Path:
    """Write the film and return its path."""
    out = video_path(config.out, config.fps)
    G, facts = load_generator(config.weights) if config.weights else generator_of_run(config.run)
    device = find_device(config.device)
    G = G.to(device, memory_format=torch.channels_last).eval()
    labels = chosen_labels(config.label, config.count, facts["classes"], G.label_dim, device)
    alpha = torch.tensor(facts["alpha"], device=device) if facts["alpha"] < 1 else 1.0
    seeds = range(config.seed, config.seed + config.keys * config.count)
    keys = torch.cat([latents(G, 1, seed) for seed in seeds]).unflatten(0, (config.count, config.keys))
    walks = torch.stack([walk(each, config.frames) for each in keys])

    def frames() -> Iterator[np.ndarray]:
        for step in bar_over(range(walks.shape[1]), "frames"):
            images = generate(G, walks[:, step], labels, resolution=facts["resolution"], alpha=alpha)
            yield rgb_array(grid(images, columns=math.ceil(math.sqrt(config.count))))

    save_video(out, frames(), config.fps)
    return out


def walk(keys: Tensor, frames: int) -> Tensor:
    """Latents [K * frames, D] that go from each of `keys` [K, D] to the next and from the last to the first.

    Along great circles, with the length going evenly from one's to the other's: the middle of two Gaussian
    latents is shorter than any latent the generator was trained on.
    """
    share = torch.arange(frames, device=keys.device, dtype=keys.dtype)[:, None] / frames
    parts = []
    for start, end in zip(keys, keys.roll(-1, dims=0), strict=True):
        a, b = start / start.norm(), end / end.norm()
        angle = torch.acos((a @ b).clamp(-1, 1))
        turned = torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b
        # Equal or opposite latents have no one great circle; they are as good as never drawn.
        direction = turned / torch.sin(angle) if torch.sin(angle) > 1e-6 else a.expand(frames, -1)
        parts.append(direction * torch.lerp(start.norm(), end.norm(), share))
    return torch.cat(parts)
