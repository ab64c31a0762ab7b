"""Weights of one network in a safetensors file, with a .json file of the same name that says how to rebuild it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from pggan_fast.interop.build import build_on_meta, find_misfit, generator_kind
from pggan_fast.networks.base import BaseGenerator, Network
from pggan_fast.networks.resolutions import HIGHEST, LOWEST, check_resolution
from pggan_fast.utils.atomic_write import atomic_write, write_json
from pggan_fast.utils.errors import UserError, reason_of
from pggan_fast.utils.schema import Optional, find_problem, number, read_json

# The metadata of a generator beside the options of the network; readers of older files find nothing else in them.
GENERATOR_METADATA = {
    "options": dict,
    "resolution": number(LOWEST, HIGHEST, whole=True),
    "alpha": number(0, 1),
    "classes": [str],
    "images": number(0, whole=True),
}
NETWORK_METADATA = {"options": dict, "resolution": Optional(number(LOWEST, HIGHEST, whole=True))}


def save_weights(path: Path, network: Network, metadata: dict[str, Any]) -> None:
    """Write `path` (.safetensors) and a .json of the same name with `metadata`, "options" among them.

    Raises UserError, naming the file, if the disk is full or fails; neither file is left then.
    """
    described, was_there = path.with_suffix(".json"), path.exists()
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    try:
        with atomic_write(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            safetensors.torch.save_file(tensors, temporary)
            temporary.chmod(mode)  # as every file here: the library makes one that its owner alone can read
        write_json(described, metadata)
    except (safetensors.SafetensorError, OSError) as error:  # the library turns the system's errors into its own
        if not was_there:
            path.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({reason_of(error)})") from error


def load_generator(path: Path, option: str = "--weights") -> tuple[BaseGenerator, dict[str, Any]]:
    """Return the generator that `save_weights` wrote, and its metadata. Raises UserError if the files are damaged."""
    described = path.with_suffix(".json")
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder, must be a .safetensors file; a run's folder is for --run")
    for file in (path, described):
        if not file.is_file():
            needed = " beside it, must be a .safetensors file with its .json" if file == described else ""
            raise UserError(f"{option} {path}: no such file: {file}{needed}")
    try:
        metadata = read_json(described, GENERATOR_METADATA)
        if problem := find_problem_of_generator(metadata):
            raise UserError(f"{described}: is damaged ({problem})")
    except UserError as error:
        raise UserError(f"{option} {path}: {error}") from error
    try:
        network = generator_from_weights(metadata["options"], read_tensors(path))
    except ValueError as error:
        raise UserError(f"{option} {path}: does not fit {described.name} ({error})") from error
    return network, metadata


def generator_from_weights(options: dict[str, Any], weights: dict[str, Tensor]) -> BaseGenerator:
    """Build the generator with `options` and `weights`. Raises ValueError if they do not fit."""
    kind = generator_kind(options)
    if problem := find_misfit(weights, build_on_meta(kind, options)):
        raise ValueError(problem)
    G = kind(**options)
    G.load_state_dict(weights)
    return G


def find_problem_of_generator(metadata: Any) -> str | None:
    """Return what is wrong with the metadata of a generator, None if nothing is."""
    if problem := find_problem(metadata, GENERATOR_METADATA):
        return problem
    try:
        G = build_on_meta(generator_kind(metadata["options"]), metadata["options"])
        check_resolution("resolution", metadata["resolution"], G.resolution)
        if not G.grows and (metadata["resolution"], metadata["alpha"]) != (G.resolution, 1):
            return f"resolution is {metadata['resolution']} and alpha {metadata['alpha']}, must be {G.resolution} and 1"
    except ValueError as error:
        return str(error)
    if metadata["classes"] and len(metadata["classes"]) != G.label_dim:
        return f"classes are {len(metadata['classes'])}, the generator has {G.label_dim}"
    return None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file by name. Raises ValueError if it is damaged, OSError if unreadable."""
    try:
        if str(path).isprintable():
            return safetensors.torch.load_file(path)
        return safetensors.torch.load(path.read_bytes())  # the other one refuses paths that are not UTF-8
    except OSError:
        raise
    except Exception as error:  # the reader and torch have many kinds for a header that is not what they expect
        raise ValueError(f"{path.name} is damaged: {reason_of(error)}") from error
