"""Files that are none: opening a pipe waits until somebody writes to it, and a device may have no end."""

import os
import stat
from pathlib import Path

KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def irregular_kind(path: Path) -> str | None:
    """Return "a pipe", "a device", ... if `path`, links followed, is no regular file; None if it is or is not there."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # whoever opens it says why that fails
        return None
    if stat.S_ISREG(mode):
        return None
    return next((kind for is_kind, kind in KINDS if is_kind(mode)), "a device")
