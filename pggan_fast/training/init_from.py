"""Weights to start from: those of another run, to grow on or to fine-tune, or of a generator file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pggan_fast.interop.build import build_on_meta, find_misfit, generator_kind, is_finite
from pggan_fast.interop.weights import NETWORK_METADATA, read_tensors
from pggan_fast.networks import NETWORKS
from pggan_fast.training.checkpoint import checkpoints, load_run_checkpoint
from pggan_fast.training.config import TrainConfig
from pggan_fast.training.run_folder import config_file, read_config
from pggan_fast.training.step import TrainStep
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.schema import read_json

Weights = dict[str, Tensor]

# Options that no weight shows and settings of a run name, and those that only imported networks have otherwise.
UNSEEN = (
    "fused_scale",
    "use_wscale",
    "pixel_norm",
    "normalize_latents",
    "slope",
    "pixel_norm_eps",
    "mbstd_group_size",
)
AS_TRAINED = {"input_norm": True, "mbstd_grouping": "strided", "mbstd_correction": 0}


def settings_to_grow(run: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run that continues to grow the networks of the finished `run`, changed by those `given`.

    Raises UserError if `run` is not finished or `given` has no higher resolution.
    """
    if not (run / "final").is_dir():
        raise UserError(f"--grow-from {run}: holds no finished run (no final/)")
    _, before = read_config(run, "--grow-from")
    if before.resolution is None:
        raise UserError(f"--grow-from {run}: config.json is damaged (resolution is null, must be a number)")
    if not NETWORKS[before.network].generator.grows:
        raise UserError(f"--grow-from {run}: its networks do not grow (--network {before.network})")
    asked = given.get("resolution")
    if asked is None:
        raise UserError(
            f"--resolution is missing: with --grow-from {run} it must be above the run's {before.resolution}"
        )
    if asked <= before.resolution:
        raise UserError(f"--resolution {asked}: must be above the {before.resolution} of --grow-from {run}")
    kept = {field.name: getattr(before, field.name) for field in dataclasses.fields(before) if field.name != "out"}
    start = {
        "start_resolution": before.resolution,
        "first_stable_kimg": 0.0,  # that resolution has had its stable phase
        "total_kimg": None,
        "progressive": True,
        "init_from": run,
    }
    return {**kept, **start, **given}


def start_from(step: TrainStep, path: Path, config: TrainConfig | None = None) -> None:
    """Give `step`'s networks the weights in `path` and say which layers had none there.

    Layers of resolutions that only one side has are left out: those that are new start at random.
    Raises UserError if `path` holds no weights or they are of networks with other settings.
    """
    found = find_weights(path, config)
    for name, network in (("generator", step.G), ("average of the generator", step.G_ema), ("discriminator", step.D)):
        if name not in found:
            print(f"--init-from {path}: has no {name}, it starts at random")
            continue
        new = _take_over(network, found[name], f"--init-from {path}: {name}")
        if new:
            print(f"--init-from {path}: {name} at {', '.join(new)} px is new")


def find_weights(path: Path, config: TrainConfig | None = None) -> dict[str, Weights]:
    """Return weights by network: of a run's newest checkpoint, its final ones, or a file with a discriminator beside.

    Raises UserError if there are none, or they are of networks whose options differ from `config` (default: any run's)
    in what no weight shows.
    """
    saved = checkpoints(path / "checkpoints") if config_file(path).is_file() else []
    if saved:
        state = load_run_checkpoint(saved[-1])
        _, before = read_config(path, "--init-from")
        options = {**state["generator"]["options"], "mbstd_group_size": before.mbstd_group_size}
        _check_unseen(options, config, path)
        state = state["step"]
        return {"generator": state["G"], "average of the generator": state["G_ema"], "discriminator": state["D"]}
    file = path / "final" / "generator.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"--init-from {path}: is neither a run with weights nor a .safetensors file")
    generator = _load(file, "generator", config)
    found = {"generator": generator, "average of the generator": generator}
    beside = file.with_name("discriminator.safetensors")
    if beside.is_file():
        found["discriminator"] = _load(beside, "discriminator", config)
    return found


def _load(file: Path, role: str, config: TrainConfig | None) -> Weights:
    """Return the weights of a "generator" or "discriminator", checked against the .json file if there is one."""
    described = file.with_suffix(".json")
    try:
        weights = read_tensors(file)
        if described.is_file():
            options = read_json(described, NETWORK_METADATA)["options"]
            generator = generator_kind(options)  # a ValueError for a network that is none of ours
            kind = generator if role == "generator" else NETWORKS[options.get("network", "pggan")].discriminator
            if problem := find_misfit(weights, build_on_meta(kind, options)):
                raise ValueError(f"does not fit {described.name}: {problem}")
        else:
            options = {}
    except ValueError as error:
        raise UserError(f"--init-from {file}: cannot be used ({error})") from error
    except UserError as error:
        raise UserError(f"--init-from {file}: {error}") from error
    _check_unseen(options, config, file)
    return weights


def _check_unseen(options: dict[str, Any], config: TrainConfig | None, path: Path) -> None:
    """Raise UserError for an option that shows in no weight and is another than that of the run."""
    expected = dict(AS_TRAINED)
    if config is not None:
        expected |= {name: getattr(config, name) for name in UNSEEN}
    for name, value in expected.items():
        if options.get(name, value) != value:
            whose = "runs have" if name in AS_TRAINED else "this run has"
            raise UserError(f"--init-from {path}: is of a network with {name}={options[name]}, {whose} {value}")


def _take_over(network: nn.Module, weights: Weights, what: str) -> list[str]:
    """Copy what both have, and return the resolutions that only `network` has."""
    own = network.state_dict()
    for name, value in own.items():
        if name in weights and not (weights[name].is_floating_point() and is_finite(weights[name])):
            raise UserError(f"{what} has {name} with values that are no finite numbers")
        if name in weights and weights[name].shape != value.shape:
            raise UserError(
                f"{what} has {name} of {list(weights[name].shape)}, this run needs {list(value.shape)}"
                " (channels, latent size, classes and the data's channels must be the same)"
            )
    missing, unknown = own.keys() - weights.keys(), weights.keys() - own.keys()
    new, gone = ({_resolution(name) for name in names} for names in (missing, unknown))
    shared = own.keys() & weights.keys()
    kept = {_resolution(name) for name in shared} - {None}
    if not shared or None in new | gone or (new | gone) & kept:
        name = min(missing | unknown)
        raise UserError(f"{what} is of networks with other options ({name} is only in one of the two)")
    network.load_state_dict({**own, **{name: weights[name] for name in shared}})
    return sorted(new, key=int)


def _resolution(name: str) -> str | None:
    """Return the resolution whose layers a weight belongs to: "64" of "blocks.64.conv.weight"."""
    parts = name.split(".")
    return parts[1] if parts[0] in ("blocks", "to_rgb", "from_rgb") else None
