"""Fixtures that any test may use."""

import ctypes
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.ops.implementations import IMPLEMENTATIONS, Implementation


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request) -> Iterator[Implementation]:
    """Each way to compute an op in turn; one that cannot run here is skipped with its reason."""
    yield from _active(request.param)


@pytest.fixture(params=[name for name in IMPLEMENTATIONS if name not in ("reference", "auto")])
def fused(request) -> Iterator[Implementation]:
    """Each that has derivatives of its own, for tests on what those keep and compute."""
    yield from _active(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An implementation is not asked for dtypes that it cannot compute, nor a slow one for large samples."""
    items[:] = [item for item in items if not _beyond_its_implementation(item)]


def _beyond_its_implementation(item: pytest.Item) -> bool:
    given = item.callspec.params if hasattr(item, "callspec") else {}
    names = [given.get(name) for name in ("implementation", "fused", "impl")]
    implementation = next((IMPLEMENTATIONS[name] for name in names if name in IMPLEMENTATIONS), None)
    if implementation is None:
        return False
    sample = given.get("sample")
    dtypes = [given.get("dtype"), sample.options.get("dtype") if sample else None]
    too_large = implementation.slow and sample is not None and sample.is_large
    return too_large or any(dtype is not None and dtype not in implementation.dtypes for dtype in dtypes)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("needs_nvcc") and shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many of the tests that need nvcc ran, so that a log shows when none did."""
    count = {
        outcome: sum("needs_nvcc" in getattr(r, "keywords", ()) for r in terminalreporter.getreports(outcome))
        for outcome in ("passed", "failed", "skipped")
    }
    if any(count.values()):
        ran = count["passed"] + count["failed"]
        terminalreporter.write_line(f"tests that need nvcc: {ran} ran, {count['skipped']} were skipped")


def _active(name: str) -> Iterator[Implementation]:
    implementation = IMPLEMENTATIONS[name]
    if (reason := implementation.missing()) is not None:
        pytest.skip(f"{name}: {reason}")
    with implementation.active():
        yield implementation


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fresh CPU tensors hold NaN or, in places, other junk, so that an element that no kernel wrote shows.

    torch.empty and its like are filled by torch's deterministic mode. Kernels in C++ can get memory past those: torch's
    allocator has a switch of its own, which writes 0x7fedbeef everywhere (NaN in fp32, 1e308 in fp64).
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    junk = _allocator_switch()
    junk.value = True
    yield
    junk.value = False
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _allocator_switch() -> ctypes.c_bool:
    """The flag in torch's CPU allocator; a torch that does not export it leaves torch.empty's filling alone."""
    name = {"linux": "libc10.so", "darwin": "libc10.dylib"}.get(sys.platform, "c10.dll")
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
    try:
        return ctypes.c_bool.in_dll(library, "FLAGS_caffe2_cpu_allocator_do_junk_fill")
    except ValueError:
        return ctypes.c_bool()


@pytest.fixture
def threads() -> Iterator[None]:
    """Put back the number of threads that a test sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
