"""Rehearse `make gpu-check` as a rented machine has it: a copy of the tree, little beside torch, no network and no GPU.

    python -m tests.bench.rehearsal     by the Python that is to be there; what `make rehearse-gpu-check` runs

One part is killed as it begins, and must lose nothing but itself.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.gpu_check import findings
from bench.gpu_check.parts import parts

ROOT = Path(__file__).parents[2]
TREE = ROOT / "build/rehearsal"
KILLED = "steps_equal"


def check_ended(out: Path, failed: dict[str, str]) -> None:
    """Raise AssertionError unless all parts passed, but for those of `failed`, and the report says so."""
    expected = {part.name: "passed" for part in parts(rehearse=True)} | failed
    found = findings.read(out)
    ended = {line["what"]: line["result"] for line in found if line["part"] == "gpu_check"}
    assert ended == expected, {name: (ended.get(name), how) for name, how in expected.items() if ended.get(name) != how}
    wrong = [line for line in found if "failed" in line]
    assert not wrong, wrong
    of_pytest = {"matrix", "memcheck", "racecheck"}
    silent = set(expected) - of_pytest - set(failed) - {line["part"] for line in found} - {"convolutions"}
    assert not silent, f"without a finding: {silent}"
    report = (out / "report.md").read_text(encoding="utf-8")
    assert all(f"| {name} | {how} |" in report for name, how in expected.items())


def copy_tree() -> None:
    """Copy what git tracks or would, as it is on the disk; what an earlier rehearsal compiled stays."""
    TREE.mkdir(parents=True, exist_ok=True)
    for path in TREE.iterdir():
        if path.name != "build":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name, follow_symlinks=False)


def offline() -> list[str]:
    """Return what runs a command without network, or nothing where this machine does not allow it."""
    command = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") and not subprocess.run([*command, "true"], capture_output=True).returncode:
        return command
    print("rehearse-gpu-check: unshare is not allowed here, so that the network stays", file=sys.stderr)
    return []


def kill_part(name: str) -> bool:
    """Kill the process of a part of this rehearsal, which has the name in its arguments, if it is there."""
    command = f"{sys.executable}\0-m\0bench.gpu_check\0--part\0{name}\0".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes() == command and Path(os.readlink(folder / "cwd")) == Path.cwd():
                os.kill(int(folder.name), signal.SIGKILL)
                return True
        except OSError:
            continue  # ended meanwhile, or another user's
    return False


def main() -> int:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # For all GPUs nvcc takes a quarter of an hour, and here there is none to choose by.
    environment.setdefault("PGGAN_FAST_CUDA", "0")
    copy_tree()
    os.chdir(TREE)
    out = TREE / "bench/results/rehearsal"
    command = ["make", "gpu-check", "NO_VENV=1", f"PYTHON={sys.executable}", f"OPTIONS=--rehearse --out {out}"]
    if minutes := os.environ.get("MINUTES"):
        command.append(f"MINUTES={minutes}")
    with subprocess.Popen([*offline(), *command], env=environment, stdout=subprocess.PIPE, text=True) as made:
        for line in made.stdout:
            print(line, end="", flush=True)
            while line.startswith(f"== {KILLED},") and made.poll() is None and not kill_part(KILLED):
                time.sleep(0.05)  # it is about to start
    if not (out / "results.jsonl").exists():
        return made.returncode or 1  # it said why
    check_ended(out, {KILLED: "FAILED (-9)"})
    print((out / "report.md").read_text(encoding="utf-8").partition("\n## ")[0])
    print(f"rehearse-gpu-check: every part ended, and {KILLED}, which was killed, lost only itself")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
