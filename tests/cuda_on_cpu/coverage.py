"""Which lines and instances of the kernels the workload executes: gcov's counts for csrc/cuda.

python -m tests.cuda_on_cpu.coverage   prints them
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.cuda_on_cpu import build


class Coverage(NamedTuple):
    lines: dict[tuple[str, int], int]  # how often each line of a kernel and its headers ran, in whichever instance
    kernels: dict[str, int]  # how often each instance of each kernel ran, once for every CUDA thread


def measure() -> Coverage:
    folder = build.build("coverage").parent
    for counts in folder.glob("*.gcda"):
        counts.unlink()
    subprocess.run(
        [sys.executable, "-m", "tests.cuda_on_cpu.workload", "coverage"],
        cwd=build.ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    lines: dict[tuple[str, int], int] = {}
    kernels: dict[str, int] = {}
    for source in (build.ROOT / "csrc/cuda").glob("*.cu"):
        said = subprocess.run(
            ["gcov", "--json-format", "--stdout", str(folder / f"{source.name}.gcda")],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for file in json.loads(said)["files"]:
            path = Path(file["file"])
            if path.parent.name != "cuda" or path.parent.parent.name != "csrc":
                continue
            for line in file["lines"]:
                if path.suffix == ".cu" and "_kernel" not in line.get("function_name", ""):
                    continue  # the host's, with lines that only exceptions reach
                place = (path.name, line["line_number"])
                lines[place] = lines.get(place, 0) + line["count"]
            for function in file["functions"]:
                name = function["demangled_name"]
                if match := re.match(r"void pggan_fast::(?:\(anonymous namespace\)::)?(\w+_kernel<.*?>)\(", name):
                    kernels[match[1]] = kernels.get(match[1], 0) + function["execution_count"]
    return Coverage(lines, kernels)


if __name__ == "__main__":
    found = measure()
    for (name, line), count in sorted(found.lines.items()):
        if not count:
            print(f"{name}:{line} never runs")
    print(f"{sum(map(bool, found.lines.values()))} of {len(found.lines)} lines")
    print(f"{sum(map(bool, found.kernels.values()))} of {len(found.kernels)} instances of kernels")
