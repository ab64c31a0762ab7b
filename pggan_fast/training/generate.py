"""Images from a trained generator, each from a seed of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pggan_fast.networks import Generator
from pggan_fast.training.checkpoint import checkpoints, load_checkpoint
from pggan_fast.training.device import find_device
from pggan_fast.training.errors import UserError
from pggan_fast.training.images import grid, save_png
from pggan_fast.training.options import option
from pggan_fast.training.run import config_file
from pggan_fast.training.samples import generate, latents
from pggan_fast.training.weights import load_generator


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of `pggan-fast generate`."""

    out: Path = option(help="folder for the images, one PNG per seed")
    run: Path | None = option(None, help="a run: its final weights or, before that, its newest checkpoint")
    weights: Path | None = option(None, help="or a generator.safetensors with its .json beside it")
    count: int = option(16, help="how many images")
    seed: int = option(0, help="of the first image; the next ones count up")
    label: str | None = option(None, help="class name or number (default: all classes in turn)")
    grid: bool = option(False, help="one grid.png with all images instead of one file each")
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"--count {self.count}: must be 1 or more")
        if (self.run is None) == (self.weights is None):
            raise UserError("--run or --weights: exactly one of them must be given")


def generate_images(config: GenerateConfig) -> list[Path]:
    """Write the images and return their paths. Raises UserError before it would overwrite one."""
    G, facts = load_generator(config.weights) if config.weights else _from_run(config.run)
    seeds = range(config.seed, config.seed + config.count)
    names = ["grid.png"] if config.grid else [f"seed{seed:06d}.png" for seed in seeds]
    paths = [config.out / name for name in names]
    for path in paths:
        if path.exists():
            raise UserError(f"--out {config.out}: holds {path.name} already; choose another folder or seed")

    device = find_device(config.device)
    G = G.to(device, memory_format=torch.channels_last).eval()
    z = torch.cat([latents(G, 1, seed) for seed in seeds])
    labels = _labels(config, facts["classes"], G.label_dim, device)
    alpha = torch.tensor(facts["alpha"], device=device) if facts["alpha"] < 1 else 1.0
    images = generate(G, z, labels, resolution=facts["resolution"], alpha=alpha)
    if config.grid:
        images = [grid(images, columns=math.ceil(math.sqrt(config.count)))]
    for path, image in zip(paths, images, strict=True):
        save_png(path, image)
    return paths


def _from_run(run: Path) -> tuple[Generator, dict[str, Any]]:
    """The averaged generator of a run and its facts."""
    final = run / "final" / "generator.safetensors"
    if final.is_file():
        return load_generator(final)
    if not config_file(run).is_file():
        raise UserError(f"--run {run}: holds no run (no config.json)")
    saved = checkpoints(run / "checkpoints")
    if not saved:
        raise UserError(f"--run {run}: has neither final weights nor a checkpoint yet")
    state = load_checkpoint(saved[-1])
    G = Generator(**state["generator"]["options"])
    G.load_state_dict(state["step"]["G_ema"])
    return G, state["generator"]


def _labels(config: GenerateConfig, classes: list[str], label_dim: int, device: torch.device) -> torch.Tensor | None:
    """Class indices, int64 [count], or None for a generator without labels."""
    if not label_dim:
        if config.label is not None:
            raise UserError(f"--label {config.label}: this generator was trained without labels")
        return None
    if config.label is None:
        return torch.arange(config.count, device=device) % label_dim
    if config.label in classes:
        index = classes.index(config.label)
    elif config.label.isdecimal() and int(config.label) < label_dim:
        index = int(config.label)
    else:
        known = ", ".join(classes) or "names unknown"
        raise UserError(f"--label {config.label}: must be 0 to {label_dim - 1} or one of: {known}")
    return torch.full((config.count,), index, device=device)
