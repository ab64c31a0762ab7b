"""Images from a trained generator, each from a seed of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pggan_fast.interop.weights import load_generator
from pggan_fast.networks import Generator
from pggan_fast.networks.sampling import generate
from pggan_fast.training.checkpoint import checkpoints, load_run_checkpoint
from pggan_fast.training.run_folder import config_file
from pggan_fast.utils.device import find_device
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.images import grid, save_png
from pggan_fast.utils.options import option


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of `pggan-fast generate`."""

    out: Path = option(help="folder for the images, one PNG per seed")
    run: Path | None = option(None, help="a run: its final weights or, before that, its newest checkpoint")
    weights: Path | None = option(None, help="or a generator.safetensors with its .json beside it")
    count: int = option(16, help="how many images")
    seed: int = option(0, help="of the first image; the next ones count up")
    label: str | None = option(None, help="class name or number (default: all classes in turn)")
    truncation: float | None = option(None, help="draw latent components beyond plus or minus this anew")
    ensemble: str | None = option(None, help="more runs or weights files, comma-separated, that draw in turn")
    grid: bool = option(False, help="one grid.png with all images instead of one file each")
    device: str = option("auto", help="auto, cpu, cuda or cuda:N")

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"--count {self.count}: must be 1 or more")
        if (self.run is None) == (self.weights is None):
            raise UserError("--run or --weights: exactly one of them must be given")
        if self.truncation is not None and self.truncation <= 0:
            raise UserError(f"--truncation {self.truncation}: must be above 0")


def generate_images(config: GenerateConfig) -> list[Path]:
    """Write the images and return their paths. Raises UserError before it would overwrite one."""
    members = [load_generator(config.weights) if config.weights else generator_of_run(config.run)]
    if config.ensemble:
        members += [_load(Path(path.strip())) for path in config.ensemble.split(",")]
        _check_alike(config, members)
    seeds = range(config.seed, config.seed + config.count)
    names = ["grid.png"] if config.grid else [f"seed{seed:06d}.png" for seed in seeds]
    paths = [config.out / name for name in names]
    for path in paths:
        if path.exists():
            raise UserError(f"--out {config.out}: holds {path.name} already; choose another folder or seed")

    device = find_device(config.device)
    G, facts = members[0]
    z = torch.cat([_latent(G.latent_dim, seed, config.truncation) for seed in seeds]).to(device)
    labels = chosen_labels(config.label, config.count, facts["classes"], G.label_dim, device)
    images: list[Any] = [None] * config.count
    for index, (G, facts) in enumerate(members):
        # By seed, so that one gives the same image whatever else is asked for, and each draws all classes in turn.
        places = [i for i, seed in enumerate(seeds) if seed // max(1, G.label_dim) % len(members) == index]
        if not places:
            continue
        G = G.to(device, memory_format=torch.channels_last).eval()
        alpha = torch.tensor(facts["alpha"], device=device) if facts["alpha"] < 1 else 1.0
        chosen = None if labels is None else labels[places]
        drawn = generate(G, z[places], chosen, resolution=facts["resolution"], alpha=alpha)
        for place, image in zip(places, drawn, strict=True):
            images[place] = image
    if config.grid:
        images = [grid(np.stack(images), columns=math.ceil(math.sqrt(config.count)))]
    for path, image in zip(paths, images, strict=True):
        save_png(path, image)
    return paths


def _latent(size: int, seed: int, truncation: float | None) -> torch.Tensor:
    """N(0, 1), cut off at +-truncation (Brock et al. 2019, section 3.1), [1, size]; the same on every device."""
    random = torch.Generator().manual_seed(seed)
    if truncation is None:
        return torch.randn(1, size, generator=random)
    return torch.nn.init.trunc_normal_(torch.empty(1, size), a=-truncation, b=truncation, generator=random)


def _load(path: Path) -> tuple[Generator, dict[str, Any]]:
    return load_generator(path) if path.suffix == ".safetensors" else generator_of_run(path)


def _check_alike(config: GenerateConfig, members: list[tuple[Generator, dict[str, Any]]]) -> None:
    """Raises UserError unless all make images of one kind from latents of one size."""
    for what, values in {
        "image sizes": [(facts["resolution"], G.base) for G, facts in members],
        "image channels": [G.image_channels for G, _ in members],
        "latent sizes": [G.latent_dim for G, _ in members],
        "classes": [(G.label_dim, facts["classes"]) for G, facts in members],
    }.items():
        if any(value != values[0] for value in values):
            raise UserError(f"--ensemble {config.ensemble}: {what} differ between the generators, must be the same")


def generator_of_run(run: Path) -> tuple[Generator, dict[str, Any]]:
    """The averaged generator of a run and its facts. Raises UserError if there is none."""
    final = run / "final" / "generator.safetensors"
    if final.is_file():
        return load_generator(final)
    if not config_file(run).is_file():
        raise UserError(f"--run {run}: holds no run (no config.json)")
    saved = checkpoints(run / "checkpoints")
    if not saved:
        raise UserError(f"--run {run}: has neither final weights nor a checkpoint yet")
    state = load_run_checkpoint(saved[-1])
    try:
        G = Generator(**state["generator"]["options"])
        G.load_state_dict(state["step"]["G_ema"])
    except (RuntimeError, TypeError, ValueError, ArithmeticError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint {saved[-1]}: its weights fit no generator ({reason})") from error
    return G, state["generator"]


def chosen_labels(
    label: str | None, count: int, classes: list[str], label_dim: int, device: torch.device
) -> torch.Tensor | None:
    """Class indices, int64 [count], of the class `label` (name or number) or, for None, of all in turn.

    None for a generator without labels. Raises UserError if it does not know `label`.
    """
    if not label_dim:
        if label is not None:
            raise UserError(f"--label {label}: this generator was trained without labels")
        return None
    if label is None:
        return torch.arange(count, device=device) % label_dim
    if label in classes:
        index = classes.index(label)
    elif label.isdecimal() and int(label) < label_dim:
        index = int(label)
    else:
        known = ", ".join(classes) or "names unknown"
        raise UserError(f"--label {label}: must be 0 to {label_dim - 1} or one of: {known}")
    return torch.full((count,), index, device=device)
