"""Compiles csrc/cuda with nvcc for every GPU, and reads from the binaries what each kernel needs."""

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tests.cuda_on_cpu import build

NVCC = shutil.which("nvcc")
SOURCES = sorted((build.ROOT / "csrc/cuda").glob("*.cu"))
FOLDER = build.ROOT / "build/nvcc"

# Threads and KiB of shared memory of a multiprocessor, by architecture: CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability". All have 65,536 registers.
MULTIPROCESSORS = {
    "75": (1024, 64),
    "80": (2048, 164),
    "86": (1536, 100),
    "87": (1536, 164),
    "88": (1536, 100),
    "89": (1536, 100),
    "90": (2048, 228),
    "100": (2048, 228),
    "103": (2048, 228),
    "110": (1536, 228),
    "120": (1536, 100),
    "121": (1536, 100),
}


# Of conv_halo in fp32, by channels and kind: what csrc/cuda/conv_halo_tile.cuh calls kBytes, where it is above 48 KiB.
ASKED = {
    ("32", "32", "Kind)0"): 62976,
    ("16", "16", "Kind)1"): 55552,
    ("16", "32", "Kind)1"): 71936,
    ("32", "16", "Kind)2"): 58880,
}


class Kernel(NamedTuple):
    """One instance of a kernel in a binary."""

    name: str  # without _kernel
    types: tuple[str, ...]  # among its template arguments
    vector: int  # elements that it loads and stores at once
    flags: tuple[
        bool | str, ...
    ]  # channels_last, and pixel norm; of conv_halo and its like the other template arguments
    registers: int
    shared: int  # bytes
    stack: int
    local: int
    asked: int = 0  # bytes of shared memory among those that its launch asks for

    def __str__(self) -> str:
        return f"{self.name}<{', '.join(map(str, (*self.types, self.vector, *self.flags)))}>"


@functools.cache
def architectures() -> dict[str, list[str]]:
    """Every GPU that nvcc compiles for, such as 86, by the architecture of PTX that it is compiled through.

    That is the oldest of its generation, as in a build for all GPUs (nvcc -arch=all-major).
    """
    listed = subprocess.run([NVCC, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    generations: dict[str, list[str]] = {}
    for found in sorted(re.findall(r"sm_(\d+)$", listed, re.MULTILINE), key=int):
        generations.setdefault(found[:-1], []).append(found)
    return {gpus[0]: gpus for gpus in generations.values()}


def compile_for(source: Path, virtual: str) -> Path:
    """The device code for all GPUs of a generation. Warnings, spilled registers and local memory are errors."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    real = ",".join(f"sm_{gpu}" for gpu in architectures()[virtual])
    return build.make(
        FOLDER / f"{source.stem}.{virtual}.fatbin",
        *(NVCC, "-std=c++17", "-O3", "-fatbin", f"-gencode=arch=compute_{virtual},code=[{real}]", "-DUSE_CUDA"),
        *("-Werror=all-warnings", "-Xptxas=-warn-spills,-warn-lmem-usage"),
        *(build.TORCH_TARGET, "-isystem", str(build.TORCH / "include"), str(source)),
    )


@functools.cache
def binaries() -> dict[tuple[str, str], Future[Path]]:
    """Return what `compile_for` returns or raises, by source and architecture of PTX; a job for every CPU."""
    jobs = [(source, virtual) for source in sorted(SOURCES, key=_size) for virtual in architectures()]
    pool = ThreadPoolExecutor(os.cpu_count())
    futures = {(source.stem, virtual): pool.submit(compile_for, source, virtual) for source, virtual in jobs}
    pool.shutdown(wait=False)
    return futures


def _size(source: Path) -> int:
    return -source.stat().st_size


def read(binary: Path, *options: str) -> str:
    """Return what cuobjdump says: that of the CUDA toolkit, or of Triton, which comes with torch for CUDA."""
    of_triton = Path(find_spec("triton").origin).parent / "backends/nvidia/bin"
    folders = os.pathsep.join([os.environ["PATH"], str(of_triton)])
    done = subprocess.run(
        [shutil.which("cuobjdump", path=folders), *options, str(binary)],
        env={**os.environ, "PATH": folders},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


TYPES = {"double": "fp64", "float": "fp32", "BFloat16": "bf16", "Half": "fp16", "unsigned char": "uint8"}


@functools.cache
def demangle(names: tuple[str, ...]) -> dict[str, str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.splitlines(), strict=True))


@functools.cache
def kernels(source: str, gpu: str) -> list[Kernel]:
    """Every kernel of a source, as compiled for a GPU."""
    binary = binaries()[source, virtual_of(gpu)].result()
    said = read(binary, "--dump-resource-usage", "--gpu-architecture", f"sm_{gpu}")
    found = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", said)
    names = demangle(tuple(name for name, *_ in found))
    return [_kernel(names[name], *map(int, numbers)) for name, *numbers in found]


def _kernel(name: str, registers: int, stack: int, shared: int, local: int) -> Kernel:
    kernel, listed = re.search(r"(\w+)_kernel<(.*?)>\(", name).groups()
    arguments = [a.strip().rpartition("::")[2] for a in listed.split(",")]
    types = tuple(TYPES[a] for a in arguments if a in TYPES)
    vector = next((int(a) for a in arguments if a.isdigit()), 1)
    flags = tuple(a == "true" for a in arguments if a in ("true", "false"))
    if kernel.startswith(("conv_halo", "conv_rgb", "bias_act_signs")):
        vector, flags = 16 // {"fp32": 4}.get(types[0], 2), tuple(arguments[1:])
    if kernel == "upfirdn2d":
        flags = tuple(arguments[2:])  # channels_last, up, down, taps
    asked = ASKED.get(flags[:3], 0) if (kernel, types) == ("conv_halo", ("fp32",)) else 0
    return Kernel(kernel, types, vector, flags, registers, shared + asked, stack, local, asked)


def virtual_of(gpu: str) -> str:
    return next(virtual for virtual, gpus in architectures().items() if gpu in gpus)


@functools.cache
def sass(source: str, gpu: str) -> dict[str, str]:
    """The machine code of each kernel of a source, by its name."""
    binary = binaries()[source, virtual_of(gpu)].result()
    _, *parts = re.split(r"Function : (\w+)", read(binary, "--dump-sass", "--gpu-architecture", f"sm_{gpu}"))
    names = demangle(tuple(parts[::2]))
    return {str(_kernel(names[name], 0, 0, 0, 0)): code for name, code in zip(parts[::2], parts[1::2], strict=True)}


@functools.cache
def instructions(source: str, gpu: str) -> dict[str, set[str]]:
    """The instructions of each kernel of a source, without their operands, such as LDG.E.128, by its name."""
    opcode = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][\w.]+)", re.MULTILINE)
    return {kernel: set(opcode.findall(code)) for kernel, code in sass(source, gpu).items()}


@functools.cache
def loops(source: str, gpu: str) -> dict[str, list[int]]:
    """How many instructions the loops of each kernel have, the longest first; outer ones with inner ones."""
    found: dict[str, list[int]] = {}
    for kernel, code in sass(source, gpu).items():
        addresses, sizes = [], found.setdefault(kernel, [])
        for address, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", code, re.MULTILINE):
            addresses.append(int(address, 16))
            if back := re.search(r"BRA.* 0x([0-9a-f]+)", text):
                sizes.append(sum(int(back[1], 16) <= a for a in addresses))
        sizes.sort(reverse=True)
    return found


@functools.cache
def calculator() -> Path:
    """NVIDIA's occupancy calculator, cuda_occupancy.h, as a program."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    return build.make(FOLDER / "occupancy", NVCC, "-O1", str(build.HERE / "occupancy.cpp"))


def blocks(gpu: str, needs: Sequence[Kernel]) -> list[int]:
    """How many blocks of each kernel a multiprocessor runs at once."""
    threads, shared = MULTIPROCESSORS[gpu]
    # From 9.0 on cuobjdump includes the system's KiB, which the calculator adds; static memory ends at 48 KiB.
    lines = "".join(f"{k.registers} {min(k.shared - k.asked, 48 * 1024)} {k.asked}\n" for k in needs)
    arguments = [str(calculator()), gpu[:-1], gpu[-1], str(threads), str(shared * 1024)]
    done = subprocess.run(arguments, input=lines, capture_output=True, text=True, check=True)
    return [int(count) for count in done.stdout.split()]


def required_blocks(kernel: Kernel, gpu: str) -> int:
    """How many blocks of a kernel a multiprocessor is to have room for: kBlocks and its exceptions in csrc/cuda."""
    of_pixels = kernel.name == "bias_act_double_backward" and kernel.vector == 8 and kernel.flags == (False, True)
    if kernel.asked and MULTIPROCESSORS[gpu][1] < 160:
        return 0  # ops/conv_halo_gradients.py takes it for no such GPU
    return 1 if "fp64" in kernel.types or of_pixels else 2
