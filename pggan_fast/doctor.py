"""Capabilities of an installation: `pggan-fast doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.util import find_spec

import torch

from pggan_fast import __version__, _native
from pggan_fast.ops import implementations
from pggan_fast.training.precision import on_this_processor

# The oldest driver that runs what a toolkit of this major version compiled (CUDA release notes, table 2).
LINUX_DRIVERS = {12: "525.60.13", 13: "580.65.06"}


def report() -> str:
    """Versions, compilers, devices, and the implementation that each op takes on each device."""
    lines = _machine() + ["", *_kernels()]
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        lines += ["", *_choices(device)]
    return "\n".join(lines)


def _machine() -> list[str]:
    cxx = os.environ.get("CXX") or "c++"
    rows = [
        ("pggan-fast", __version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("cpu", torch.backends.cpu.get_cpu_capability()),
        ("bf16", on_this_processor("bf16") or "the processor has instructions for it"),
        ("cuda", _cuda()),
        ("compiler", _first_line(cxx, "--version")),
        ("nvcc", _first_line("nvcc", "--version")),
        ("triton", "installed" if find_spec("triton") else "not installed"),
    ]
    return [f"{name:<11}{value}" for name, value in rows]


def _cuda() -> str:
    if torch.version.cuda is None:
        return "torch is a build without CUDA"
    if not torch.cuda.is_available():
        return f"torch is built for {torch.version.cuda}, no usable GPU found"
    found = [
        "{0.name} (sm_{0.major}{0.minor})".format(torch.cuda.get_device_properties(index))
        for index in range(torch.cuda.device_count())
    ]
    built = " ".join(torch.cuda.get_arch_list())
    return f"{torch.version.cuda}: {', '.join(found)}; torch is built for {built}"


def _kernels() -> list[str]:
    return [
        f"{'native CPU kernels':<22}{'loaded' if _native.cpu_available else _native.cpu_reason}",
        f"{'native CUDA kernels':<22}{_cuda_kernels()}",
    ]


def _cuda_kernels() -> str:
    if not _native.cuda_available:
        return _native.cuda_reason
    built = _native.cuda_build()
    if built is None:
        return "loaded"
    driver = LINUX_DRIVERS.get(int(built["cuda"].partition(".")[0]), "its own")
    return f"loaded; CUDA {built['cuda']} for {', '.join(built['architectures'])}; needs driver {driver} or newer"


def _choices(device: str) -> list[str]:
    """One line per op: what it takes; then, once each, why others are unavailable."""
    chosen = implementations(device)
    lines = [f"on {device} the ops take:"]
    passed: dict[str, str] = {}
    for op, states in chosen.items():
        taken = next(name for name, state in states.items() if state == "chosen")
        lines.append(f"  {op:<20}{taken}")
        passed |= {name: state for name, state in states.items() if state not in ("chosen", "available")}
    return lines + [f"  not {name}: {reason}" for name, reason in passed.items()]


def _first_line(program: str, *arguments: str) -> str:
    """The version a program prints: the line of its output that names one."""
    path = shutil.which(program)
    if path is None:
        return f"none ({program} not found)"
    output = subprocess.run([path, *arguments], capture_output=True, text=True).stdout
    lines = [line for line in output.splitlines() if any(letter.isdigit() for letter in line)]
    return f"{path}: {lines[-1 if program == 'nvcc' else 0].strip()}" if lines else path
