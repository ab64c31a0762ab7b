"""The command: runs the parts, each with its limit, and keeps the report up to date."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import torch

from bench.gpu_check import findings, report
from bench.gpu_check.parts import ROOT, Part, parts
from pggan_fast import _native, doctor

MODULES = {
    "compile": "compile_ahead",
    "passes": "passes",
    "pass_times": "passes",
    "halo_tiles": "halo",
    "halo_times": "halo",
    "steps_equal": "equality",
    "captured": "equality",
    "train": "equality",
    "steps": "timing",
    "convolutions": "timing",
    "memory_bound": "timing",
}


def unavailable_reason() -> str | None:
    """Return why this machine cannot be checked, or None."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU (--rehearse runs the parts without one)"
    return _native.cuda_reason or None


def run(part: Part, seconds: float, out: Path, environment: dict[str, str]) -> dict[str, object]:
    """Run a part for at most `seconds`, its output in OUT/NAME.txt; return how it ended."""
    begin = time.monotonic()
    log = out / f"{part.name}.txt"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env={**environment, **dict(part.environment)},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            ended = process.wait(seconds)
            result = "passed" if ended == 0 else f"FAILED ({ended})"
        except subprocess.TimeoutExpired:
            result = f"stopped at its limit of {seconds:.0f} s"
        finally:
            _kill_all(process)
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1].strip("= ")[:200] if lines else ""
    return {"result": result, "elapsed": round(time.monotonic() - begin, 1), "last_line": last}


def _kill_all(process: subprocess.Popen) -> None:
    """End the part's whole session: workers and compilers outlive the process that started them."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description="Check and measure on this GPU.")
    parser.add_argument("--minutes", type=float, default=60.0, metavar="N", help="Time for all parts (default 60).")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="New folder (default bench/results/gpu-check-DATE).")
    parser.add_argument("--only", metavar="PART,...", help="Run these parts alone (default: all).")
    parser.add_argument("--rehearse", action="store_true", help="Run the same code without a GPU, at small sizes.")
    parser.add_argument("--part", choices=tuple(MODULES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        module = importlib.import_module(f"bench.gpu_check.{MODULES[given.part]}")
        part = findings.Part(given.part)
        getattr(module, given.part)(part)
        return 1 if part.failed else 0

    chosen = parts(given.rehearse)
    if given.only:
        unknown = set(given.only.split(",")) - {part.name for part in chosen}
        if unknown:
            parser.error(f"--only {given.only}: must be of {', '.join(part.name for part in chosen)}")
        chosen = [part for part in chosen if part.name in given.only.split(",")]
    if not given.minutes > 0:
        parser.error(f"--minutes {given.minutes}: must be above 0")
    if not given.rehearse and (reason := unavailable_reason()):
        print(f"gpu-check: {reason}", file=sys.stderr)
        return 2
    out = given.out or ROOT / f"bench/results/gpu-check-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"
    out = out.absolute()
    if (out / "results.jsonl").exists():
        parser.error(f"--out {out}: holds results already; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / "machine.txt").write_text(doctor.report() + "\n", encoding="utf-8")
    environment = {**os.environ, findings.OUT: str(out), "PYTHONUNBUFFERED": "1"}
    if given.rehearse:
        environment["PGGAN_FAST_REHEARSE_GPU"] = "1"
    return check(chosen, 60 * given.minutes, out, environment)


def check(chosen: list[Part], seconds: float, out: Path, environment: dict[str, str]) -> int:
    """Run the parts one after the other; what one leaves of its time, the later ones get. Return the exit code."""
    end, failed = time.monotonic() + seconds, 0
    for index, part in enumerate(chosen):
        share = part.share / sum(p.share for p in chosen[index:])
        limit = max(0.0, end - time.monotonic()) * share
        print(f"== {part.name}, at most {limit:.0f} s: {' '.join(part.command)}", flush=True)
        ended = run(part, limit, out, environment)
        failed += ended["result"] != "passed"
        findings.record(out, "gpu_check", part.name, **ended)
        (out / "report.md").write_text(report.text(out), encoding="utf-8")
    print(f"== written: {out / 'report.md'}")
    return 1 if failed else 0
