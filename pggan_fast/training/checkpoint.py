"""Checkpoints: one file holds all that a run needs to go on bit for bit. Written whole or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pggan_fast.training.errors import UserError
from pggan_fast.training.files import written_aside

FORMAT = 1
KEPT = 3


def save_checkpoint(folder: Path, images: int, state: dict[str, Any], *, keep: int = KEPT) -> Path:
    """Write `state` (tensors and plain Python only) after `images` images; keep the last `keep`."""
    path = folder / f"{images:09d}.pt"
    with written_aside(path) as aside:
        torch.save({"format": FORMAT, "images": images, **state}, aside)
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state as saved, tensors on the CPU. No pickled code is run.

    Raises UserError if the file is damaged or of another format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["format"]
    except Exception as error:  # torch raises many kinds for a file that is not what it expects
        raise UserError(
            f"checkpoint {path}: cannot be read ({type(error).__name__}); delete it to go on from the one before"
        ) from error
    if found != FORMAT:
        raise UserError(f"checkpoint {path}: has format {found}, this version reads {FORMAT}")
    return state


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("[0-9]*.pt"), key=lambda path: int(path.stem))


def random_state() -> dict[str, Any]:
    """The states of torch's default generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
