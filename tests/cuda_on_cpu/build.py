"""Compiles csrc/cuda for the CPU, with the harness, into a Python extension: `load()` in a test, or by hand

python -m tests.cuda_on_cpu.build [plain | address | thread | coverage]
"""

import fcntl
import functools
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TORCH = Path(torch.__file__).parent
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
NAME = "_cuda_on_cpu"

# Line numbers, for what a sanitizer reports.
VARIANTS = {
    "plain": ["-O1"],
    "address": ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-g1", "-fsanitize=thread", "-DPGGAN_FAST_CUDA_THREADS"],
    "coverage": ["-O0", "--coverage"],
}


def missing() -> str | None:
    """Why the harness cannot be built here, or None."""
    if platform.system() != "Linux" or shutil.which("g++") is None:
        return "needs g++ on Linux"
    if importlib.util.find_spec("pybind11") is None:
        return "needs pybind11"
    return None


def sources(variant: str) -> list[Path]:
    machine = "threads.cpp" if variant == "thread" else "fibers.cpp"
    ours = [HERE / name for name in ("controls.cpp", "planted.cu", "fragments.cu", machine)]
    return sorted((ROOT / "csrc/cuda").glob("*.cu"), key=lambda p: -p.stat().st_size) + ours


def command(variant: str, source: Path) -> list[str]:
    import pybind11

    includes = [TORCH / "include", pybind11.get_include(), sysconfig.get_path("include")]
    return [
        *("g++", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", *VARIANTS[variant]),
        *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized", "-Wno-attributes"),
        "-Wno-clobbered",  # getcontext returns twice, but not here
        *(TORCH_TARGET, "-DPGGAN_FAST_CUDA_ON_CPU", f"-I{HERE / 'include'}"),
        *(f"-isystem{path}" for path in includes),
        *("-x", "c++", "-c", str(source)),
    ]


def run(*args: str) -> None:
    done = subprocess.run(args, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(args)}\n{done.stderr[-8000:]}")


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Inside, no other process or thread makes this file: tests run side by side."""
    with open(target.with_name(f"{target.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make(target: Path, *args: str) -> Path:
    """The file that a compiler makes with these arguments, made unless all that it was made of is older.

    Its time is that at which it was begun: a source that is saved meanwhile may have been read before.
    """
    with locked(target):
        return _made(target, *args)


def _made(target: Path, *args: str) -> Path:
    files, recipe = target.with_name(f"{target.name}.d"), target.with_name(f"{target.name}.txt")
    text = f"{torch.__version__} {args}"
    if target.exists() and recipe.exists() and recipe.read_text() == text:
        made_of = files.read_text().replace("\\\n", " ").partition(": ")[2].split()
        if all(os.path.exists(f) and os.path.getmtime(f) < target.stat().st_mtime for f in made_of):
            return target
    recipe.unlink(missing_ok=True)
    begun = time.time()
    run(*args, "-MD", "-MF", str(files), "-o", str(target))
    os.utime(target, (begun, begun))
    recipe.write_text(text)
    return target


@functools.cache
def build(variant: str = "plain") -> Path:
    """The extension's path; what has not changed is not compiled again."""
    folder = ROOT / "build/cuda_on_cpu" / variant
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda s: make(folder / f"{s.name}.o", *command(variant, s)), sources(variant)))
    library = folder / f"{NAME}.so"
    with locked(library):
        if not library.exists() or any(os.path.getmtime(o) > library.stat().st_mtime for o in objects):
            flags = [f for f in VARIANTS[variant] if f.startswith(("-fsanitize", "--coverage"))]
            run("g++", "-shared", *flags, *map(str, objects), f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-o", str(library))
    return library


@functools.cache
def load(variant: str = "plain") -> ModuleType:
    """The harness's controls; the ops of csrc/cuda are then in torch.ops.pggan_fast_cuda_on_cpu, for CPU tensors.

    A variant with a sanitizer loads only into a process that started with its runtime, see `sanitizer_environment`.
    """
    define_ops()
    spec = importlib.util.spec_from_file_location(NAME, build(variant))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def define_ops() -> torch.library.Library:
    """Give the ops of pggan_fast to the harness's namespace, without kernels."""
    import pggan_fast  # noqa: F401  (defines its ops)

    library = torch.library.Library("pggan_fast_cuda_on_cpu", "FRAGMENT")
    for schema in torch._C._jit_get_all_schemas():
        namespace, _, rest = str(schema).partition("::")
        if namespace == "pggan_fast":
            library.define(rest)
    return library


def sanitizer_environment(variant: str) -> dict[str, str]:
    """Return what a process must have in its environment to load this variant."""
    runtime = {"address": "libasan.so", "thread": "libtsan.so"}[variant]
    path = subprocess.run(["g++", f"-print-file-name={runtime}"], capture_output=True, text=True, check=True).stdout
    return {
        "LD_PRELOAD": path.strip(),
        # Leaks are Python's and torch's own, and the stacks of fibers that a fault ends.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "exitcode=66:ignore_noninstrumented_modules=1",
    }


if __name__ == "__main__":
    print(build(sys.argv[1] if len(sys.argv) > 1 else "plain"))
