"""Where the browser tests leave what they saw."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """The folder for screenshots: the one that PGGAN_FAST_SCREENSHOTS names, or a temporary one."""
    folder = Path(os.environ.get("PGGAN_FAST_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
