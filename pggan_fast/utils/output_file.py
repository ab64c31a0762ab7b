"""The place of a file that a command writes, checked before the work that the file is for."""

import os
from pathlib import Path

from pggan_fast.utils.errors import UserError


def check_output_file(path: Path, option: str = "--out") -> None:
    """Raise UserError, naming `option`, if something is at `path` or no file can be made there."""
    if os.path.lexists(path):
        raise UserError(f"{option} {path}: exists already; choose another name")
    check_parent(path, f"{option} {path}")


def check_parent(path: Path, named: str) -> None:
    """Raise UserError, which begins with `named`, unless the folder of `path` can be written to, or made."""
    folder = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not folder.is_dir():
        raise UserError(f"{named}: {folder} is a file, must be a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{named}: {folder} cannot be written to")
