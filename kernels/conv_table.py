"""The table that `tune` wrote on this GPU with this version of Triton: a tile for each problem, and whether it wins.

{name of a problem (see its `key`): {"tile": [...], "faster": whether it is faster than cuDNN}}, a JSON file.
"""

import json
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
import triton


class Keyed(Protocol):
    """A problem of conv_tiles or conv_weight_tiles."""

    @property
    def key(self) -> str:
        """Its name in the table."""


def table_path(device: int) -> Path:
    """Return the path of what `tune` measured on this GPU with this Triton: beside Triton's cache."""
    name = f"{torch.cuda.get_device_name(device)}-triton-{triton.__version__}"
    name = "".join(c if c.isalnum() or c == "." else "-" for c in name)
    return Path(triton.knobs.cache.dir).with_name(f"pggan-fast-{name}.json")


def measurement(problem: Keyed, device: int | None = None) -> dict | None:
    """Return what `tune` found for such a problem on a GPU (default: the current one), or None."""
    if not torch.cuda.is_initialized():
        return None
    return _table(torch.cuda.current_device() if device is None else device).get(problem.key)


def forget_measurement(problem: Keyed, device: int) -> bool:
    """Drop a problem's measurement until the process ends, as of a tile that does not run; return if it had one."""
    return torch.cuda.is_initialized() and _table(device).pop(problem.key, None) is not None


def save(table: dict[str, dict], path: Path) -> None:
    """Add lines to the file: a process that reads meanwhile sees the old one or the new one."""
    before = json.loads(path.read_text()) if path.exists() else {}
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps({**before, **table}, indent=1) + "\n")
    partial.replace(path)


@cache
def _table(device: int) -> dict[str, dict]:
    path = table_path(device)
    try:
        return _checked(json.loads(path.read_text())) if path.exists() else {}
    except ValueError:
        raise RuntimeError(f"{path} is not what tuning wrote: remove it, or tune again") from None


def _checked(table: object) -> dict[str, dict]:
    for entry in table.values() if isinstance(table, dict) else [None]:
        numbers = entry.get("tile") if isinstance(entry, dict) else None
        if not isinstance(numbers, list) or len(numbers) != 7 or any(type(n) is not int or n < 1 for n in numbers):
            raise ValueError(entry)
        if type(entry.get("faster")) is not bool:
            raise ValueError(entry)
    return table
