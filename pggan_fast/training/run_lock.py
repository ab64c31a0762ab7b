"""One trainer per run: a lock on its folder that ends with the process, however that ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from pggan_fast.utils.errors import UserError

LOCK = "lock"

_held: dict[Path, int] = {}  # descriptors of the locks that this process holds, by folder


def lock_run(out: Path) -> None:
    """Take the run in `out` for this process, which may hold it already; `out` must exist.

    Raises UserError if another process trains there. Under torchrun the first process holds it for all of them.
    """
    folder = out.resolve()
    if folder in _held:
        return
    path = folder / LOCK
    while True:
        try:
            # Never through a link, which could name any file.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UserError(f"{path}: the run cannot be locked ({error.strerror})") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(f"{out}: another process is training this run; wait for it or stop it first") from None
        except OSError as error:  # some network file systems have no locks
            print(f"warning: {path}: cannot be locked ({error.strerror}); do not start a second trainer on this run")
        if _names(path, descriptor):
            break
        os.close(descriptor)  # its holder removed it between the two calls
    _held[folder] = descriptor


def release_run(out: Path) -> None:
    """Give the run in `out` free, if this process holds it, and leave no file behind."""
    folder = out.resolve()
    descriptor = _held.pop(folder, None)
    if descriptor is not None:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(descriptor)


def _names(path: Path, descriptor: int) -> bool:
    """Return whether `path` is still the file that was opened."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
