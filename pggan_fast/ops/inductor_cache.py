"""Inductor's cache on the disk: what it has compiled for another version of this package is not taken for this one's.

Its key has the names of our ops, but neither their arguments nor what they return, which another version may define
otherwise. An old entry would be called with the wrong arguments or, worse, read results that are laid out differently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch.compiler.config

PACKAGE = Path(__file__).parents[1]
DEFINING = ("reference.py", "_native.py", "_C*", "ops/*.py", "kernels/*.py", "../kernels/*.py")


def tag_compiled_graphs() -> None:
    """Add a fingerprint of the ops to the tag that is a part of Inductor's keys; a tag of the user's stays in it."""
    ours = f"pggan_fast:{fingerprint(PACKAGE)}"
    tags = [tag for tag in torch.compiler.config.cache_key_tag.split() if not tag.startswith("pggan_fast:")]
    torch.compiler.config.cache_key_tag = " ".join([*tags, ours])


def fingerprint(package: Path, defining: Iterable[str] = DEFINING) -> str:
    """Return a digest of where the files that define the ops are, how large, and when they were written."""
    files = sorted({path for pattern in defining for path in package.glob(pattern)})
    digest = hashlib.sha256(str(package).encode("utf-8", "surrogateescape"))
    for path in files:
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
