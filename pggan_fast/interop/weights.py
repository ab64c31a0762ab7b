"""Weights of one network in a safetensors file, with what is needed to rebuild it beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from pggan_fast.networks import Discriminator, Generator
from pggan_fast.utils.atomic_write import atomic_write, write_json
from pggan_fast.utils.errors import UserError


def save_weights(path: Path, network: Generator | Discriminator, facts: dict[str, Any]) -> None:
    """`path` (.safetensors) and a .json of the same name with `facts`, "options" among them."""
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    with atomic_write(path) as aside:
        # Its own writer's errors are no OSError and do not say which file it was.
        aside.write_bytes(safetensors.torch.save(tensors))
    write_json(path.with_suffix(".json"), facts)


def load_generator(path: Path) -> tuple[Generator, dict[str, Any]]:
    """The generator that `save_weights` wrote and its facts. Raises UserError if it cannot be."""
    described = path.with_suffix(".json")
    for file in (path, described):
        if not file.is_file():
            raise UserError(f"--weights {path}: no such file: {file}")
    try:
        facts = json.loads(described.read_text(encoding="utf-8"))
        G = Generator(**facts["options"])
        G.load_state_dict(safetensors.torch.load_file(path))
    except (safetensors.SafetensorError, RuntimeError, TypeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--weights {path}: does not fit {described.name} ({reason})") from error
    return G, facts
