"""The folder for what can be fetched or computed again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Return `pggan-fast` in XDG_CACHE_HOME or ~/.cache, or, for a user without a home, in the temporary folder."""
    if place := os.environ.get("XDG_CACHE_HOME"):
        return Path(place) / "pggan-fast"
    try:
        return Path.home() / ".cache" / "pggan-fast"
    except RuntimeError:  # an unknown user of a container
        return Path(tempfile.gettempdir()) / "pggan-fast"
