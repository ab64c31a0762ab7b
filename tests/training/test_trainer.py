"""The loop: it grows, resets Adam when layers come or go, resumes bit for bit, and stops cleanly."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pggan_fast import Generator
from pggan_fast.interop.weights import load_generator
from pggan_fast.training import RunFolder, UserError, train
from pggan_fast.training import trainer as trainer_module
from pggan_fast.training.checkpoint import checkpoints, load_checkpoint
from pggan_fast.training.runtime import signals
from tests.training.runs import assert_same, config, stats, without_times, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A run from start to end."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    assert train(RunFolder.create(config(data, out)))
    return out


def test_a_run_leaves_what_it_should(finished):
    left = {p.name for p in finished.iterdir()} - {"tensorboard"}  # that one only where it is installed
    assert left == {"checkpoints", "config.json", "final", "report.html", "samples", "stats.jsonl"}
    names = ["discriminator.json", "discriminator.safetensors", "generator.json", "generator.safetensors"]
    assert sorted(p.name for p in (finished / "final").iterdir()) == names
    assert [int(p.stem) for p in checkpoints(finished / "checkpoints")] == [80, 160, 240]
    assert sorted(int(p.stem) for p in (finished / "samples").iterdir()) == [80, 160, 240]
    with Image.open(max((finished / "samples").iterdir())) as image:
        assert image.mode == "RGB" and min(image.size) >= 512
        assert len(image.getcolors(1 << 24)) > 1


def test_stats_follow_the_schedule(finished, data):
    lines = stats(finished)
    assert [line["images"] for line in lines] == [32, 64, 96, 128, 160, 192, 224, 240]
    assert [line["resolution"] for line in lines] == [4, 4, 8, 8, 8, 16, 16, 16]
    # Each line describes the step it ends with: 8 images before it, 16 at 4 px.
    assert [line["alpha"] for line in lines] == [1, 1, 0.75, 1, 1, 0.75, 1, 1]
    assert all(np.isfinite(line["d_loss"]) and np.isfinite(line["g_loss"]) for line in lines)
    assert lines[-1]["seconds"] > 0 and lines[-1]["images_per_second"] > 0


def test_the_final_weights_are_the_averaged_ones(finished):
    G, metadata = load_generator(finished / "final" / "generator.safetensors")
    assert isinstance(G, Generator)
    assert (metadata["resolution"], metadata["alpha"], metadata["images"]) == (16, 1.0, 240)
    saved = load_checkpoint(checkpoints(finished / "checkpoints")[-1])
    assert_same(dict(G.state_dict()), {**saved["step"]["G_ema"]})
    assert not torch.equal(saved["step"]["G"]["input.weight"], G.input.weight)
    D = load_file(finished / "final" / "discriminator.safetensors")
    assert_same(dict(sorted(D.items())), dict(sorted(saved["step"]["D"].items())))


@pytest.mark.parametrize("stop_after", [48, 80, 88, 176, 192])
def test_resumes_bit_for_bit(finished, data, tmp_path, monkeypatch, stop_after):
    """Stopped in a stable phase (48), inside transitions (80, 88, 176) and where one ends (192)."""
    out = tmp_path / "run"
    run = RunFolder.create(config(data, out))
    press_ctrl_c_after(monkeypatch, stop_after)
    assert not train(run)
    assert int(checkpoints(run.checkpoints)[-1].stem) == stop_after
    monkeypatch.undo()
    torch.manual_seed(999)  # a resumed run must not depend on what was drawn before it

    assert train(RunFolder.open(out, {}))
    found, expected = (load_checkpoint(checkpoints(folder / "checkpoints")[-1]) for folder in (out, finished))
    for state in (found, expected):
        for clock in ("now", "seconds"):
            del state["stats"][clock]
    assert_same(found, expected)
    assert without_times(stats(out)) == without_times(stats(finished))
    for image in (finished / "samples").iterdir():
        assert image.read_bytes() == (out / "samples" / image.name).read_bytes()
    for file in (finished / "final").iterdir():
        assert file.read_bytes() == (out / "final" / file.name).read_bytes()


def test_killed_between_checkpoints_it_repeats_what_was_lost(finished, data, tmp_path, monkeypatch):
    out = tmp_path / "run"

    class Killed(BaseException):
        pass

    def kill(step, images):
        if images == 150:
            raise Killed

    watch_steps(monkeypatch, kill, after=150)
    with pytest.raises(Killed):
        train(RunFolder.create(config(data, out)))
    assert [line["images"] for line in stats(out)] == [32, 64, 96, 128]
    monkeypatch.undo()
    (out / "checkpoints" / ".000000160.pt.99.tmp").write_text("half")
    with open(out / "stats.jsonl", "a") as file:
        file.write('{"images": 16')
    assert train(RunFolder.open(out, {}))
    assert without_times(stats(out)) == without_times(stats(finished))
    assert (out / "final" / "generator.safetensors").read_bytes() == (
        finished / "final" / "generator.safetensors"
    ).read_bytes()
    assert not list(out.rglob(".*"))


def watch_steps(monkeypatch, action, after=None):
    """Call action(step, images) after every step; images are counted from `0`."""

    class Watched(trainer_module.TrainStep):
        images = 0

        def __call__(self, real, labels=None, *, alpha=1.0):
            scalars = super().__call__(real, labels, alpha=alpha)
            Watched.images += len(real)
            action(self, Watched.images if after is None or Watched.images < after else after)
            return scalars

    monkeypatch.setattr(trainer_module, "TrainStep", Watched)


def press_ctrl_c_after(monkeypatch, images):
    watch_steps(monkeypatch, lambda step, seen: os.kill(os.getpid(), signal.SIGINT) if seen == images else None)


def test_ctrl_c_says_how_to_resume(data, tmp_path, monkeypatch, capsys):
    before = signal.getsignal(signal.SIGINT)
    press_ctrl_c_after(monkeypatch, 32)
    assert not train(RunFolder.create(config(data, tmp_path / "run")))
    assert f"pggan-fast train --resume {tmp_path / 'run'}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_signals_to_stop_save_and_leave(data, tmp_path, monkeypatch, name):
    number = getattr(signal, name)
    watch_steps(monkeypatch, lambda step, seen: os.kill(os.getpid(), number) if seen == 48 else None)
    out = tmp_path / "run"
    assert not train(RunFolder.create(config(data, out)))
    assert [int(path.stem) for path in checkpoints(out / "checkpoints")] == [48]


def test_sigusr1_saves_and_continues(data, tmp_path, monkeypatch):
    watch_steps(monkeypatch, lambda step, seen: os.kill(os.getpid(), signal.SIGUSR1) if seen == 48 else None)
    out = tmp_path / "run"
    assert train(RunFolder.create(config(data, out, total_kimg=0.080)))
    assert [int(path.stem) for path in checkpoints(out / "checkpoints")] == [48, 80]


def test_a_time_limit_saves_and_leaves_before_it_is_over(data, tmp_path, monkeypatch):
    """Every step takes 0.2 of the 3 seconds, by a clock of the test's own: that of a machine under load may jump."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(signals, "time", clock)

    def pass_time(step, seen):
        clock.now += 0.2

    watch_steps(monkeypatch, pass_time)
    out = tmp_path / "run"
    assert not train(RunFolder.create(config(data, out, total_kimg=10, stable_kimg=10, time_limit=3 / 60)))
    assert 2 < clock.now < 3
    assert len(checkpoints(out / "checkpoints")) >= 1
    assert int(checkpoints(out / "checkpoints")[-1].stem) % 16 == 0


def test_a_second_ctrl_c_leaves_at_once(data, tmp_path, monkeypatch):
    def press_twice(step, seen):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    watch_steps(monkeypatch, press_twice)
    with pytest.raises(KeyboardInterrupt):
        train(RunFolder.create(config(data, tmp_path / "run")))


def test_adam_is_reset_when_live_layers_change_and_only_then(data, tmp_path, monkeypatch):
    resets, calls = [], []

    class Recorded(trainer_module.TrainStep):
        def reset_optimizers(self):
            resets.append(sum(len(real) for real, _ in calls))
            super().reset_optimizers()

        def __call__(self, real, labels=None, *, alpha=1.0):
            calls.append((real, alpha))
            return super().__call__(real, labels, alpha=alpha)

    monkeypatch.setattr(trainer_module, "TrainStep", Recorded)
    train(RunFolder.create(config(data, tmp_path / "run")))
    # 80: 4 px ends at 64, and alpha there is exactly 0 of the way, so 8 px starts with the next step.
    assert [images for images in resets if images] == [80, 96, 168, 192]
    for real, alpha in calls:
        # 255 * (2 / 255) - 1 may round to the next number above 1.
        assert real.dtype == torch.float32 and real.abs().max() <= 1 + 1e-6
        assert real.is_contiguous(memory_format=torch.channels_last)
        if isinstance(alpha, torch.Tensor):
            assert alpha.ndim == 0 and alpha.dtype == torch.float32 and 0 < alpha < 1
        else:
            assert type(alpha) is float and alpha == 1
    assert {len(real) for real, _ in calls} == {8, 16}


def test_learning_rate_follows_its_table(data, tmp_path, monkeypatch):
    rates = []

    class Recorded(trainer_module.TrainStep):
        def set_learning_rate(self, learning_rate, d_learning_rate):
            rates.append(learning_rate)
            super().set_learning_rate(learning_rate, d_learning_rate)

    monkeypatch.setattr(trainer_module, "TrainStep", Recorded)
    train(RunFolder.create(config(data, tmp_path / "run", learning_rate={4: 1e-3, 16: 5e-4})))
    assert sorted(set(rates)) == [5e-4, 1e-3]
    assert [line["learning_rate"] for line in stats(tmp_path / "run")] == [1e-3] * 5 + [5e-4] * 3


def test_a_finished_run_continues_when_given_more_images(finished, data, tmp_path):
    out = tmp_path / "run"
    assert train(RunFolder.create(config(data, out, total_kimg=0.16)))
    assert train(RunFolder.open(out, {}))  # nothing left to do
    assert train(RunFolder.open(out, {"total_kimg": 0.24}))
    assert (out / "final" / "generator.safetensors").read_bytes() == (
        finished / "final" / "generator.safetensors"
    ).read_bytes()
    assert RunFolder.open(out, {}).config.total_kimg == 0.24


def test_labels_train_a_conditional_generator(data, tmp_path):
    out = tmp_path / "run"
    assert train(RunFolder.create(config(data, out, labels=True, total_kimg=0.1)))
    G, metadata = load_generator(out / "final" / "generator.safetensors")
    assert (G.label_dim, metadata["classes"]) == (2, ["a", "b"])
    assert (metadata["resolution"], metadata["alpha"]) == (8, 1.0)


def test_grayscale_and_start_at_the_full_resolution(tmp_path):
    data = write_data(tmp_path / "data", classes=(), channels=1, resolution=8)
    out = tmp_path / "run"
    assert train(RunFolder.create(config(data, out, start_resolution=8, total_kimg=0.032)))
    assert {line["resolution"] for line in stats(out)} == {8}
    with Image.open(out / "samples" / "000000032.png") as image:
        assert image.mode == "L"


def refuses(action):
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_in_use_is_refused(finished, data, tmp_path):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    message = refuses(lambda: RunFolder.create(config(data, finished)))
    assert f"pggan-fast train --resume {finished}" in message
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before
    (tmp_path / "photo.png").touch()
    assert "not empty" in refuses(lambda: RunFolder.create(config(data, tmp_path)))


def test_mistakes_leave_no_folder_behind(data, tmp_path):
    out = tmp_path / "run"
    unlabelled = write_data(tmp_path / "unlabelled", classes=())
    for settings, words in [
        ({"data": tmp_path / "nowhere"}, "no such folder"),
        ({"resolution": 32}, "--resolution 32: the data in"),
        ({"data": unlabelled, "labels": True}, "--labels: "),
        ({"start_resolution": 32}, "--start-resolution 32: must not be above --resolution"),
        ({"device": "abacus"}, "--device abacus: cannot be used"),
    ]:
        chosen = {"data": data, "out": out, **settings}
        message = refuses(lambda chosen=chosen: RunFolder.create(config(**chosen)))
        assert words in message
        assert not out.exists()


def test_resume_refuses_what_does_not_fit(finished, data, tmp_path):
    assert "holds no run" in refuses(lambda: RunFolder.open(tmp_path, {}))
    assert "--seed: is fixed by" in refuses(lambda: RunFolder.open(finished, {"seed": 3}))
    other = write_data(tmp_path / "other", count=41)
    assert "count is 41, was 40" in refuses(lambda: RunFolder.open(finished, {"data": other}))
    other = write_data(tmp_path / "classes", classes=("a", "c"))
    message = refuses(lambda: RunFolder.open(finished, {"data": other}))
    assert "classes is ['a', 'c'], was ['a', 'b']" in message
    broken = tmp_path / "broken"
    broken.mkdir()
    for text in ("{", "{}", '{"settings": {"wings": 2}, "data": {}}'):
        (broken / "config.json").write_text(text)
        assert "config.json is damaged" in refuses(lambda: RunFolder.open(broken, {}))


def test_moved_data_can_be_named_on_resume(data, tmp_path):
    moved = tmp_path / "moved"
    first = write_data(tmp_path / "first")
    out = tmp_path / "run"
    assert train(RunFolder.create(config(first, out, total_kimg=0.032)))
    Path(first).rename(moved)
    assert "no such folder" in refuses(lambda: RunFolder.open(out, {}))
    assert RunFolder.open(out, {"data": moved}).config.data == moved
