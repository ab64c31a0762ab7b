"""The command line as people use it: commands end to end, errors of one line, exit codes."""

import errno
import json
import os
import pty
import resource
import select
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from pggan_fast.cli import main
from pggan_fast.utils.program import python

TINY_SETTINGS = """
    --stable-kimg 0.032 --transition-kimg 0.032 --total-kimg 0.128 --batch-size 16
    --fmap-base 32 --fmap-max 8 --device cpu
"""
TINY = TINY_SETTINGS.split()


def as_module(*arguments):
    """The command as a message of `python -m pggan_fast` has it."""
    return " ".join([f"{python()} -m pggan_fast", *arguments])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six small images in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for index in range(6):
        path = folder / ("red", "blue")[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def work(photos, tmp_path_factory):
    """A folder with `data` prepared and `run` trained on it, with labels."""
    folder = tmp_path_factory.mktemp("work")
    data, run = str(folder / "data"), str(folder / "run")
    assert main(["prepare", "--images", str(photos), "--out", data, "--resolution", "8"]) == 0
    assert main(["train", "--data", data, "--out", run, "--labels", *TINY]) == 0
    return folder


def fails(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("pggan-fast: error: ") and printed.err.count("\n") == 1
    return printed.err


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in ("prepare", "train", "generate", "interpolate", "video", "demo", "doctor"):
        assert f"  {command} " in text
        with pytest.raises(SystemExit) as left:
            main([command, "--help"])
        assert left.value.code == 0
    assert main([]) == 0


def test_runs_as_a_module_without_a_traceback():
    command = [sys.executable, "-m", "pggan_fast", "train", "--data", "/nowhere", "--out", "/nowhere/run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "pggan-fast: error: --data /nowhere: no such folder; make one with:"
        f" {as_module('prepare')} --images FOLDER --out DATA\n"
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "no memory is left"),
        (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
        (ImportError("a.so: failed to map segment: Cannot allocate memory"), "Cannot allocate memory"),
    ],
)
def test_every_command_says_in_one_line_that_memory_ran_out(work, tmp_path, capsys, monkeypatch, error, reason):
    def without_memory(*_, **__):
        raise error

    monkeypatch.setattr("pggan_fast.convert.export_program", without_memory)
    message = fails(
        capsys, "export", "--run", str(work / "run"), "--format", "torch-export", "--out", str(tmp_path / "g.pt2")
    )
    assert "out of memory" in message and reason in message


def test_an_array_that_memory_does_not_suffice_for_is_not_called_damaged(tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "in.npy", np.zeros((4, 8, 8, 3), np.uint8))

    def without_memory(*_):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("pggan_fast.data.sources.array.map_npy", without_memory)
    message = fails(capsys, "prepare", "--images", str(tmp_path / "in.npy"), "--out", str(tmp_path / "data"))
    assert "out of memory" in message and "no array" not in message


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits address space as Linux does")
@pytest.mark.parametrize("megabytes", [300, 600])
def test_too_little_memory_to_load_torch_is_one_line(megabytes):
    limit = megabytes << 20  # libtorch_cpu alone is larger than 300 MiB
    done = subprocess.run(
        [sys.executable, "-m", "pggan_fast", "--version"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "too little memory to load torch" in done.stderr


def test_generate_writes_one_image_per_seed(work, capsys):
    out = work / "seeds"
    assert main(["generate", "--run", str(work / "run"), "--out", str(out), "--count", "3"]) == 0
    assert sorted(p.name for p in out.iterdir()) == [f"seed00000{seed}.png" for seed in range(3)]
    with Image.open(out / "seed000000.png") as image:
        assert (image.size, image.mode) == ((8, 8), "RGB")
    message = fails(capsys, "generate", "--run", work / "run", "--out", out, "--seed", "2")
    assert "holds seed000002.png already" in message
    assert len(list(out.iterdir())) == 3


def test_an_image_depends_on_its_seed_and_label_alone(work):
    weights = work / "run" / "final" / "generator.safetensors"
    for name, options in [
        ("many", ["--run", str(work / "run"), "--count", "5", "--label", "red"]),
        ("one", ["--weights", str(weights), "--seed", "3", "--count", "1", "--label", "1"]),
        ("blue", ["--run", str(work / "run"), "--seed", "3", "--count", "1", "--label", "blue"]),
    ]:
        assert main(["generate", "--out", str(work / name), *options]) == 0
    many, one, blue = (
        np.asarray(Image.open(work / name / "seed000003.png")).astype(int) for name in ("many", "one", "blue")
    )
    assert abs(many - one).max() <= 1  # convolutions of another batch size may round otherwise
    assert abs(many - blue).max() > 1


def test_generate_grid(work, capsys):
    assert main(["generate", "--run", str(work / "run"), "--out", str(work / "g"), "--grid"]) == 0
    with Image.open(work / "g" / "grid.png") as image:
        assert image.size == (4 * 64, 4 * 64)
        expected = np.asarray(image)
    arguments = ["generate", "--run", str(work / "run"), "--out", str(work / "four.PNG"), "--grid"]
    assert main(arguments) == 0  # the ending tells that a file is meant
    with Image.open(work / "four.PNG") as image:
        np.testing.assert_array_equal(image, expected)
    assert f"--out {work / 'four.PNG'}: exists already" in fails(capsys, *arguments)
    (work / "v1.png").mkdir()
    assert main(["generate", "--run", str(work / "run"), "--out", str(work / "v1.png"), "--grid"]) == 0
    assert [path.name for path in (work / "v1.png").iterdir()] == ["grid.png"]


def test_generate_from_an_unfinished_run(work):
    final = work / "run" / "final"
    final.rename(work / "elsewhere")
    try:
        arguments = ["generate", "--run", str(work / "run"), "--out", str(work / "checkpointed")]
        assert main(arguments) == 0
    finally:
        (work / "elsewhere").rename(final)
    assert main(["generate", "--run", str(work / "run"), "--out", str(work / "finished")]) == 0
    for image in (work / "finished").iterdir():
        assert image.read_bytes() == (work / "checkpointed" / image.name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("fly", "unknown command fly; must be one of: prepare, train"),
        ("trian", "doctor; did you mean train?"),
        ("config fly", "command fly: must be one of prepare, train"),
        ("train --data {work}/data --out {new} --total-kmg 3", "did you mean --total-kimg?"),
        ("train --out {new}", "--data is missing"),
        ("train --data {work}/data", "--out is missing"),
        ("train --data {work}/data --out {work}/run", "/pggan-fast train --resume {work}/run` or choose"),
        ("train --data {work} --out {new}", "no prepared folder"),
        ("train --data {work}/data --out {new} --resolution 16", "the data in"),
        ("train --data {work}/data --out {new} --device abacus", "--device abacus"),
        ("train --resume", "--resume: which run?"),
        ("train --resume {new}", "holds no run"),
        ("train --resume {work}/run --fmap-max 9", "--fmap-max: is fixed by"),
        ("prepare --images {work}/nowhere --out {new}", "no such folder"),
        ("prepare --images {work}/run --out {new} --crop left", "--crop left: must be one of center"),
        ("prepare --images {work} --out {work}/data", "not empty"),
        ("prepare --images {work} --out {new} --channels 5", "--channels 5: must be one of 1, 2, 3, 4"),
        ("interpolate --run {new} --out {new}", "holds no run"),
        ("interpolate --run {work}/run --out {new}.avi", "must end in .mp4 or .gif"),
        ("video --run {new} --out {new}", "holds no run"),
        ("generate --out {new}", "exactly one of them"),
        ("generate --run {new} --out {new}", "holds no run"),
        ("generate --weights {work}/x.safetensors --out {new}", "no such file"),
        ("generate --run {work}/run --out {new} --label green", "must be 0 to 1 or one of: blue, red"),
        ("generate --run {work}/run --out {new} --label 2", "must be 0 to 1"),
        ("generate --run {work}/run --out {new} --count 0", "--count 0"),
        ("generate --run {work}/run --out {new}.png", "must be a folder; --grid writes one .png file"),
        ("generate --run {work}/run --out {new}.jpg --grid", "must be a folder or end in .png"),
        ("generate --run {work}/run --out {new} --ensemble {new}", "--ensemble {new}: holds no run"),
        ("generate --run {work}/run --out {new} --ensemble {work}/run,", "must be paths with commas between them"),
        ("generate --run {work}/run --out {new} --ensemble=", "--ensemble : must be paths"),
        ("generate --run {work}/run --out {new} --latents=", "--latents : must be paths"),
        ("generate --weights {work}/run --out {new}", "is a folder, must be a .safetensors file"),
        ("generate --run {work}/run --out {new} --config {work}/none.toml", "none.toml: no such file"),
        ("generate --config {work}/run/config.json", "unknown setting data"),
        ("demo --speed", "unknown option --speed"),
        ("doctor --what", "unknown option --what"),
    ],
)
def test_mistakes(work, tmp_path, capsys, arguments, words):
    new = tmp_path / "new"
    assert words.format(work=work, new=new) in fails(
        capsys, *(part.format(work=work, new=new) for part in arguments.split())
    )
    assert not new.exists()


def test_weights_that_do_not_fit(work, tmp_path, capsys):
    for name in ("generator.safetensors", "generator.json"):
        (tmp_path / name).write_bytes((work / "run" / "final" / name).read_bytes())
    weights = tmp_path / "generator.safetensors"
    arguments = ["generate", "--weights", weights, "--out", tmp_path / "out"]
    described = tmp_path / "generator.json"
    described.write_text(described.read_text().replace('"fmap_max": 8', '"fmap_max": 4'))
    assert "does not fit generator.json" in fails(capsys, *arguments)
    weights.write_bytes(b"nothing like it")
    assert "does not fit generator.json" in fails(capsys, *arguments)
    described.write_text("{")
    assert "generator.json: is damaged" in fails(capsys, *arguments)


def test_a_fault_of_the_system_is_one_line_too(work, tmp_path, capsys):
    (tmp_path / "file").touch()
    data, below = ["--data", str(work / "data"), *TINY], tmp_path / "file" / "below"
    for arguments, words in [
        (["train", *data, "--out", below], f"--out {below}: cannot be used (Not a directory)"),
        (["train", *data, f"--out={below}"], f"--out {below}: cannot be used (Not a directory)"),
        (["train", "--config", tmp_path / "none.toml", "--out", below], f"--config {tmp_path}/none.toml: no such file"),
    ]:
        assert words in fails(capsys, *arguments)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "--out new: cannot be written (No space left on device)"),
        (PermissionError(errno.EACCES, "Permission denied", "new"), "--out new: cannot be used (Permission denied)"),
        (OSError(errno.EIO, "I/O error", "new/a.png"), "--out new: cannot be used (I/O error, new/a.png)"),
        (PermissionError(errno.EACCES, "Permission denied", "in"), "--run in: cannot be used (Permission denied)"),
        (OSError(errno.EIO, "I/O error", "in/final/a"), "--run in: cannot be used (I/O error, in/final/a)"),
        (OSError(errno.EIO, "I/O error", "elsewhere"), "elsewhere: cannot be used (I/O error)"),
        (OSError("--run in: is damaged"), "--run in: is damaged"),
    ],
)
def test_a_fault_of_the_system_names_the_argument(capsys, monkeypatch, error, line):
    def fault(*_):
        raise error

    monkeypatch.setattr("pggan_fast.cli.generate_images", fault)
    assert fails(capsys, "generate", "--run=in", "--out", "new") == f"pggan-fast: error: {line}\n"


def test_a_place_that_cannot_be_written_is_found_before_the_work(work, tmp_path, capsys, monkeypatch):
    def work_of_an_hour(*_, **__):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(sys.modules["pggan_fast.evaluation.evaluate"], "open_sources", work_of_an_hour)
    for name in ("convert.export_program", "generation.images.generate"):
        monkeypatch.setattr(f"pggan_fast.{name}", work_of_an_hour)
    (tmp_path / "file").touch()
    place = str(tmp_path / "file" / "x")
    for command, option in [
        ("evaluate --run {run} --out {place}.json", "--out {place}.json"),
        ("evaluate --run {run} --nearest {place}.png", "--nearest {place}.png"),
        ("export --run {run} --format torch-export --out {place}.pt2", "--out {place}.pt2"),
        ("interpolate --run {run} --out {place}.gif", "--out {place}.gif"),
        ("video --run {run} --out {place}.gif", "--out {place}.gif"),
        ("generate --run {run} --out {place}", "--out {place}"),
        ("generate --run {run} --grid --out {place}.png", "--out {place}.png"),
        ("import --from gan-zoo --weights {run} --out {place}", "--out {place}"),
    ]:
        message = fails(capsys, *command.format(run=work / "run", place=place).split())
        assert f"{option.format(place=place)}: {tmp_path / 'file'} is a file, must be a folder" in message


def test_resume_without_a_path_takes_out(work, capsys):
    assert main(["train", "--out", str(work / "run"), "--resume"]) == 0
    assert "finished after 128 images" in capsys.readouterr().out


def test_settings_from_a_file(work, tmp_path, capsys):
    """A run's own config.json makes the same run elsewhere; settings that a run has fixed may stand in the file."""
    settings = work / "run" / "config.json"
    assert main(["train", "--config", str(settings), "--out", str(tmp_path / "run"), "--tick-kimg", "2"]) == 0
    made = [json.loads((run / "config.json").read_text())["settings"] for run in (work / "run", tmp_path / "run")]
    assert {name for name in made[0] if made[0][name] != made[1][name]} == {"out", "tick_kimg"}
    for folder in ("final", "samples"):
        for path in (work / "run" / folder).iterdir():
            assert path.read_bytes() == (tmp_path / "run" / folder / path.name).read_bytes()
    assert main(["train", "--resume", str(tmp_path / "run"), "--config", str(settings)]) == 0
    assert "finished after 128 images" in capsys.readouterr().out
    other = tmp_path / "other.toml"
    other.write_text("fmap_max = 9")
    assert "--fmap-max: is fixed by" in fails(capsys, "train", "--resume", tmp_path / "run", "--config", other)
    other.write_text(f"run = {str(work / 'run')!r}\nout = {str(tmp_path / 'g')!r}\ncount = 3")
    assert main(["generate", "--config", str(other), "--count", "2"]) == 0
    assert len(list((tmp_path / "g").iterdir())) == 2
    other.write_text("preset = 'cpu-small'\nfmap_max = 8\nstart_resolution = 4")
    arguments = ["train", "--config", str(other), "--data", str(work / "data"), "--out", str(tmp_path / "small")]
    assert main([*arguments, *TINY]) == 0
    kept = json.loads((tmp_path / "small/config.json").read_text())["settings"]
    assert (kept["ema_half_life_kimg"], kept["fmap_max"]) == (4.0, 8)


def test_plain_lines_without_a_terminal(work, tmp_path):
    command = [sys.executable, "-m", "pggan_fast", "train", "--data", work / "data", *TINY, "--out"]
    done = subprocess.run([*command, tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert "128 images: 8 px alpha 1.00 D " in done.stdout
    assert "48 images: 8 px, layers fade in, batch 16" in done.stdout
    assert "\r" not in done.stdout


def test_ctrl_c_on_a_terminal_saves_and_leaves_with_130(work, tmp_path):
    run = tmp_path / "run"
    command = [sys.executable, "-m", "pggan_fast", "train", "--data", work / "data", "--out", run, *TINY]
    master, terminal = pty.openpty()
    process = subprocess.Popen([*command, "--total-kimg", "1000"], stdout=subprocess.PIPE, stderr=terminal, text=True)
    os.close(terminal)
    bar = b""
    while b" left" not in bar and process.poll() is None:  # however long a busy machine takes to begin
        if select.select([master], [], [], 1)[0]:
            bar += os.read(master, 1000)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate()
    os.close(master)
    assert process.returncode == 130
    assert f"stopped and saved; resume with: {as_module('train', '--resume')}" in printed
    assert "Traceback" not in printed
    assert len(list((run / "checkpoints").iterdir())) == 1
    text = bar.decode()
    for part in ("/1000000 images", " px alpha 1.00 D ", " G ", " img/s ", " left"):
        assert part in text


def test_doctor_reports_every_op(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "compiler", "native CPU kernels", "on cpu the ops take:", "equalized_conv2d", "not triton:"):
        assert word in text
