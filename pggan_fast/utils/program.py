"""Commands for messages, written so that they work where they are printed."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

NAMES = ("pggan-fast", "pggan-fast.exe")


def program() -> str:
    """Return `pggan-fast` as one would type it here: as it was started, by name where that is on the path.

    It is `pggan-fast`, a path such as `.venv/bin/pggan-fast`, or `.venv/bin/python -m pggan_fast`. A program that
    imports the package is told the command that is installed with its Python.
    """
    started = sys.argv[0] if getattr(sys, "argv", None) else ""
    as_module = started.endswith(os.path.join("pggan_fast", "__main__.py"))
    if os.path.basename(started) not in NAMES and not as_module:
        started = os.path.join(os.path.dirname(sys.executable), NAMES[os.name == "nt"])
    if os.path.basename(started) in NAMES and os.path.exists(started):
        return typed(started)
    return f"{python()} -m pggan_fast"


def python() -> str:
    """Return this Python as one would type it here."""
    return typed(sys.executable or "python3")


def command(*arguments: object) -> str:
    """Return `program()` with `arguments`, quoted for a shell."""
    return " ".join([program(), *(shlex.quote(str(argument)) for argument in arguments)])


def typed(path: str) -> str:
    """Return the shortest way to type the program at `path`: its name, a path from here, or the whole path.

    Links are not followed: the python of an environment is a link to one that lacks the environment's packages.
    """
    whole = os.path.abspath(path)
    found = shutil.which(os.path.basename(whole))
    if found and os.path.abspath(found) == whole:
        return shlex.quote(os.path.basename(whole))
    try:
        here = Path(whole).relative_to(Path.cwd())
    except (ValueError, FileNotFoundError):  # elsewhere, or the current folder was removed
        return shlex.quote(whole)
    return shlex.quote(str(here) if len(here.parts) > 1 else os.path.join(os.curdir, here))
