"""The files below a folder, through links, with what tells whether they have changed."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from pggan_fast.data.names import is_ignored, printable, to_bytes
from pggan_fast.data.sources.source import SourceError
from pggan_fast.utils.errors import UserError

MOST_FOLDERS = 1_000_000  # links to folders that hold links can name more than there are


@dataclass
class Listing:
    """Paths of files below the folder, "a/b/c.png", each with its size and times; what is left out, and why."""

    files: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def list_files(root: Path, option: str) -> Listing:
    """List everything below `root`. A link to a folder is followed unless it leads to a folder that it is in.

    Raises UserError, which names `option`, for a folder that cannot be listed.
    """
    found = Listing()
    waiting = [("", ())]
    folders = 0
    while waiting:
        inside, above = waiting.pop()
        folders += 1
        if folders > MOST_FOLDERS:
            raise UserError(f"{option} {root}: has more than {MOST_FOLDERS:,} folders, links to folders counted")
        folder = root / inside
        try:
            stat = folder.stat()
            entries = list(os.scandir(folder))
        except OSError as error:
            raise UserError(f"{option} {printable(str(folder))}: cannot be listed ({error.strerror})") from error
        here = (stat.st_dev, stat.st_ino)
        if here in above:
            found.left_out[printable(inside)] = "a link to a folder that it is in"
            continue
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if is_ignored(entry.name) or is_ignored(f"{entry.name}/x.png"):
                found.ignored.append(printable(name))
                continue
            about = _stat(entry, f"{option} {printable(str(folder / entry.name))}")
            if about is None:
                found.left_out[printable(name)] = "a link that leads nowhere"
            elif S_ISDIR(about.st_mode):
                waiting.append((name, (*above, here)))
            elif not S_ISREG(about.st_mode):
                found.left_out[printable(name)] = "no regular file"
            else:
                # The time of the last change of any kind tells of files that were replaced with their old date.
                found.files[name] = f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}"
    return found


def _stat(entry: os.DirEntry[str], shown: str) -> os.stat_result | None:
    """Return what `entry` is, links followed; None for a link to nothing, itself or too far. Raises UserError."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno == errno.ELOOP or (isinstance(error, FileNotFoundError) and entry.is_symlink()):
            return None
        raise UserError(f"{shown}: cannot be read ({error.strerror})") from error


def fingerprint(entries: Iterable[tuple[str, str]]) -> str:
    """Return a hash of names and what stands for their content."""
    text = hashlib.sha256()
    for name, about in entries:
        text.update(to_bytes(name) + b"\0" + about.encode() + b"\0")
    return text.hexdigest()


def file_fingerprint(path: Path) -> str:
    """Return what tells whether the file at `path` is still the same."""
    about = path.stat()
    return f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}"


def check_unchanged(path: Path, before: str, option: str) -> None:
    """Raise SourceError if the file at `path` has another `file_fingerprint` than `before`, or is gone."""
    try:
        changed = file_fingerprint(path) != before
    except OSError:
        changed = True
    if changed:
        raise SourceError(f"{option} {printable(str(path))}: has changed while it was read")
