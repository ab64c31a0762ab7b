"""`dataset.json` of prepared data: its fields, checked field by field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pggan_fast.networks.resolutions import HIGHEST, LOWEST, SQUARE
from pggan_fast.utils.schema import is_printable_text

FORMAT = "pggan-fast dataset 1"
MANIFEST = "dataset.json"


def is_prepared(folder: Path) -> bool:
    """Return whether `folder` holds prepared data, whole or damaged; other tools write a dataset.json too."""
    if not (folder / MANIFEST).is_file():
        return False
    if (folder / "labels.npy").is_file():
        return True
    try:
        manifest = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "format" in manifest


def read_json(path: Path) -> Any:
    """Return what `path` holds. Raises ValueError for whatever is no JSON."""
    return parse_json(path.read_bytes())


def parse_json(text: bytes | str) -> Any:
    """Return the value in `text`. Raises ValueError for whatever is no JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def checked(manifest: Any) -> dict[str, Any]:
    """Return `manifest`, with the fields that older versions did not write. Raises ValueError naming a wrong one."""
    if not isinstance(manifest, dict):
        raise ValueError(f"holds a {type(manifest).__name__}, not an object")
    if "format" not in manifest:
        raise ValueError("has no field 'format'")
    if manifest["format"] != FORMAT:
        raise ValueError(f"has format {manifest['format']!r}, not {FORMAT!r}")
    filled = {"base": list(SQUARE), "digest": None, **manifest}
    for name, (is_right, allowed) in FIELDS.items():
        if name not in filled:
            raise ValueError(f"has no field {name!r}")
        if not is_right(filled[name]):
            raise ValueError(f"has {name} {filled[name]!r:.60}, must be {allowed}")
    return filled


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _is_resolution(value: Any) -> bool:
    return type(value) is int and LOWEST <= value <= HIGHEST and value & (value - 1) == 0


def _is_base(value: Any) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2 and all(type(side) is int for side in value)
    return is_pair and min(value) == LOWEST and max(value) <= HIGHEST


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and is_printable_text(name) for name in value)


FIELDS = {
    "resolution": (_is_resolution, f"a power of two, {LOWEST} to {HIGHEST}"),
    "base": (_is_base, f"[height, width], the smaller one {LOWEST}"),
    "channels": (lambda value: type(value) is int and 1 <= value <= 4, "1 to 4"),
    "count": (_is_count, "a whole number, 0 or more"),
    "classes": (_are_names, "a list of names"),
    "digest": (lambda value: value is None or isinstance(value, str), "a text"),
}
