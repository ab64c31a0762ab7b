"""Memory that runs out, in any command and at any moment: one line, exit code 2, no half-written file."""

import errno
import os
import subprocess
import sys

import pytest
import torch

from pggan_fast import cli
from pggan_fast.networks import Generator
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.memory import describe_out_of_memory
from pggan_fast.utils.memory_words import says_no_memory

# Each command with the function of `cli` that does its work.
WORK = {
    "prepare": ("prepare", "--images {folder} --out {new}"),
    "train": ("check_metrics", "--data {folder} --out {new}"),
    "generate": ("generate_images", "--weights w.safetensors --out {new}"),
    "interpolate": ("interpolate", "--weights w.safetensors --out {new}.gif"),
    "video": ("training_video", "--run {folder} --out {new}.gif"),
    "project": ("project_image", "--weights w.safetensors --image i.png --out {new}"),
    "evaluate": ("evaluate", "--weights w.safetensors --reals {folder}"),
    "import": ("import_weights", "--from official --weights w.pkl --out {new}"),
    "export": ("export_weights", "--weights w.safetensors --format onnx --out {new}"),
    "demo": ("demo", "--out {new} --cache {folder}"),
    "config": ("settings_text", ""),
    "doctor": ("report", ""),
}


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


ERRORS = {
    "python": MemoryError(),
    "numpy": MemoryError("Unable to allocate 9.00 GiB for an array"),
    "c++": RuntimeError("std::bad_alloc"),
    "torch": RuntimeError("[enforce fail at alloc_cpu.cpp:126] . DefaultCPUAllocator: can't allocate memory"),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAdvice of several lines"),
    "onednn": RuntimeError("could not create a primitive"),
    "thread": RuntimeError("can't start new thread"),
    "import": ImportError("libonnx.so: failed to map segment from shared object"),
    "system": OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    "by a library": chained(ValueError("export failed\nread on"), MemoryError()),
    "by a reader": chained(UserError("w.pkl: is damaged"), RuntimeError("std::bad_alloc")),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_says_it_in_one_line(command, error, tmp_path, capsys, monkeypatch):
    def without_memory(*_, **__):
        raise error

    work, arguments = WORK[command]
    monkeypatch.setattr(cli, work, without_memory)
    new = tmp_path / "new"
    assert cli.main([command, *arguments.format(folder=tmp_path, new=new).split()]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("pggan-fast: error: out of memory (") and printed.count("\n") == 1
    assert "continue with one or more of: " in printed
    assert not list(tmp_path.iterdir())


def test_export_names_the_format_that_needs_least_and_leaves_no_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "pggan_fast.convert.trained_generator", lambda *_: (Generator(8, fmap_max=8), {"resolution": 8, "alpha": 1.0})
    )

    def half_written(program, file):
        file.write(b"half")
        raise MemoryError

    monkeypatch.setattr(torch.export, "save", half_written)
    out = tmp_path / "g.pt2"
    assert cli.main(["export", "--weights", "w.safetensors", "--format", "torch-export", "--out", str(out)]) == 2
    assert "--format safetensors" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        UserError("--count 0: must be 1 or more"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("could not create a primitive descriptor iterator"),
        ImportError("a.so: failed to map segment from shared object: Operation not permitted"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        chained(UserError("w.pkl: is damaged"), EOFError()),
    ],
)
def test_other_errors_are_not_called_so(error):
    assert describe_out_of_memory(error) is None


LIMITED = """
import resource, sys
limit = int(sys.argv[1]) << 20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.argv = ["pggan-fast", "--version"]
from pggan_fast.cli import main
sys.exit(main())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits address space as Linux does")
@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("import os; os.abort()", "ulimit -v"),  # as std::terminate does
        ("import os; os._exit(1)", "ulimit -v"),  # as OpenBLAS does
        ("raise ImportError('several lines\\nof numpy: failed to map segment')", "ulimit -v"),
        ("raise ImportError('another reason')", None),
    ],
)
def test_loading_torch_that_ends_the_process_is_one_line(tmp_path, before, reason):
    """A stand-in for torch ends its process as torch does short of memory."""
    (tmp_path / "torch.py").write_text(before)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(1 << 20)],  # a limit that is never reached
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    if reason is None:
        assert done.returncode == 1 and "another reason" in done.stderr
    else:
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
        assert "too little memory to load torch" in done.stderr and reason in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits address space as Linux does")
def test_a_limit_that_suffices_changes_nothing():
    done = subprocess.run([sys.executable, "-c", LIMITED, str(1 << 20)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("\n") == 1


def test_words_of_the_loader():
    assert says_no_memory("libtorch_cpu.so: failed to map segment from shared object")
    assert not says_no_memory("no such file")
