"""The folder that a command writes: checked before the work, filled beside its place or inside of it."""

from __future__ import annotations

import os
from pathlib import Path

from pggan_fast.data.journal import WORK
from pggan_fast.data.manifest import MANIFEST
from pggan_fast.data.names import one_line, printable
from pggan_fast.utils.errors import UserError

NO_CONTENT = ("lost+found",)  # of a new file system that is mounted there
INSIDE = ".partial"


def check_free(out: Path) -> None:
    """Raise UserError unless `out` is absent or an empty folder."""
    _check_free(out, allowed=())


def work_folder(out: Path, suffix: str) -> Path:
    """Return where the files of `out` are written before they are moved into it; its parent can be written to.

    It lies beside `out`, or inside where `out` is a folder already: one that is mounted, linked or the current one
    cannot be replaced. Raises UserError if `out` is not free or cannot be written.
    """
    try:
        place = Path(os.path.realpath(out))  # a link stays one
        if place.is_symlink():
            raise UserError(f"--out {printable(str(out))}: is a link that leads to itself")
        if (place / suffix / MANIFEST).is_file() and not (place / suffix / WORK).exists():
            move_into_place(place / suffix, out, MANIFEST)  # it was stopped while it did that
        _check_free(out, allowed=(suffix,))
        if place.is_dir():
            folder = place / suffix
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            folder = place.with_name(f".{place.name}{suffix}")
        if not os.access(folder.parent, os.W_OK | os.X_OK):
            raise UserError(f"--out {printable(str(out))}: {printable(str(folder.parent))} cannot be written to")
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--out {printable(str(out))}: cannot be made ({one_line(error)})") from error
    return folder


def move_into_place(folder: Path, out: Path, last: str) -> None:
    """Make the files in `folder` those of `out`; the file `last`, without which `out` is nothing, at the end."""
    place = Path(os.path.realpath(out))
    if folder.parent != place:
        os.replace(folder, place)
        return
    names = sorted(os.listdir(folder), key=lambda name: (name == last, name))
    for name in names:
        os.replace(folder / name, place / name)
    folder.rmdir()


def _check_free(out: Path, allowed: tuple[str, ...]) -> None:
    shown = printable(str(out))
    try:
        if not os.path.lexists(out):
            return
        if out.is_symlink() and not out.exists():
            return
        if not out.is_dir() or set(os.listdir(out)) - {*allowed, *NO_CONTENT}:
            raise UserError(f"--out {shown}: is there already and not empty; choose another folder")
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--out {shown}: cannot be used ({one_line(error)})") from error
