"""That sanitizers find what is wrong with a kernel, and nothing in those of csrc/cuda, every line of which runs."""

import os
import subprocess
import sys

import pytest

from tests.cuda_on_cpu import build, coverage


def python(variant: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a process that can load the harness built with a sanitizer."""
    build.build(variant)
    environment = {**os.environ, **build.sanitizer_environment(variant), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=build.ROOT, env=environment, capture_output=True, text=True)


def run_planted(variant: str, call: str) -> subprocess.CompletedProcess[str]:
    """Call a kernel with a planted bug."""
    return python(variant, "-c", f"from tests.cuda_on_cpu import build\nbuild.load({variant!r}).{call}\nprint('done')")


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("overrun", "AddressSanitizer: heap-buffer-overflow"),
        ("shared_overrun", "AddressSanitizer: heap-buffer-overflow"),
        ("misaligned", "misaligned address"),
    ],
)
def test_sanitizers_find_bad_addresses(name, report):
    right = run_planted("address", f"{name}(right=True)")
    assert right.returncode == 0 and "done" in right.stdout, right.stderr
    wrong = run_planted("address", f"{name}()")
    assert wrong.returncode != 0
    assert report in wrong.stderr and "planted.cu" in wrong.stderr


def test_thread_sanitizer_finds_a_missing_barrier():
    right = run_planted("thread", "missing_barrier(right=True)")
    assert right.returncode == 0 and "done" in right.stdout, right.stderr
    wrong = run_planted("thread", "missing_barrier()")
    assert wrong.returncode == 66
    assert "data race" in wrong.stderr and "planted.cu" in wrong.stderr


@pytest.mark.parametrize(("variant", "launches"), [("address", 1500), ("thread", 250)])
def test_sanitizers_find_nothing_in_the_kernels(variant, launches):
    done = python(variant, "-m", "tests.cuda_on_cpu.workload", variant)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout.split()[0]) > launches


@pytest.fixture(scope="module")
def measured() -> coverage.Coverage:
    return coverage.measure()


def test_every_line_runs(measured):
    assert len(measured.lines) > 400
    assert sorted(place for place, count in measured.lines.items() if not count) == []


def test_every_instance_of_a_kernel_runs(measured):
    """Each dtype and layout, vectors and single elements."""
    assert len(measured.kernels) > 200
    assert sorted(kernel for kernel, count in measured.kernels.items() if not count) == []
