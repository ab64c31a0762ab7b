"""Checkpoints: one file holds all that a run needs to resume bit for bit. Written whole or not."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pggan_fast.networks.resolutions import HIGHEST, LOWEST
from pggan_fast.utils.atomic_write import atomic_write
from pggan_fast.utils.device import device_random_state, set_device_random_state
from pggan_fast.utils.errors import UserError, reason_of
from pggan_fast.utils.schema import Each, OneOf, Optional, any_number, find_problem, number
from pggan_fast.utils.torch_files import find_swelling

FORMAT = 2
KEPT = 3
DAMAGED = ".damaged"
NAME = re.compile(r"[0-9]{9,18}\.pt")
SEAL = 64  # bytes at the end of the file: SHA-256 of the rest
CHUNK = 1 << 24


def _scalar(value: Any) -> str | None:
    return None if isinstance(value, torch.Tensor) and value.ndim == 0 else "a tensor of one number"


OTHER_DEVICES = {"xpu": Optional(torch.Tensor), "mps": Optional(torch.Tensor)}

COUNT = number(0, whole=True)
WEIGHTS = Each(str, torch.Tensor)
OPTIMIZER = {
    "state": Each(int, {"step": _scalar, "exp_avg_sq": torch.Tensor, "exp_avg": Optional(torch.Tensor)}),
    "param_groups": [
        {"lr": _scalar, "betas": [number(0, 1)], "eps": number(0, 1), "fused": OneOf(bool, None), "params": [COUNT]}
    ],
}
METADATA = {
    "options": Each(str, Any),
    "classes": [str],
    "images": COUNT,
    "resolution": number(LOWEST, HIGHEST, whole=True),
    "alpha": number(0, 1),
}
"""What a generator's weights need beside them: how to build it, and the stage that it stands at."""
STATE = {
    "images": COUNT,
    "step": {
        **{name: WEIGHTS for name in ("G", "D", "G_ema")},
        "augment": Optional(WEIGHTS),
        **{name: OPTIMIZER for name in ("optimizer_G", "optimizer_D")},
        **{name: _scalar for name in ("loss_scale", "good_steps", "bad_steps")},
        "d_updates": Optional(COUNT),
        "precision": str,
    },
    "batches": {"position": COUNT, "seed": COUNT},
    "stats": {
        "sums": Each(str, _scalar),
        "counts": Optional(Each(str, number(1, whole=True))),
        "steps": COUNT,
        "noted": Each(str, any_number),
        "images": COUNT,
        **{name: number() for name in ("seconds", "aside", "now")},
        "line_steps": Optional(COUNT),
    },
    "live": OneOf([OneOf(bool, int)], None),
    "schedule": Optional([COUNT]),
    "random": {"cpu": torch.Tensor, "cuda": OneOf(torch.Tensor, None), **OTHER_DEVICES},
    "generator": METADATA,
}
"""The parts of a run's checkpoint."""


def save_checkpoint(
    folder: Path, images: int, state: dict[str, Any], *, run: str | None = None, keep: int = KEPT
) -> Path:
    """Write `state` (tensors and plain Python only) after `images` images of the run with the id `run`.

    Of the checkpoints that this run has written the last `keep` are kept; nothing is deleted or overwritten that
    another one wrote, and nothing is deleted behind a link.
    Raises UserError if the disk is full or fails; the checkpoints from before are untouched then.
    """
    path = folder / f"{images:09d}.pt"
    if folder.is_symlink() and path.exists() and run_of(path) != run:
        raise UserError(f"checkpoint {path}: is of another run, behind a link; give this run a folder of its own")
    try:
        with atomic_write(path) as aside:
            with open(aside, "wb") as file:
                torch.save({"format": FORMAT, "images": images, "run": run, **state}, file)
            _seal(aside)
    except (OSError, RuntimeError) as error:  # torch's writer turns the one into the other
        saved = checkpoints(folder)
        rest = f"{saved[-1].name} is the last one" if saved else "there is none yet"
        raise UserError(f"checkpoint {path}: cannot be written ({reason_of(error)}); {rest}") from error
    if not folder.is_symlink():
        for old in checkpoints(folder)[:-keep]:
            if not old.is_symlink() and old != path and run_of(old) == run:
                old.unlink()
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state as saved, tensors on the CPU. No pickled code is run.

    Raises UserError if the file is damaged or of another format.
    """
    if (damage := find_damage(path) or find_swelling(path)) is not None:
        raise UserError(f"checkpoint {path}: is damaged ({damage})")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["format"]
    except Exception as error:  # torch raises many kinds for a file that is not what it expects
        raise UserError(f"checkpoint {path}: cannot be read ({type(error).__name__})") from error
    if found != FORMAT:
        raise UserError(f"checkpoint {path}: has format {found}, this version reads {FORMAT}")
    state.pop("run", None)
    return state


def load_run_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state of a run, with all its parts as `STATE` declares them.

    Raises UserError as `load_checkpoint` does, and for a part that is missing or of another type.
    """
    state = load_checkpoint(path)
    if problem := find_problem(state, STATE):
        raise UserError(f"checkpoint {path}: is damaged ({problem})")
    return state


def check_run(path: Path, run: str) -> None:
    """Raise UserError if another run than that with the id `run` wrote the checkpoint; earlier versions wrote no id."""
    if (found := run_of(path)) not in (None, run):
        raise UserError(f"checkpoint {path}: is of another run (id {found}, this is {run}); move it out of the folder")


def run_of(path: Path) -> str | None:
    """Return the id of the run that wrote a checkpoint; "?" where it cannot be read.

    Reads no tensors, except below a folder whose name is not UTF-8, where torch cannot map files.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=str(path).isprintable()).get("run")
    except Exception:  # torch raises many kinds for a file that is not what it expects
        return "?"


def find_damage(path: Path) -> str | None:
    """Return what is wrong with a file that is not, or no longer, as it was written; None if nothing is."""
    length = path.stat().st_size - SEAL
    if length < 0:
        return "cut short"
    with open(path, "rb") as file:
        found = _digest(file, length)
        return None if file.read(SEAL) == found else "its checksum is another"


def _seal(path: Path) -> None:
    """Append the checksum of the file as the comment that a zip archive, which torch.save writes, may end with."""
    with open(path, "rb+") as file:
        file.seek(-2, os.SEEK_END)
        file.write(SEAL.to_bytes(2, "little"))  # the comment's length
        length = file.tell()
        file.seek(0)
        digest = _digest(file, length)
        file.write(digest)


def _digest(file: BinaryIO, length: int) -> bytes:
    """Return the SHA-256 of the next `length` bytes, in hexadecimal."""
    digest = hashlib.sha256()
    while length:
        chunk = file.read(min(length, CHUNK))
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest().encode()


def newest_whole(folder: Path) -> Path | None:
    """Return the newest checkpoint that is whole, None if there is no file at all. Damaged ones after it are set aside.

    Raises UserError if all that are there are damaged.
    """
    damaged = []
    for path in reversed(checkpoints(folder)):
        if (damage := find_damage(path)) is not None:
            damaged.append((path, damage))
            continue
        for other, reason in damaged:
            if folder.is_symlink() or other.is_symlink():
                print(f"checkpoint {other}: is damaged ({reason}), skipped", flush=True)
                continue
            os.replace(other, other.with_name(other.name + DAMAGED))
            print(f"checkpoint {other}: is damaged ({reason}), set aside as {other.name}{DAMAGED}", flush=True)
        return path
    if damaged:
        raise UserError(f"checkpoint {damaged[0][0]}: is damaged ({damaged[0][1]}), and there is no whole one")
    return None


def checkpoints(folder: Path) -> list[Path]:
    """Return all checkpoints in `folder`, oldest first; files of other names are none."""
    found = [path for path in folder.glob("*.pt") if NAME.fullmatch(path.name) and path.is_file()]
    return sorted(found, key=lambda path: int(path.stem))


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of torch's default generators, the CPU's and the device's."""
    states = {"cpu": torch.get_rng_state(), "cuda": None}
    return states if device.type == "cpu" else {**states, device.type: device_random_state(device)}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Set those states; a run resumed on another kind of device keeps what the seed has set there."""
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and (own := state.get(device.type)) is not None:
        set_device_random_state(own, device)
