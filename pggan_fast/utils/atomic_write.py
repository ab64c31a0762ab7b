"""Files that are either whole or absent: written under a temporary name, flushed to the disk, renamed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ASIDE = ".tmp"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` if the block succeeds, remove it if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}{ASIDE}")
    try:
        yield aside
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        if error.filename in (None, str(aside)):  # a full disk does not say which file it was
            error.filename = str(path)
        raise
    finally:
        aside.unlink(missing_ok=True)
    _flush_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _flush_folder(folder: Path) -> None:
    # A rename is on the disk only when its folder is; not every platform can open a folder.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
