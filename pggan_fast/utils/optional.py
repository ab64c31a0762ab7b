"""Packages that only some commands need: the extras of pyproject.toml."""

from __future__ import annotations

import importlib
from types import ModuleType

from pggan_fast.utils.errors import UserError
from pggan_fast.utils.program import python


def pip_install(extra: str) -> str:
    """Return the command that installs an extra beside this Python."""
    return f"{python()} -m pip install 'pggan-fast[{extra}]'"


def require(module: str, *, extra: str, what: str) -> ModuleType:
    """Import and return `module`. Raises UserError that says how to install it for `what` (an option and its value)."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what}: needs {module} ({error}); {pip_install(extra)}") from error
