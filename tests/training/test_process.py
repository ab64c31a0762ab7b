"""Effects of the trainer on its own process: malloc's thresholds and OpenMP's spinning."""

import os
import platform
import subprocess
import sys

import pytest

from pggan_fast.training.runtime import openmp
from pggan_fast.training.runtime.malloc import keep_freed_memory

PAGE_FAULTS = """
import resource, torch
from pggan_fast.training.runtime.malloc import keep_freed_memory
assert keep_freed_memory()
for repeat in range(30):
    if repeat == 24:  # malloc needs some rounds before an aligned block fits where one was freed
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(12 << 20).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_large_blocks_are_kept():
    """6 times 48 MiB from the kernel are 73,728 page faults (144 with huge pages); from kept memory, none."""
    done = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


def test_elsewhere_it_says_that_it_could_not(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1"))
    assert keep_freed_memory() is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="done on Linux only")
def test_starts_anew_once_with_a_short_spin_count(monkeypatch):
    started = []
    monkeypatch.setattr(openmp.os, "execv", lambda program, command: started.append(command))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pggan_fast", "train"])
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    openmp.spin_briefly()
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
    openmp.spin_briefly()
    assert started == [[sys.executable, "-m", "pggan_fast", "train"]]


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_leaves_a_settled_environment_alone(monkeypatch, name):
    monkeypatch.setattr(openmp.os, "execv", lambda *_: pytest.fail("started anew"))
    monkeypatch.setenv(name, "1")
    before = dict(os.environ)
    openmp.spin_briefly()
    assert dict(os.environ) == before
