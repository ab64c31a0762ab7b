"""Load the native modules that the installation has, and say why the others are missing.

`_C` holds the CPU kernels, `_C_cuda` the CUDA ones. Loading a module registers its kernels with
torch's dispatcher; it has no Python interface. Importing this file never raises.

    cpu_available, cuda_available   bool
    cpu_reason, cuda_reason         why not, in one line; empty when available
    cuda_build()                    what the CUDA kernels were compiled with and for, if they were
"""

from __future__ import annotations

import json
from pathlib import Path

import torch


def load(name: str, folder: Path) -> str:
    """Load `folder/<name>.abi3.so`; returns "" or, in one line, why its kernels are not there."""
    library = folder / f"{name}.abi3.so"
    if not library.exists():
        report = folder / f"{name}.txt"  # written by setup.py
        why = report.read_text(encoding="utf-8").strip() if report.exists() else "no build was run, install with pip"
        return f"not built: {why}"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"{library.name} does not load: {error.__cause__ or error}"
    return ""


def load_cuda(folder: Path) -> str:
    """Load the CUDA kernels as `load` does; they need the CUDA libraries of torch."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    return load("_C_cuda", folder)


def cuda_build(folder: Path = Path(__file__).parent) -> dict[str, object] | None:
    """{"cuda": the toolkit's version, "architectures": ["sm_90", ...]}, as setup.py left it; None without a build."""
    metadata = folder / "_C_cuda.json"
    return json.loads(metadata.read_text(encoding="utf-8")) if metadata.exists() else None


cpu_reason: str = load("_C", Path(__file__).parent)
cuda_reason: str = load_cuda(Path(__file__).parent)
cpu_available: bool = not cpu_reason
cuda_available: bool = not cuda_reason
