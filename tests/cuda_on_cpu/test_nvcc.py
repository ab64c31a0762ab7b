"""That nvcc compiles csrc/cuda for every GPU without a warning, and what is in the binaries."""

import re

import pytest

from tests.cuda_on_cpu import nvcc, table

pytestmark = pytest.mark.needs_nvcc

GPUS = [gpu for gpus in nvcc.architectures().values() for gpu in gpus] if nvcc.NVCC else []
EVERY = pytest.mark.parametrize("source", [source.stem for source in nvcc.SOURCES])
# Whose vectors are of bytes where they are read.
NARROW = "uint8"


def test_the_gpus_are_those_of_the_table():
    """A new one in nvcc needs its multiprocessor's limits."""
    assert set(GPUS) <= set(nvcc.MULTIPROCESSORS)
    assert {"75", "80", "86", "89", "90", "100", "103", "110", "120", "121"} <= set(GPUS)


@pytest.mark.parametrize("gpu", GPUS)
@EVERY
def test_everything_stays_in_registers(source, gpu):
    """Compiled without a warning: no register is spilled and no kernel has local memory."""
    kernels = nvcc.kernels(source, gpu)
    assert len(kernels) >= 16
    assert [str(k) for k in kernels if k.stack or k.local] == []


@pytest.mark.parametrize("gpu", GPUS)
@EVERY
def test_enough_blocks_run_at_once(source, gpu):
    """Registers and shared memory leave room for as many on a multiprocessor as kBlocks asks for."""
    kernels = nvcc.kernels(source, gpu)
    blocks = dict(zip(kernels, nvcc.blocks(gpu, kernels), strict=True))
    assert {str(k): n for k, n in blocks.items() if n < nvcc.required_blocks(k)} == {}


@pytest.mark.parametrize("gpu", list(nvcc.architectures()) if nvcc.NVCC else [])
@EVERY
def test_vectors_are_loaded_and_stored_at_once(source, gpu):
    """16 bytes by one instruction, in every kernel that has vectors; and none touches local memory."""
    found = nvcc.instructions(source, gpu)
    vectors = [str(k) for k in nvcc.kernels(source, gpu) if k.vector > 1]
    assert bool(vectors) == (source != "fold")

    def without(opcode: str, kernels: list[str]) -> list[str]:
        wide = re.compile(rf"{opcode}(\.\w+)*\.128\b")
        return [kernel for kernel in kernels if not any(wide.match(used) for used in found[kernel])]

    assert without("LDG", [kernel for kernel in vectors if NARROW not in kernel and "upsample" not in kernel]) == []
    assert without("STG", vectors) == []
    assert [kernel for kernel, used in found.items() if any(u.startswith(("LDL", "STL")) for u in used)] == []


def test_the_table_is_what_nvcc_makes():
    assert table.PAGE.read_text() == table.page(), "python -m tests.cuda_on_cpu.table writes it anew"
