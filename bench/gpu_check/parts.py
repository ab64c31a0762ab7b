"""The parts of `make gpu-check` in order of worth, and the share of the minutes that each may take."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTEST = (sys.executable, "-m", "pytest", "-q", "--tb=line", "-rfE", "-p", "no:cacheprovider")
LAYERS = "tests/ops/test_gpu_layers.py"
MATRIX = ("tests/ops/test_values.py", "tests/ops/test_gradients.py", "tests/ops/test_gpu.py", LAYERS)
# A kernel of each kind, small, and every layer of few channels: under a sanitizer the whole matrix takes hours.
SANITIZED = (
    "test_values_and and gpu_native and not n8_ and not norm_"
    " and (bias_act-norm or many_pixels or odd or fade_in-tensor or uint8_rgb or stddev-n8)"
    " or test_every_order and gpu_native and bf16 and not in_a_graph"
)


@dataclass(frozen=True)
class Part:
    """A command with a share of the time; `timed` ones must have the GPU to themselves."""

    name: str
    command: tuple[str, ...]
    share: float
    environment: tuple[tuple[str, str], ...] = ()
    timed: bool = False


def parts(rehearse: bool) -> list[Part]:
    """Return all parts in order: compiled, right, safe, equal to the CPU's, trained, and only then fast."""
    workers = str(max(1, (os.cpu_count() or 1) - 1))
    # Without a GPU the public ops on the CPU take the matrix's place.
    matrix = (*MATRIX[:1], "-k", "native and upsample2x") if rehearse else (*MATRIX, "-k", "gpu", "-n", workers)
    found = [_own("compile", 0.10), Part("matrix", (*PYTEST, *matrix), 0.25)]
    if sanitizer := shutil.which("compute-sanitizer"):
        watched, chosen = (MATRIX[:1], "native and upsample2x") if rehearse else ((MATRIX[0], LAYERS), SANITIZED)
        for tool in ("memcheck", "racecheck"):
            command = (sanitizer, "--tool", tool, "--error-exitcode", "9", *PYTEST, *watched, "-k", chosen)
            # Blocks of their own, or an overrun inside the allocator's is not seen.
            found.append(Part(tool, command, 0.08, (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)))
    found += [
        _own("halo_tiles", 0.03),
        _own("passes", 0.03),
        _own("steps_equal", 0.06),
        _own("captured", 0.08),
        _own("train", 0.08),
        _own("steps", 0.10, timed=True),
        _own("convolutions", 0.08, timed=True),
        _own("memory_bound", 0.09, timed=True),
        _own("halo_times", 0.03, timed=True),
        _own("pass_times", 0.03, timed=True),
    ]
    return found


def _own(name: str, share: float, timed: bool = False) -> Part:
    return Part(name, (sys.executable, "-m", "bench.gpu_check", "--part", name), share, timed=timed)
