"""`make gpu-check` without a GPU: every step of it that can run here, and what it says where it cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
slow = pytest.mark.skipif("PGGAN_FAST_TEST_KERNELS" not in os.environ, reason="slow: run by make test-kernels")


def gpu_check(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.gpu_check", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = gpu_check("--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("gpu-check: torch ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@slow
def test_a_rehearsal_runs_every_step_and_writes_the_report(tmp_path):
    sanitizer = tmp_path / "bin/compute-sanitizer"
    sanitizer.parent.mkdir()
    # As the real one is called: --tool NAME --error-exitcode 9 COMMAND; here racecheck finds something.
    sanitizer.write_text('#!/bin/sh\n[ "$2" = racecheck ] && { echo "a race"; exit $4; }\nshift 4\nexec "$@"\n')
    sanitizer.chmod(0o755)
    done = gpu_check("--rehearse", "--out", str(tmp_path / "out"), PATH=f"{sanitizer.parent}:{os.environ['PATH']}")
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr
    (path,) = (tmp_path / "out").glob("*-report.md")
    report = path.read_text()
    assert report.startswith("# Rehearsal without a GPU")
    verdicts = {line.split(" | ")[0][2:]: line.split(" | ")[1] for line in report.splitlines() if line.startswith("| ")}
    expected = dict.fromkeys(("op matrix", "memcheck", "initcheck", "synccheck", "benchmarks"), "passed")
    assert expected | {"racecheck": "FAILED (9)"} == {
        k: v for k, v in verdicts.items() if k in expected or k == "racecheck"
    }
    assert "## racecheck\n\n```\na race\n```" in report
    assert "fade_in" in report.partition("# Results of")[2]
