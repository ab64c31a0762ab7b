"""Files of a run that were edited, damaged or made by a stranger, and what disturbs a run from outside.

PGGAN_FAST_MUTATIONS sets how many mutations of each kind of file are tried (100 by default, 2,000 at length).
"""

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from pggan_fast.training import RunFolder, UserError, train
from pggan_fast.training.checkpoint import checkpoints, load_checkpoint, load_run_checkpoint, save_checkpoint
from pggan_fast.training.logging.report import Report
from pggan_fast.training.run_lock import LOCK
from pggan_fast.training.trainer import build_step, restore
from tests.training.runs import config, stats, write_data

MUTATIONS = int(os.environ.get("PGGAN_FAST_MUTATIONS", 100))
VALUES = (
    None,
    True,
    -1,
    0,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "a\0b",
    "\ud800",
    "<b>",
    [],
    {},
    [[]],
    {"": 1},
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert train(RunFolder.create(config(data, out, total_kimg=0.08, checkpoint_kimg=0.032)))
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def places(value, path=()):
    """Every place in nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield (*path, key)
        yield from places(item, (*path, key))


def mutated(value, chance):
    """A copy with one part of another type, or without it."""
    value = copy.deepcopy(value)
    *parents, last = chance.choice(list(places(value)))
    holder = value
    for key in parents:
        holder = holder[key]
    if chance.random() < 0.3:
        del holder[last]
    else:
        holder[last] = chance.choice(VALUES)
    return value


def taken_or_one_line(action):
    """Return whether `action` does it, or says in one line why not; any other exception is a failure."""
    try:
        action()
    except UserError as error:
        assert "\n" not in str(error)
        return False
    return True


def test_settings_of_other_types(run):
    path, chance = run / "config.json", random.Random(1)
    whole, taken = json.loads(path.read_text()), []
    for _ in range(MUTATIONS):
        path.write_text(json.dumps(mutated(whole, chance)))
        taken.append(taken_or_one_line(lambda: RunFolder.open(run, {})))
    assert not all(taken), "none of the changed files is refused"


def test_statistics_of_other_types(run, capsys):
    chance, lines = random.Random(2), stats(run)
    opened = RunFolder.open(run, {})
    for _ in range(MUTATIONS):
        changed = mutated(lines, chance)
        (run / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
        Report(opened).write()
        opened.drop_stats_after(80)
        Report(opened).write()
    assert (run / "report.html").read_text(encoding="utf-8").startswith("<!")


def test_checkpoints_of_other_types(run):
    opened, chance = RunFolder.open(run, {}), random.Random(3)
    step = build_step(opened.config, opened.data, torch.device("cpu"))
    whole = load_checkpoint(checkpoints(run / "checkpoints")[-1])

    def load(path):
        restore(step, path, load_run_checkpoint(path))

    taken = []
    for _ in range(MUTATIONS // 4):
        state = mutated({k: v for k, v in whole.items() if k not in ("format", "images")}, chance)
        path = save_checkpoint(run / "other", 1, state)
        taken.append(taken_or_one_line(lambda path=path: load(path)))
    assert not all(taken), "none of the changed checkpoints is refused"


def test_a_run_below_a_folder_whose_name_is_not_utf8_resumes(data, tmp_path):
    out = tmp_path / os.fsdecode(b"caf\xe9") / "run"
    assert train(RunFolder.create(config(data, out, total_kimg=0.064)))
    assert train(RunFolder.open(out, {"total_kimg": 0.096}))
    assert stats(out)[-1]["images"] == 96


def test_foreign_lines_are_set_aside(run, capsys):
    before = stats(run)
    with open(run / "stats.jsonl", "a") as file:
        file.write("hello\n[1]\n\0\0\n")
    assert train(RunFolder.open(run, {}))
    assert stats(run) == before and "3 lines are damaged" in capsys.readouterr().out
    assert "hello" in (run / "stats.jsonl.damaged").read_text()


def test_a_copy_beside_the_checkpoints_is_none(run):
    newest = checkpoints(run / "checkpoints")[-1]
    shutil.copy(newest, newest.with_name(f"{newest.stem} (copy).pt"))
    assert checkpoints(run / "checkpoints")[-1] == newest
    assert train(RunFolder.open(run, {"total_kimg": 0.096}))


def test_a_checkpoint_of_another_run_is_refused(data, run, tmp_path):
    other = tmp_path / "other"
    assert train(RunFolder.create(config(data, other, seed=1, total_kimg=0.096)))
    shutil.copy(checkpoints(other / "checkpoints")[-1], run / "checkpoints" / "000000999.pt")
    with pytest.raises(UserError, match="is of another run"):
        train(RunFolder.open(run, {"total_kimg": 2.0}))


def test_a_checkpoint_without_an_id_loads(run):
    path = checkpoints(run / "checkpoints")[-1]
    state = {k: v for k, v in load_checkpoint(path).items() if k not in ("format", "images")}
    save_checkpoint(run / "checkpoints", int(path.stem), state)
    assert train(RunFolder.open(run, {"total_kimg": 0.096}))


def test_nothing_behind_a_link_is_deleted(run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (run / "checkpoints").rename(elsewhere)
    (elsewhere / "000000001.pt").write_text("somebody's")
    (elsewhere / "000000002.pt").write_text("somebody's")
    (run / "checkpoints").symlink_to(elsewhere)
    before = set(os.listdir(elsewhere))
    assert train(RunFolder.open(run, {"total_kimg": 0.24}))
    assert before < set(os.listdir(elsewhere))


def test_what_a_run_did_not_write_is_kept(run):
    for name in ("000000001.pt", "000000002.pt"):
        (run / "checkpoints" / name).write_text("somebody's")
    assert train(RunFolder.open(run, {"total_kimg": 0.24}))
    assert {"000000001.pt", "000000002.pt"} < set(os.listdir(run / "checkpoints"))


@pytest.mark.parametrize("name", ["stats.jsonl", "samples", "final", "report.html"])
def test_links_of_a_run_are_refused(run, tmp_path, name):
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{name} is a link"):
        RunFolder.open(run, {})


LOCKED = "import sys, pathlib; from pggan_fast.training.run_lock import lock_run; lock_run(pathlib.Path(sys.argv[1]))"
HOLD = LOCKED + "; print('held', flush=True); sys.stdin.read()"


def test_one_trainer_per_run(run):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    before = (run / "config.json").read_bytes()
    with pytest.raises(UserError, match="another process is training this run"):
        RunFolder.open(run, {"total_kimg": 0.096})
    assert (run / "config.json").read_bytes() == before
    holder.kill()
    holder.communicate()
    assert train(RunFolder.open(run, {}))
    assert not (run / LOCK).exists()


def test_an_array_cut_while_it_is_mapped(tmp_path):
    data, out = write_data(tmp_path / "data"), tmp_path / "run"
    run = RunFolder.create(config(data, out))
    run.data.images(8)
    (data / "images_8.npy").write_bytes(b"")  # the mapping is there, the file behind it is not
    with pytest.raises(UserError, match="images_8.npy"):
        train(run)
    assert checkpoints(out / "checkpoints")


def test_loggers_never_end_a_run(run, capsys):
    (run / "samples" / "._000000100.png").write_text("x")
    (run / "samples" / "000000001.png").write_text("no image")
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    assert train(RunFolder.open(run, {"total_kimg": 0.16}))
    assert capsys.readouterr().out.count("warning: ") == 1
    (run / "report.html").rmdir()
    assert train(RunFolder.open(run, {"total_kimg": 0.2}))
    assert "no image" not in (run / "report.html").read_text() and "warning" not in capsys.readouterr().out


def test_a_last_tick_without_a_finite_step_leaves_no_weights(data, tmp_path):
    broken = write_data(tmp_path / "data")
    run = RunFolder.create(config(broken, tmp_path / "run", learning_rate={4: 1000.0}, total_kimg=0.064))
    run.config.__dict__["penalty_weight"] = float("nan")  # what the options refuse
    with pytest.raises(UserError, match="no finite step in the last tick.*--learning-rate"):
        train(run)
    assert not run.final.exists()


def test_a_run_that_had_not_begun_can_be_started_again(data, tmp_path):
    out = tmp_path / "run"
    RunFolder.create(config(data, out, total_kimg=0.016))
    assert train(RunFolder.create(config(data, out, total_kimg=0.016)))
    with pytest.raises(UserError, match="holds a run already"):
        RunFolder.create(config(data, out))


COMMAND = [sys.executable, "-m", "pggan_fast", "train", "--device", "cpu", "--fmap-base", "64", "--fmap-max", "8"]
COMMAND += ["--stable-kimg", "0.064", "--transition-kimg", "0.032", "--batch-size", "16", "--no-tensorboard"]


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "| true", "> /dev/full"])
def test_nobody_listens(data, tmp_path, redirection):
    out = tmp_path / "run"
    command = " ".join(map(str, [*COMMAND, "--data", data, "--out", out, "--total-kimg", "0.064"]))
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command} {redirection}"], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (out / "final" / "generator.safetensors").exists()


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM", "SIGINT"])
def test_a_signal_while_torch_is_imported_leaves_nothing(data, tmp_path, name):
    """Sent by the import itself, so at the same moment every time."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "numpy.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.{name})\n")
    done = subprocess.run(
        [*COMMAND, "--data", data, "--out", tmp_path / "run"],
        env={**os.environ, "PYTHONPATH": str(hook)},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # under nohup it is ignored
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (130, "pggan-fast: interrupted\n")
    assert not (tmp_path / "run").exists()


CTRL_C = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"


def heed_ctrl_c() -> None:
    """Undo what a shell does to its processes in the background: SIGINT is ignored there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("command", ["prepare", "generate", "export", "doctor", "--help"])
def test_ctrl_c_while_torch_is_imported_for_other_commands(tmp_path, command):
    (tmp_path / "numpy.py").write_text(CTRL_C)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "pggan_fast", command],
        env=environment,
        preexec_fn=heed_ctrl_c,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (130, "pggan-fast: interrupted\n")


def test_ctrl_c_after_the_import_ends_in_one_line(tmp_path):
    (tmp_path / "images.py").write_text(CTRL_C)
    done = subprocess.run(
        [sys.executable, "-m", "pggan_fast", "prepare", "--images", "torch:images:Images", "--out", "out"],
        cwd=tmp_path,
        preexec_fn=heed_ctrl_c,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (130, "pggan-fast: interrupted\n")


def test_hangup_saves_and_leaves(data, tmp_path, monkeypatch):
    run = RunFolder.create(config(data, tmp_path / "run"))
    take, calls = type(run.data).images, []

    def images(self, resolution):
        calls.append(resolution)
        os.kill(os.getpid(), signal.SIGHUP)
        return take(self, resolution)

    monkeypatch.setattr(type(run.data), "images", images)
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
    try:
        assert train(run) is False and calls
    finally:
        signal.signal(signal.SIGHUP, before)
    assert np.all([path.is_file() for path in checkpoints(run.checkpoints)])


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", -1), ("total_kimg", float("nan")), ("tick_kimg", float("inf")), ("penalty_weight", float("nan"))]
    + [("learning_rate", {4: 1e308}), ("seed", 1 << 64), ("fmap_base", 1), ("d_steps", True), ("batch_size", {})],
)
def test_bounds_hold_for_code_and_files_alike(data, run, name, value, tmp_path):
    words = f"--{name.replace('_', '-')} "
    with pytest.raises(UserError, match=words):
        RunFolder.create(config(data, tmp_path / "new", **{name: value}))
    assert not (tmp_path / "new").exists()
    path = run / "config.json"
    contents = json.loads(path.read_text())
    contents["settings"][name] = value
    path.write_text(json.dumps(contents))
    with pytest.raises(UserError, match=words):
        RunFolder.open(run, {})
