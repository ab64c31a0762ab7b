"""Everything that only a GPU can show, in one report: `make gpu-check`.

    python -m bench.gpu_check [--out FOLDER] [--rehearse]

Runs the op matrix on the GPU in the native and the Triton kernels, with other streams, devices and graphs, the matrix
under compute-sanitizer where that is installed, and the benchmarks, timed with CUDA events; then writes
gpu-check-DATE-report.md. --rehearse goes through the same steps without a GPU: the matrix on the CPU harness, the
benchmarks at their smallest.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from pggan_fast import _native, doctor

ROOT = Path(__file__).parents[1]
PYTEST = (sys.executable, "-m", "pytest", "-q")
MATRIX = ("tests/ops/test_values.py", "tests/ops/test_gradients.py", "tests/ops/test_gpu.py")
# The whole matrix takes hours under a sanitizer.
SANITIZED = "(bias_act or fade or stddev or sample2x) and not empty"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


@dataclass
class Step:
    title: str
    command: tuple[str, ...]
    returncode: int = -1
    seconds: float = 0.0
    output: str = ""

    def run(self, environment: dict[str, str]) -> None:
        print(f"== {self.title}: {' '.join(self.command)}", flush=True)
        begin, lines = time.monotonic(), []
        with subprocess.Popen(
            self.command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line)
        self.returncode, self.seconds, self.output = process.returncode, time.monotonic() - begin, "".join(lines)

    @property
    def verdict(self) -> str:
        return "passed" if self.returncode == 0 else f"FAILED ({self.returncode})"

    @property
    def last_line(self) -> str:
        lines = [line for line in self.output.splitlines() if line.strip()]
        return lines[-1].strip("= ") if lines else ""


def steps(rehearse: bool, result: Path) -> list[Step]:
    """In the order of what one wants to know first."""
    which = "gpu_rehearsed and upsample2x" if rehearse else "gpu"
    found = [Step("op matrix", (*PYTEST, *MATRIX, "-k", which))]
    if sanitizer := shutil.which("compute-sanitizer"):
        checked = (*PYTEST, MATRIX[0], "-k", which if rehearse else f"gpu and {SANITIZED}")
        for tool in TOOLS:
            found.append(Step(tool, (sanitizer, "--tool", tool, "--error-exitcode", "9", *checked)))
    benchmarks = (
        ("bench/bench_ops.py", "--shape", "2,8,8,8", "-k", "fade_in") if rehearse else ("bench/", "--all-sizes")
    )
    found.append(Step("benchmarks", (*PYTEST, *benchmarks, "--result", str(result))))
    if not rehearse:
        graphs = str(result.with_stem(f"{result.stem}-graphs"))
        found.append(
            Step("small work in CUDA graphs", (*PYTEST, "bench/bench_small.py", "--graphs", "--result", graphs))
        )
    return found


def missing() -> str | None:
    """Why this machine cannot be checked, or None."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU (--rehearse goes through the steps without one)"
    return _native.cuda_reason or None


def report(done: list[Step], rehearsed: bool, result: Path) -> str:
    rows = [f"| {s.title} | {s.verdict} | {s.seconds:.0f} | {s.last_line} |" for s in done]
    title = "Rehearsal without a GPU" if rehearsed else f"Checked on {torch.cuda.get_device_name()}"
    parts = [
        f"# {title}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "\n".join(["| step | result | seconds | last line |", "|---|---|---|---|", *rows]),
        "" if shutil.which("compute-sanitizer") else "compute-sanitizer is not installed: nothing ran under it.",
        f"```\n{doctor.report()}\n```",
    ]
    parts += [f"## {s.title}\n\n```\n{tail(s.output)}\n```" for s in done if s.returncode != 0]
    figures = result.with_suffix(".md")
    if figures.exists():
        parts.append(figures.read_text(encoding="utf-8"))
    return "\n\n".join(part for part in parts if part) + "\n"


def tail(output: str, lines: int = 60) -> str:
    return "\n".join(output.splitlines()[-lines:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="folder of the report")
    parser.add_argument("--rehearse", action="store_true", help="the same steps, small, without a GPU")
    given = parser.parse_args()
    if not given.rehearse and (reason := missing()):
        print(f"gpu-check: {reason}", file=sys.stderr)
        return 2
    given.out.mkdir(parents=True, exist_ok=True)
    name = f"gpu-check-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"
    result = (given.out / f"{name}.json").absolute()
    environment = {**os.environ, **({"PGGAN_FAST_REHEARSE_GPU": "1"} if given.rehearse else {})}
    done = steps(given.rehearse, result)
    for step in done:
        step.run(environment)
    path = given.out / f"{name}-report.md"
    path.write_text(report(done, given.rehearse, result), encoding="utf-8")
    print(f"== {', '.join(f'{s.title} {s.verdict}' for s in done)}\n== written: {path}")
    return 0 if all(step.returncode == 0 for step in done) else 1


if __name__ == "__main__":
    raise SystemExit(main())
