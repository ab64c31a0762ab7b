"""Files of torch.save that somebody else wrote, read without running what is in them."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pggan_fast.utils.regular_file import irregular_kind


def load_weights_only(path: Path, allowed: Sequence[Any] = ()) -> Any:
    """Return what the file holds, tensors on the CPU. `allowed`: classes beside tensors, as `safe_globals` takes them.

    Raise ValueError, in one line, for a damaged file and for one that names other classes.
    """
    if kind := irregular_kind(path):
        raise ValueError(f"is {kind}, must be a file")
    if reason := find_swelling(path):
        raise ValueError(f"torch.load reads no weights from it: {reason}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")  # what torch warns about on its way to an error
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file can raise nearly anything
        text = " ".join(str(error).split())
        for advice in ("In PyTorch 2.6", "Please file", "Check the documentation", "This is an internal miniz error"):
            text = text.partition(advice)[0]
        # Of bytes that are no pickle torch tells a key alone, a number.
        reason = text.strip()[:160] if not isinstance(error, KeyError) else "not a file of torch.save, or a damaged one"
        reason = reason or type(error).__name__
        raise ValueError(f"torch.load reads no weights from it: {reason}") from error


def find_swelling(path: Path) -> str | None:
    """Return why a file would take more memory than it has bytes, or None; torch.save compresses nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError):
        return None  # another format, or damaged: torch says so
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        return "its parts are compressed or overlap, which those of torch.save are not"
    return None
