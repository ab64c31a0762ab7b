"""`make gpu-check` without a GPU: every part of it that can run here, and what it says where it cannot."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu_check import findings, report
from bench.gpu_check import parts as gpu_parts
from bench.gpu_check.command import check
from bench.gpu_check.parts import Part, parts
from tests.bench import rehearsal

ROOT = Path(__file__).parents[2]


def gpu_check(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.gpu_check", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = gpu_check("--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("gpu-check: torch ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_python_lacks_is_said_in_one_line(tmp_path):
    """A machine without network may have torch, but not all that this package depends on."""
    hide = (
        "import sys; sys.modules['safetensors'] = sys.modules['xdist'] = None; sys.argv = ['gpu_check']; import runpy"
    )
    code = f"{hide}; runpy.run_module('bench.gpu_check', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"gpu-check: {sys.executable} has no safetensors, xdist\n"


def python(name: str, code: str, share: float = 1.0) -> Part:
    return Part(name, (sys.executable, "-c", code), share)


IMPORTS = "import os; from pathlib import Path; from bench.gpu_check.findings import OUT, record"
RECORD = f"{IMPORTS}; out = Path(os.environ[OUT]);"


def run_parts(out: Path, seconds: float, *chosen: Part) -> tuple[int, list[dict]]:
    (out / "machine.txt").write_text("a machine\n")
    code = check(list(chosen), seconds, out, {**os.environ, findings.OUT: str(out), "PYTHONPATH": str(ROOT)})
    return code, findings.read(out)


def test_a_part_that_is_killed_loses_only_itself(tmp_path, monkeypatch):
    chosen = (
        python("first", f"{RECORD} record(out, 'first', 'a', found=1)"),
        python("killed", f"{RECORD} record(out, 'killed', 'b', found=2); os.kill(os.getpid(), 9)"),
        python("last", f"{RECORD} record(out, 'last', 'c', found=3)"),
    )
    code, found = run_parts(tmp_path, 600, *chosen)
    assert code == 1
    assert [line["found"] for line in found if "found" in line] == [1, 2, 3]
    assert [line["result"] for line in found if "result" in line] == ["passed", "FAILED (-9)", "passed"]
    assert "| killed | FAILED (-9) |" in (tmp_path / "report.md").read_text()
    monkeypatch.setattr(rehearsal, "parts", lambda rehearse: chosen)
    rehearsal.check_ended(tmp_path, {"killed": "FAILED (-9)"})
    with pytest.raises(AssertionError, match="'killed': .'FAILED"):
        rehearsal.check_ended(tmp_path, {})


def test_a_part_is_stopped_at_its_limit_with_all_that_it_started(tmp_path):
    code = "import subprocess, sys; child = subprocess.Popen(['sleep', '600']); print(child.pid); child.wait()"
    _, found = run_parts(tmp_path, 10, python("endless", code, 0.5), python("next", "pass", 0.5))
    assert [line["result"] for line in found] == ["stopped at its limit of 5 s", "passed"]
    end = time.monotonic() + 60
    while alive(int(found[0]["last_line"])):
        assert time.monotonic() < end, "a process of the part still runs"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended but was not waited for does not."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_what_a_part_leaves_of_its_time_the_others_get(tmp_path, capsys):
    run_parts(tmp_path, 100, python("quick", "pass", 0.5), python("next", "pass", 0.5))
    limits = [
        int(line.split("at most ")[1].split()[0]) for line in capsys.readouterr().out.splitlines() if "at most" in line
    ]
    assert limits[0] == 50 and limits[1] > 50


def test_what_fails_is_a_finding_and_a_cut_line_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv(findings.OUT, str(tmp_path))
    part = findings.Part("some")
    part.look("right", lambda: {"ms": 1.5})
    assert part.failed == 0
    part.look("wrong", lambda: 1 / 0)
    assert part.failed == 1  # so that the part is not said to have passed
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write('{"part": "some", "wh')
    (tmp_path / "machine.txt").write_text("a machine\n")
    page = report.text(tmp_path)
    assert "| some | wrong | ZeroDivisionError: division by zero |" in page
    assert "| right | 1.5 |" in page


def test_right_or_wrong_comes_before_any_timing():
    for rehearse in (True, False):
        timed = [part.timed for part in parts(rehearse)]
        assert timed == sorted(timed) and any(timed)


def test_a_rehearsal_runs_every_part_and_writes_the_report(tmp_path, monkeypatch):
    sanitizer = tmp_path / "bin/compute-sanitizer"
    sanitizer.parent.mkdir()
    # As the real one is called: --tool NAME --error-exitcode 9 COMMAND; here racecheck finds something.
    sanitizer.write_text('#!/bin/sh\n[ "$2" = racecheck ] && { echo "a race"; exit $4; }\nshift 4\nexec "$@"\n')
    sanitizer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sanitizer.parent}:{os.environ['PATH']}")
    out = tmp_path / "out"
    done = gpu_check("--rehearse", "--out", str(out))
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr
    rehearsal.check_ended(out, {"racecheck": "FAILED (9)"})
    found = findings.read(out)
    assert all("share_of_copy" in line for line in found if line["part"] == "pass_times")
    exact = [line for line in found if line["part"] == "steps_equal" and "exact" in line["what"]]
    assert exact and all(float(line["D's gradients"]) < 1e-6 for line in exact)
    assert json.loads((out / "results.jsonl").read_text().splitlines()[0])["part"] == "compile"
    assert "## steps\n\n| what | ms | seconds_per_kimg |" in (out / "report.md").read_text()


COLLECT = """
import sys
import pytest
import torch

torch.cuda.is_available = lambda: True  # names are those on a GPU; nothing runs
sys.exit(pytest.main([*sys.argv[1:], "--collect-only"]))
"""


def collected(part: Part) -> set[str]:
    """Return the names of the tests that a part of pytest's would run on a GPU."""
    arguments = [a for a in part.command[part.command.index("pytest") + 1 :] if a not in ("-n", "1")]
    done = subprocess.run([sys.executable, "-c", COLLECT, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return {line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line}


@pytest.mark.parametrize("name", ["matrix", "memcheck", "racecheck"])
def test_layers_of_few_channels_are_checked_and_watched(monkeypatch, name):
    """In both half precisions, captured and not; under a sanitizer each of them once."""
    monkeypatch.setattr(gpu_parts.shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(gpu_parts.os, "cpu_count", lambda: 2)
    (part,) = (part for part in parts(rehearse=False) if part.name == name)
    found = collected(part)
    layers = ("halo", "halo_32", "halo_down", "halo_up_norm", "halo_norm", "from_rgb", "to_rgb", "sign_bits")
    plain = {f"test_every_order_of_derivatives[gpu_native-{layer}-bf16]" for layer in layers}
    others = {test.replace("derivatives", "derivatives_in_a_graph").replace("bf16", "fp16") for test in plain}
    assert plain <= found and (others <= found if name == "matrix" else not others & found)
    assert any(test.startswith("test_values") for test in found)


WRONG_PASSES = """
import torch
from bench.gpu_check.passes import CASES, errors

for name, wrong in {
    "from RGB 3>16": lambda ours: lambda *t: ours(*t) * 1.03,
    "upfirdn2d blur": lambda ours: lambda x: ours(x).roll(1, -1),
    "filtered_lrelu": lambda ours: lambda x, bias: ours(x, bias + 0.1),
}.items():
    case = CASES[name]
    errors(case, torch.bfloat16)
    try:
        errors(case._replace(ours=wrong(case.ours)), torch.bfloat16)
    except AssertionError as error:
        print(name, error)
"""


def test_a_pass_that_is_wrong_is_found():
    """In a process of its own, which imports the part as a rehearsal does: small tensors on the CPU."""
    env = {**os.environ, "PGGAN_FAST_REHEARSE_GPU": "1"}
    done = subprocess.run([sys.executable, "-c", WRONG_PASSES], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.rpartition(" ")[0] for line in done.stdout.splitlines()] == [
        f"{name} too far from fp64: y" for name in ("from RGB 3>16", "upfirdn2d blur", "filtered_lrelu")
    ]
