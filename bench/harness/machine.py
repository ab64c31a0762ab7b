"""The machine that the figures were measured on."""

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from pggan_fast import _native


def describe(device: str, memory_kept_warm: bool) -> dict[str, str | int | bool]:
    """GPU and CPU model, cores, threads, versions, date (UTC) and what ran; JSON-serialisable."""
    return {
        "device": device,
        **(describe_gpu() if device == "cuda" else {}),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_units": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "native_kernels": _native.cpu_reason or "yes",
        "memory_kept_warm": memory_kept_warm,
    }


def describe_gpu() -> dict[str, str]:
    return {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "native_cuda_kernels": _native.cuda_reason or "yes",
        "triton": version("triton") if find_spec("triton") else "not installed",
    }


def cpu_model() -> str:
    """The processor's name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
