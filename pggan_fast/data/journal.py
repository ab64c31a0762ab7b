"""What an unfinished `prepare` noted of every item, read back with distrust: a line may be cut off or edited."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pggan_fast.data.manifest import MANIFEST, parse_json, read_json
from pggan_fast.utils.atomic_write import ASIDE

JOURNAL = "journal.jsonl"
WORK = "work.json"


def read_entries(folder: Path, depends: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the entries up to the first damaged one, None if they are of work that depends on something else.

    An entry is {"name", "label", "digest"} of an image that was added, or {"name", "skipped"}.
    """
    if any(file.is_symlink() for file in _files(folder)):
        return None
    try:
        if read_json(folder / WORK) != depends:
            return None
        lines = (folder / JOURNAL).read_bytes().splitlines(keepends=True)
    except (OSError, ValueError):
        return None
    entries = []
    for line in lines:
        try:
            entry = parse_json(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not _is_entry(entry, depends["classes"]):
            break
        entries.append(entry)
    return entries


def clear(folder: Path) -> None:
    """Remove what an earlier `prepare` wrote into `folder`."""
    for file in _files(folder):
        file.unlink()


def content_digest(image: Any) -> str:
    """Return a hash of one image's pixels."""
    return hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()


def dataset_digest(about: dict[str, Any], images: Iterable[str]) -> str:
    """Return a hash of all images, by their own ones, and of what else makes the dataset."""
    text = hashlib.blake2b(json.dumps(about).encode(), digest_size=16)
    for digest in images:
        text.update(digest.encode())
    return text.hexdigest()


def _files(folder: Path) -> list[Path]:
    patterns = ("images_*.npy", "labels.npy", MANIFEST, JOURNAL, WORK, f".*{ASIDE}")
    return [file for pattern in patterns for file in folder.glob(pattern) if file.is_symlink() or file.is_file()]


def _is_entry(entry: Any, classes: list[str] | None) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return False
    if "label" not in entry:
        return isinstance(entry.get("skipped"), str)
    if not isinstance(entry.get("digest"), str):
        return False
    label = entry["label"]
    if classes is None:
        return label is None or isinstance(label, str)
    return label is None if not classes and label is None else type(label) is int and 0 <= label < max(1, len(classes))
