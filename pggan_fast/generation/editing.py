"""Latents from files, as `project` writes them, and latents moved along a generator's principal directions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pggan_fast.data.npy import read_npy
from pggan_fast.generation.directions import principal_directions
from pggan_fast.generation.trained import fixed_label
from pggan_fast.networks.base import BaseGenerator
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.options import option
from pggan_fast.utils.schema import read_json

FARTHEST = 1e6  # of a move: latents are some units long
FORM = f"K:X,... with each direction K, from 1 on, once, and a distance X of at most {FARTHEST:g}"


def latents_option(help: str) -> Any:
    """The option --latents of a command that generates images."""
    return option(None, help=help, metavar="FILE,...")


def move_option() -> Any:
    """The option --move of a command that generates images."""
    text = "Move every latent along the generator's principal directions, numbered from 1: 1:2.5,3:-1 (default: none)."
    return option(None, help=text, metavar="K:X,...")


def read_latents(
    files: str, G: BaseGenerator, classes: list[str], label: str | None
) -> tuple[Tensor, list[int] | None]:
    """Return the latents [N, latent_dim], fp32, of comma-separated .npy files, and the class of each.

    A file holds one latent [latent_dim] or several [N, latent_dim]. Their class is `label` or else that in the
    projection.json beside the file. None for a generator without classes. Raises UserError.
    """
    found, labels = [], []
    for path in paths_of("--latents", files):
        z = _read(path, G.latent_dim)
        found.append(z)
        if G.label_dim:
            labels += [_label_of(path, classes, G.label_dim, label)] * len(z)
    if not G.label_dim:
        fixed_label(label, classes, 0)  # refuses one
    return torch.cat(found), labels or None


def paths_of(option: str, text: str) -> list[Path]:
    """Return the paths of a list with commas. Raises UserError, naming `option`, for an empty one."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UserError(f"{option} {text}: must be paths with commas between them, one is empty")
    return [Path(name) for name in names]


def _read(path: Path, size: int) -> Tensor:
    try:
        values = read_npy(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"--latents {path}: cannot be read ({reason})") from error
    if values.ndim not in (1, 2) or values.shape[-1] != size or values.dtype.kind not in "fiu":
        shape = "x".join(map(str, values.shape)) or "none"
        raise UserError(
            f"--latents {path}: {values.dtype} of shape {shape}, must be numbers of shape {size} or Nx{size}"
        )
    if not len(values):
        raise UserError(f"--latents {path}: holds no latents")
    with np.errstate(over="ignore"):
        z = torch.from_numpy(values.astype(np.float32).reshape(-1, size))
    if not z.isfinite().all():
        raise UserError(f"--latents {path}: must be finite numbers")
    return z


def _label_of(path: Path, classes: list[str], label_dim: int, label: str | None) -> int:
    if label is not None:
        return fixed_label(label, classes, label_dim)
    beside = path.with_name("projection.json")
    if not beside.is_file():
        raise UserError(f"--latents {path}: has no projection.json beside it that names a class; give --label CLASS")
    named = read_json(beside, {"label": _problem_of_class})["label"]
    try:
        return fixed_label(str(named), classes, label_dim)
    except UserError as error:
        raise UserError(f"{beside}: its class is another generator's ({error}); give --label CLASS") from error


def _problem_of_class(value: Any) -> str | None:
    return None if type(value) in (str, int) else "the name or number of a class"


def parse_moves(text: str) -> dict[int, float]:
    """Return {direction: distance} of "K:X,...", directions from 1 on, each once. Raises UserError."""
    moves: dict[int, float] = {}
    for entry in text.split(","):
        number, colon, distance = entry.strip().partition(":")
        try:
            value = float(distance)
        except ValueError:
            value = math.nan
        known = colon and number.isascii() and number.isdecimal() and len(number) < 8 and int(number) > 0
        if not known or int(number) in moves or not abs(value) <= FARTHEST:
            raise UserError(f"--move {text}: must be {FORM}")
        moves[int(number)] = value
    return moves


def offset_of(G: BaseGenerator, text: str | None) -> Tensor | None:
    """Return what `--move` adds to every latent, [latent_dim], fp32; None for nothing. Raises UserError."""
    if text is None:
        return None
    moves = parse_moves(text)
    if max(moves) > G.latent_dim:
        raise UserError(f"--move {text}: direction {max(moves)}, this generator has {G.latent_dim}")
    directions = principal_directions(G, max(moves))
    return torch.tensor(list(moves.values())) @ directions[[number - 1 for number in moves]]
