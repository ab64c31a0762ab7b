"""Checkpoints: one file holds all that a run needs to go on bit for bit. Written whole or not."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import torch

from pggan_fast.utils.atomic_write import atomic_write
from pggan_fast.utils.errors import UserError

FORMAT = 2
KEPT = 3
DAMAGED = ".damaged"
SEAL = 64  # bytes at the end of the file: SHA-256 of the rest
CHUNK = 1 << 24


def save_checkpoint(folder: Path, images: int, state: dict[str, Any], *, keep: int = KEPT) -> Path:
    """Write `state` (tensors and plain Python only) after `images` images; keep the last `keep`.

    Raises UserError if the disk is full or fails; the checkpoints from before are untouched then.
    """
    path = folder / f"{images:09d}.pt"
    try:
        with atomic_write(path) as aside:
            with open(aside, "wb") as file:
                torch.save({"format": FORMAT, "images": images, **state}, file)
            _seal(aside)
    except (OSError, RuntimeError) as error:  # torch's writer turns the one into the other
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        saved = checkpoints(folder)
        rest = f"{saved[-1].name} is the last one" if saved else "there is none yet"
        raise UserError(f"checkpoint {path}: cannot be written ({reason}); {rest}") from error
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state as saved, tensors on the CPU. No pickled code is run.

    Raises UserError if the file is damaged or of another format.
    """
    if (damage := find_damage(path)) is not None:
        raise UserError(f"checkpoint {path}: is damaged ({damage})")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["format"]
    except Exception as error:  # torch raises many kinds for a file that is not what it expects
        raise UserError(f"checkpoint {path}: cannot be read ({type(error).__name__})") from error
    if found != FORMAT:
        raise UserError(f"checkpoint {path}: has format {found}, this version reads {FORMAT}")
    return state


def find_damage(path: Path) -> str | None:
    """What is wrong with a file that is not, or no longer, what was written; None if nothing is."""
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
    """SHA-256 of the next `length` bytes, in hexadecimal."""
    digest = hashlib.sha256()
    while length:
        chunk = file.read(min(length, CHUNK))
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest().encode()


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that is whole, None if there is no file at all. Damaged ones after it are set aside.

    Raises UserError if all that are there are damaged.
    """
    damaged = []
    for path in reversed(checkpoints(folder)):
        if (damage := find_damage(path)) is not None:
            damaged.append((path, damage))
            continue
        for other, reason in damaged:
            os.replace(other, other.with_name(other.name + DAMAGED))
            print(f"checkpoint {other}: is damaged ({reason}), set aside as {other.name}{DAMAGED}", flush=True)
        return path
    if damaged:
        raise UserError(f"checkpoint {damaged[0][0]}: is damaged ({damaged[0][1]}), and there is no whole one")
    return None


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in `folder`, oldest first."""
    return sorted(folder.glob("[0-9]*.pt"), key=lambda path: int(path.stem))


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of torch's default generators, the CPU's and the device's."""
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """A run that goes on with another kind of device keeps what the seed has set there."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
