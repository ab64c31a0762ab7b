"""Compiles the very kernels that a launching function would launch, for a GPU that is not here."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from pggan_fast.kernels import conv, conv_tiles, conv_weight_gradient

CAPABILITIES = (75, 80, 86, 90, 100, 120)
# Bytes of shared memory that a block may have (CUDA programming guide, technical specifications per capability).
SHARED_MEMORY = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class Compiled(NamedTuple):
    """Metadata that the cubin of one launch states about itself."""

    kernel: str
    capability: int
    registers: int
    local_bytes: int  # spills and arrays that have no register
    shared_bytes: int
    warps: int
    sass: str

    def count(self, instruction: str) -> int:
        """How often an instruction, given as a regular expression, occurs in the code."""
        return len(re.findall(rf"\b{instruction}", self.sass))


class _Driver:
    """The part of Triton's driver that compiling asks for; one device per compute capability."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


@contextmanager
def compiling(module: ModuleType, capability: int) -> Iterator[list[Compiled]]:
    """Inside, the module's kernels are compiled instead of launched; meta tensors will do. Yields what came of it."""
    found: list[Compiled] = []
    # Functions that kernels call are compiled with them.
    kernels = {k: v for k, v in vars(module).items() if isinstance(v, JITFunction) and k.endswith("_kernel")}
    with assumed_gpu(capability):
        try:
            for name, kernel in kernels.items():
                setattr(module, name, _Compiler(name, kernel, capability, found))
            yield found
        finally:
            for name, kernel in kernels.items():
                setattr(module, name, kernel)


def forget_plans() -> None:
    """Let the next launch of a convolution be planned anew."""
    for module in (conv, conv_weight_gradient):
        module._cached_plan.cache_clear()


@contextmanager
def assumed_gpu(capability: int) -> Iterator[None]:
    """Inside, Triton takes itself to be on a GPU of this compute capability, as far as compiling goes."""
    before = driver._active
    driver.set_active(_Driver(capability))
    try:
        # Tiles follow from the capability: those planned for another are not this one's.
        forget_plans()
        with mock.patch.object(conv_tiles, "capability", lambda: divmod(capability, 10)):
            yield
    finally:
        forget_plans()
        driver._active = before


class _Compiler:
    def __init__(self, name: str, kernel: JITFunction, capability: int, found: list[Compiled]):
        self.name, self.kernel, self.capability, self.found = name, kernel, capability, found

    def __getitem__(self, grid: tuple[int, ...]):
        def compile_one(*args, **kwargs) -> None:
            compiled = self.kernel.warmup(*args, grid=grid, **kwargs)
            usage, sass = inspect(compiled.asm["cubin"])
            metadata = compiled.metadata
            self.found.append(
                Compiled(self.name, self.capability, *usage, metadata.shared, metadata.num_warps, sass),
            )

        return compile_one


def inspect(cubin: bytes) -> tuple[tuple[int, int], str]:
    """((registers, local bytes), instructions) of a cubin with one kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (_run("cuobjdump", option, file.name) for option in ("-res-usage", "-sass"))
    numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    return (int(numbers["REG"]), int(numbers["STACK"]) + int(numbers["LOCAL"])), sass


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout
