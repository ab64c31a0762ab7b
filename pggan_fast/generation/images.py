"""Images from a trained generator, each from a seed of its own."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pggan_fast.generation.editing import latents_option, move_option, offset_of, parse_moves, paths_of, read_latents
from pggan_fast.generation.trained import (
    alpha_of,
    check_run_or_weights,
    fixed_label,
    generator_of_run,
    run_option,
    trained_generator,
    weights_option,
)
from pggan_fast.interop.weights import load_generator
from pggan_fast.networks import Generator
from pggan_fast.networks.sampling import CHUNK, generate
from pggan_fast.utils.device import find_device
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.images import grid, save_png
from pggan_fast.utils.memory import advice_when_out_of_memory
from pggan_fast.utils.options import check_options, option
from pggan_fast.utils.output_file import check_output_file, check_parent
from pggan_fast.utils.progress_bar import bar_over

HIGHEST_SEED = 1 << 63
# From here on latents are sampled again by a loop of our own, which a seed means the same by under every torch and in
# exported pages; below, torch's way takes fewer tries.
LEAST_RESAMPLED = 0.5
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")  # of files, not of folders
MOST_IMAGES = 10_000_000  # whose files' names still fit in memory


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of `pggan-fast generate`."""

    out: Path = option(
        help="Folder for the images, one PNG per seed; with --grid a .png file too.",
        metavar="PATH",
        group="generator and output",
    )
    run: Path | None = run_option()
    weights: Path | None = weights_option()
    ensemble: str | None = option(
        None,
        help="More runs or weights files, comma-separated, that take turns with the first, by seed.",
        metavar="PATH,...",
    )
    device: str = option("auto", help="Device to generate on: auto, cpu, cuda, cuda:N, xpu or mps.", metavar="NAME")
    batch_size: int = option(CHUNK, min=1, max=1 << 20, help="Number of images that are generated at once.")
    count: int = option(16, min=1, max=MOST_IMAGES, help="Number of images.", group="images")
    seed: int = option(0, help="Seed of the first image; the following ones count up.")
    latents: str | None = latents_option(
        "Latents to generate images of, .npy files as project writes them, in place of seeds."
    )
    move: str | None = move_option()
    label: str | None = option(
        None,
        help="Name or number of a class (default: the seed modulo the number of classes; that of project's latents).",
        metavar="CLASS",
    )
    truncation: float | None = option(
        None,
        above=0,
        help="Bound of the latents' components; those beyond plus or minus it are sampled again (default: none).",
    )
    grid: bool = option(
        False, help="Write all images as one, to --out if it ends in .png, else to grid.png in the folder --out."
    )

    def __post_init__(self) -> None:
        check_options(self)
        check_seeds(self.seed, self.count)
        check_run_or_weights(self.run, self.weights)
        if self.out.suffix.lower() in IMAGE_ENDINGS and not self.out.is_dir() and not self.writes_grid_to_out:
            allowed = (
                "must be a folder or end in .png" if self.grid else "must be a folder; --grid writes one .png file"
            )
            raise UserError(f"--out {self.out}: {allowed}")
        if self.move is not None:
            parse_moves(self.move)
        if self.latents is not None:
            for name in ("ensemble", "count", "seed", "truncation"):
                if getattr(self, name) != getattr(GenerateConfig, name):
                    raise UserError(f"--{name} {getattr(self, name)}: not with --latents")

    @property
    def writes_grid_to_out(self) -> bool:
        """Whether `out` is the file of the grid, and no folder."""
        return self.grid and self.out.suffix.lower() == ".png" and not self.out.is_dir()


def check_seeds(first: int, count: int) -> None:
    """Raise UserError unless torch takes all `count` seeds from `first` on."""
    if not -HIGHEST_SEED <= first <= HIGHEST_SEED - count:
        raise UserError(f"--seed {first}: must be from -2**63 to 2**63 - 1, as must be the {count} seeds from it on")


def generate_images(config: GenerateConfig) -> list[Path]:
    """Write the images as they are generated and return their paths.

    Raises UserError before it would overwrite one, and if memory runs out; KeyboardInterrupt says how many are written.
    """
    advice = "--batch-size N below {}, --device cpu{}".format(
        config.batch_size, ", a lower --count, no --grid" if config.grid else ""
    )
    with advice_when_out_of_memory(advice):
        members = [trained_generator(config.run, config.weights)]
        if config.ensemble is not None:
            members += [_load(path) for path in paths_of("--ensemble", config.ensemble)]
            _check_alike(config, members)
        given = None
        if config.latents is not None:
            G, metadata = members[0]
            given = read_latents(config.latents, G, metadata["classes"], config.label)
        count = config.count if given is None else len(given[0])
        paths = _free_paths(config, count)
        images = _images(config, members, given, find_device(config.device))
        if config.grid:
            ordered = dict(bar_over(images, "images", total=count))
            stacked = np.stack([ordered[index] for index in range(count)])
            save_png(paths[0], grid(stacked, columns=math.ceil(math.sqrt(count))))
            return paths
        written = 0
        try:
            for index, image in bar_over(images, "images", total=count):
                save_png(paths[index], image)
                written += 1
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{written:,} of {count:,} images written to {config.out}") from None
    return paths


def _free_paths(config: GenerateConfig, count: int) -> list[Path]:
    """Return the files to write, of which none exists. Raises UserError."""
    if config.writes_grid_to_out:
        check_output_file(config.out)
        return [config.out]
    check_parent(config.out / "grid.png", f"--out {config.out}")
    numbers, of = range(config.seed, config.seed + count), "seed" if config.latents is None else "latent"
    names = ["grid.png"] if config.grid else [f"{of}{number:06d}.png" for number in numbers]
    there = {entry.name for entry in os.scandir(config.out)} if config.out.is_dir() else set()
    for name in names:
        if name in there:
            raise UserError(
                f"--out {config.out}: holds {name} already; choose another folder{' or seed' * (of == 'seed')}"
            )
    return [config.out / name for name in names]


def _images(
    config: GenerateConfig,
    members: list[tuple[Generator, dict[str, Any]]],
    given: tuple[torch.Tensor, list[int] | None] | None,
    device: torch.device,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, uint8 image [H, W, C]) of all images, one generator's after the other's.

    They are of seeds, or of `given` latents [N, latent_dim] with their classes, whose indices are then the seeds.
    """
    G, metadata = members[0]
    turns = max(1, G.label_dim)
    label = fixed_label(config.label, metadata["classes"], G.label_dim)
    count = config.count if given is None else len(given[0])
    for position, (G, metadata) in enumerate(members):
        # By seed, so that one gives the same image whatever else is asked for, and each generator has all classes.
        seeds = [seed for seed in range(config.seed, config.seed + count) if seed // turns % len(members) == position]
        G = G.to(device, memory_format=torch.channels_last).eval()
        alpha, offset = alpha_of(metadata, device), offset_of(G, config.move)
        for start in range(0, len(seeds), config.batch_size):
            batch = seeds[start : start + config.batch_size]
            if given is None:
                z = torch.cat([_latent(G.latent_dim, seed, config.truncation) for seed in batch])
                labels = labels_of_seeds(batch, G.label_dim, label, device)
            else:
                z = given[0][batch]
                labels = None if given[1] is None else torch.tensor([given[1][index] for index in batch], device=device)
            z = z if offset is None else z + offset
            images = generate(
                G, z.to(device), labels, resolution=metadata["resolution"], alpha=alpha, batch_size=len(batch)
            )
            yield from ((seed - config.seed, image) for seed, image in zip(batch, images, strict=True))
        G.cpu()  # one generator at a time on the device


def _latent(size: int, seed: int, truncation: float | None) -> torch.Tensor:
    """Sample N(0, 1), cut off at +-truncation (Brock et al. 2019, section 3.1): [1, size], the same on every device."""
    random = torch.Generator().manual_seed(seed)
    if truncation is None:
        return torch.randn(1, size, generator=random)
    if truncation >= LEAST_RESAMPLED:
        z = torch.randn(1, size, generator=random)
        while (beyond := z.abs() > torch.tensor(truncation, dtype=z.dtype)).any():
            z = torch.where(beyond, torch.randn(1, size, generator=random), z)
        return z
    return torch.nn.init.trunc_normal_(torch.empty(1, size), a=-truncation, b=truncation, generator=random)


def _load(path: Path) -> tuple[Generator, dict[str, Any]]:
    return (load_generator if path.suffix == ".safetensors" else generator_of_run)(path, "--ensemble")


def _check_alike(config: GenerateConfig, members: list[tuple[Generator, dict[str, Any]]]) -> None:
    """Raise UserError unless all make images of one kind from latents of one size."""
    for what, values in {
        "image sizes": [(metadata["resolution"], G.base) for G, metadata in members],
        "image channels": [G.image_channels for G, _ in members],
        "latent sizes": [G.latent_dim for G, _ in members],
        "classes": [(G.label_dim, metadata["classes"]) for G, metadata in members],
    }.items():
        if any(value != values[0] for value in values):
            raise UserError(f"--ensemble {config.ensemble}: {what} differ between the generators, must be the same")


def labels_of_seeds(
    seeds: Sequence[int], label_dim: int, label: int | None, device: torch.device
) -> torch.Tensor | None:
    """Return class indices, int64 [N]: `label` or, for None, each seed modulo the number of classes.

    None for a generator without labels.
    """
    if not label_dim:
        return None
    return torch.tensor([seed % label_dim if label is None else label for seed in seeds], device=device)
