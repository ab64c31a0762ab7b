"""Folders and archives as `dataset_tool` of StyleGAN2-ADA and StyleGAN3 writes them.

Images lie in folders of a thousand, 00000/img00000000.png, which are no classes. dataset.json at the root holds
{"labels": [["00000/img00000000.png", 6], ...]}, or {"labels": null}.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pggan_fast.data.manifest import parse_json
from pggan_fast.data.names import printable
from pggan_fast.utils.errors import UserError

LABELS_FILE = "dataset.json"
SHARD = re.compile(r"(?:.*/)?(\d{5})/(?:img)?(\d{5}|\d{8})\.\w+")
SHARD_SIZE = 1000


def read_labels(
    text: bytes, names: list[str], root: str, place: str
) -> tuple[dict[str, str | None] | None, str | None]:
    """Return the class of each of `names`, below `root`, that dataset.json names, and a line to print.

    None instead of classes: the file is another tool's. Raises UserError, which begins with `place`, for labels that
    cannot be read.
    """
    try:
        labels = parse_json(text)["labels"]
    except (ValueError, KeyError, TypeError, IndexError):
        return None, None
    if labels is None:
        return dict.fromkeys(names), None
    if isinstance(labels, dict):
        labels = list(labels.items())
    found: dict[str, str | None] = {}
    pairs = isinstance(labels, list) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) for pair in labels
    )
    if not pairs:
        raise UserError(f'{place}: the labels of {LABELS_FILE} must be [["FILE", CLASS], ...]')
    if not labels:
        return dict.fromkeys(names), None
    for name, label in labels:
        index = _index(label)
        if index is None:
            if _is_vector(label):
                return dict.fromkeys(names), f"{LABELS_FILE}: is left out, its labels are no classes"
            raise UserError(f"{place}: {LABELS_FILE} gives {printable(name)} the label {label!r:.40}, no class")
        if found.setdefault(root + _slashes(name), str(index)) != str(index):
            raise UserError(f"{place}: {LABELS_FILE} gives {printable(name)} two labels")
    classes = {name: found[name] for name in names if name in found}
    if not classes:
        raise UserError(f"{place}: {LABELS_FILE} has labels of other files, {printable(labels[0][0])} is not there")
    return classes, f"{LABELS_FILE}: {len(set(classes.values()))} classes from its labels"


def are_shards(names: Iterable[str]) -> bool:
    """Return whether all files lie in numbered folders of a thousand, as no classes do."""
    matches = [SHARD.fullmatch(name) for name in names]
    return bool(matches) and all(match and _in_its_shard(int(match[1]), int(match[2])) for match in matches)


def _in_its_shard(folder: int, number: int) -> bool:
    return folder in (number // SHARD_SIZE, number // SHARD_SIZE * SHARD_SIZE)


def _index(label: object) -> int | None:
    """Return the class that a number or a one-hot vector names, None for anything else."""
    if isinstance(label, bool):
        return None
    if isinstance(label, float):
        label = int(label) if label.is_integer() else -1
    if isinstance(label, int):
        return label if 0 <= label < 1 << 48 else None
    if _is_vector(label) and sorted(label) == [0] * (len(label) - 1) + [1]:
        return label.index(1)
    return None


def _is_vector(label: object) -> bool:
    return isinstance(label, list) and bool(label) and all(type(value) in (int, float) for value in label)


def _slashes(name: str) -> str:
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))
