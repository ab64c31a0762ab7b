"""Packages that only some commands need: the extras of pyproject.toml."""

from __future__ import annotations

import importlib
from types import ModuleType

from pggan_fast.utils.errors import UserError


def require(module: str, *, extra: str, what: str) -> ModuleType:
    """Import and return `module`. Raises UserError that says how to install it for `what` (an option and its value)."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what}: needs {module} ({error}); pip install 'pggan-fast[{extra}]'") from error
