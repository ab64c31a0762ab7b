"""Trained generators, of a run or of a weights file, and what commands that take either one have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pggan_fast.interop.weights import find_problem_of_generator, generator_from_weights, load_generator
from pggan_fast.networks import Generator
from pggan_fast.training.checkpoint import checkpoints, load_run_checkpoint
from pggan_fast.training.run_folder import config_file
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.options import option


def run_option(group: str | None = None) -> Any:
    """The option --run of a command that needs a generator."""
    text = "Folder of a run: its final weights or, before that, its newest checkpoint."
    return option(None, help=text, group=group, metavar="RUN")


def weights_option() -> Any:
    """The option --weights, which can be given instead of --run."""
    return option(None, help="A generator.safetensors, with its .json beside it, instead of --run.", metavar="FILE")


def check_run_or_weights(run: Path | None, weights: Path | None) -> None:
    """Raise UserError unless exactly one of the two is given."""
    if (run is None) == (weights is None):
        raise UserError("--run or --weights: exactly one of them must be given")


def trained_generator(run: Path | None, weights: Path | None) -> tuple[Generator, dict[str, Any]]:
    """Return the generator of `weights` or else of `run`, and its metadata. Raises UserError if there is none."""
    return load_generator(weights) if weights is not None else generator_of_run(run)


def generator_of_run(run: Path, option: str = "--run") -> tuple[Generator, dict[str, Any]]:
    """Return the averaged generator of a run and its metadata. Raises UserError if there is none."""
    final = run / "final" / "generator.safetensors"
    if final.is_file():
        return load_generator(final, option)
    if not config_file(run).is_file():
        raise UserError(f"{option} {run}: holds no run (no config.json)")
    saved = checkpoints(run / "checkpoints")
    if not saved:
        raise UserError(f"{option} {run}: has neither final weights nor a checkpoint yet")
    state = load_run_checkpoint(saved[-1])
    try:
        metadata, weights = state["generator"], state["step"]["G_ema"]
        if problem := find_problem_of_generator(metadata):
            raise ValueError(problem)
        return generator_from_weights(metadata["options"], weights), metadata
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{option} {run}: {saved[-1].name} holds no generator ({error})") from error


def alpha_of(metadata: dict[str, Any], device: torch.device | str = "cpu") -> float | Tensor:
    """Return the weight of the newest layers that a generator was saved at, as its `forward` takes it.

    A 0-d tensor on `device` in a transition, else the float 1.0, with which networks leave the former layers out.
    """
    return torch.tensor(metadata["alpha"], device=device) if metadata["alpha"] < 1 else 1.0


def fixed_label(label: str | None, classes: list[str], label_dim: int) -> int | None:
    """Return the index of the class `label`, a name or number; None for None. Raises UserError if it is unknown."""
    if label is None:
        return None
    if not label_dim:
        raise UserError(f"--label {label}: this generator was trained without labels")
    if label in classes:
        return classes.index(label)
    if label.isascii() and label.isdecimal() and len(label) < 10 and int(label) < label_dim:
        return int(label)
    known = ", ".join(classes) or "names unknown"
    raise UserError(f"--label {label}: must be 0 to {label_dim - 1} or one of: {known}")
