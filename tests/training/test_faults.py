"""Faults of a run of a month: one line that says what and what to do, and nothing is lost."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pggan_fast import cli
from pggan_fast.training import RunFolder, UserError, checkpoint, train
from pggan_fast.training import trainer as trainer_module
from pggan_fast.training.checkpoint import checkpoints, load_checkpoint
from pggan_fast.utils.atomic_write import atomic_write
from pggan_fast.utils.memory import advice_when_out_of_memory
from tests.training.runs import assert_same, config, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


def message_of(action):
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spoil_images(monkeypatch, spoilt):
    """NaN in the reals of every step whose number `spoilt` accepts."""

    class Spoilt(trainer_module.TrainStep):
        calls = 0

        def __call__(self, real, labels=None, *, alpha=1.0):
            Spoilt.calls += 1
            return super().__call__(real * float("nan") if spoilt(Spoilt.calls) else real, labels, alpha=alpha)

    monkeypatch.setattr(trainer_module, "TrainStep", Spoilt)


def test_1_a_step_that_is_not_finite_is_left_out_and_counted(data, tmp_path, monkeypatch):
    spoil_images(monkeypatch, lambda number: number == 3)
    assert train(RunFolder.create(config(data, tmp_path / "run", total_kimg=0.096)))
    lines = [json.loads(line) for line in (tmp_path / "run" / "stats.jsonl").read_text().splitlines()]
    # Steps 1 and 2 are in the first line, 3 and 4 in the second. G's own step does not see the reals.
    assert [line["skipped"] for line in lines] == [0, 0.5, 0]
    state = load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[-1])["step"]
    assert all(value.isfinite().all() for name in ("G", "D", "G_ema") for value in state[name].values())


def test_1_after_a_run_of_them_training_stops_with_the_last_good_checkpoint(data, tmp_path, monkeypatch):
    spoil_images(monkeypatch, lambda number: number > 6)
    settings = config(data, tmp_path / "run", total_kimg=10.0, stable_kimg=10.0)
    message = message_of(lambda: train(RunFolder.create(settings)))
    assert "no finite gradient in 50 steps" in message and "--learning-rate" in message
    last = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert str(last) in message
    state = load_checkpoint(last)["step"]
    assert all(value.isfinite().all() for name in ("G", "D", "G_ema") for value in state[name].values())


FULL_DISK = """
import resource, signal, sys
from pggan_fast.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # more than a report has, less than a checkpoint
sys.exit(main(["train", "--resume", sys.argv[1], "--total-kimg", "0.24"]))
"""


def test_2_a_full_disk_while_saving(data, tmp_path):
    """The kernel refuses to let a file grow, as it does when the disk is full."""
    out = tmp_path / "run"
    wide = {"fmap_base": 1024, "fmap_max": 64}
    assert train(RunFolder.create(config(data, out, total_kimg=0.08, sample_kimg=1.0, **wide)))
    before = files(out / "checkpoints")
    assert min(map(len, before.values())) > 2 << 20
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(out)], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "000000160.pt: cannot be written" in done.stderr and "000000080.pt is the last one" in done.stderr
    assert files(out / "checkpoints") == before
    assert train(RunFolder.open(out, {"total_kimg": 0.12}))


def test_2_the_reason_is_the_systems_where_a_library_has_its_own(data, tmp_path, monkeypatch):
    """torch's writer raises an assertion of its own while it handles the system's error."""

    class FullDisk(io.FileIO):
        def write(self, part):
            if self.tell() > 1000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(part)

    monkeypatch.setattr(checkpoint, "open", lambda path, mode: FullDisk(path, mode), raising=False)
    message = message_of(lambda: checkpoint.save_checkpoint(tmp_path, 1, {"weights": torch.ones(100_000)}))
    assert f"cannot be written ({os.strerror(errno.ENOSPC)})" in message


def test_2_an_error_of_the_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match="notes.txt"), atomic_write(tmp_path / "notes.txt"):
        raise OSError(28, "No space left on device")


def test_3_the_data_folder_goes_while_training(tmp_path):
    data, out = write_data(tmp_path / "data"), tmp_path / "run"
    run = RunFolder.create(config(data, out))
    run.data._images.clear()  # mapped when the stage comes
    for resolution in (8, 16):
        (data / f"images_{resolution}.npy").rename(tmp_path / f"{resolution}.npy")
    message = message_of(lambda: train(run))
    assert "images_8.npy" in message
    assert [int(path.stem) for path in checkpoints(out / "checkpoints")] == [80]  # saved where the data ended
    for resolution in (8, 16):
        (tmp_path / f"{resolution}.npy").rename(data / f"images_{resolution}.npy")
    straight = tmp_path / "straight"
    assert train(RunFolder.open(out, {})) and train(RunFolder.create(config(data, straight)))
    found, expected = (load_checkpoint(checkpoints(folder / "checkpoints")[-1])["step"] for folder in (out, straight))
    assert_same(found, expected)


def test_3_the_data_are_gone_between_the_batches_of_a_step(data, tmp_path, monkeypatch):
    """Only the first of two D steps has its batch: a resumed run takes it again."""
    out, next_batch, calls = tmp_path / "run", trainer_module.Prefetcher.next, []

    def failing(self, *size):
        calls.append(size)
        if len(calls) == 4:
            raise UserError("the disk is gone")
        return next_batch(self, *size)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Prefetcher, "next", failing)
        assert "the disk is gone" in message_of(lambda: train(RunFolder.create(config(data, out, d_steps=2))))
    straight = tmp_path / "straight"
    assert train(RunFolder.open(out, {})) and train(RunFolder.create(config(data, straight, d_steps=2)))
    found, expected = (load_checkpoint(checkpoints(folder / "checkpoints")[-1]) for folder in (out, straight))
    assert_same(found["step"], expected["step"])
    assert_same(found["batches"], expected["batches"])


def test_3_the_data_folder_is_gone_before(data, tmp_path):
    assert "no such folder" in message_of(lambda: RunFolder.create(config(tmp_path / "gone", tmp_path / "run")))


def test_4_a_corrupt_image_is_named_and_left_out(tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(np.full((16, 16, 3), 80 * index, dtype=np.uint8)).save(folder / f"{index}.png")
    whole = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(whole[: len(whole) // 2])
    assert cli.main(["prepare", "--images", str(folder), "--out", str(tmp_path / "data")]) == 0
    manifest = json.loads((tmp_path / "data" / "dataset.json").read_text())
    assert manifest["count"] == 2 and "1.png" in json.dumps(manifest["skipped"])
    assert "1.png" in "".join(capsys.readouterr())


def test_4_a_truncated_array_is_named(tmp_path):
    data = write_data(tmp_path / "data")
    contents = (data / "images_8.npy").read_bytes()
    (data / "images_8.npy").write_bytes(contents[: len(contents) // 2])
    assert "images_8.npy" in message_of(lambda: RunFolder.create(config(data, tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_5_a_checkpoint_of_another_format(data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    assert train(RunFolder.create(config(data, out, total_kimg=0.032)))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 99)
        checkpoint.save_checkpoint(out / "checkpoints", 64, {})
    before = files(out)
    assert "has format 99" in message_of(lambda: train(RunFolder.open(out, {"total_kimg": 0.064})))
    after = files(out)
    after.pop(next(path for path in after if path.name == "config.json"))
    assert after.items() <= before.items()


def test_6_a_checkpoint_of_another_network(data, tmp_path):
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    assert train(RunFolder.create(config(data, wide, total_kimg=0.032, fmap_max=16)))
    assert train(RunFolder.create(config(data, narrow, total_kimg=0.032)))
    shutil.copy(checkpoints(wide / "checkpoints")[-1], narrow / "checkpoints" / "000000064.pt")
    message = message_of(lambda: train(RunFolder.open(narrow, {"total_kimg": 0.064})))
    assert "000000064.pt: is of another network (" in message


def test_6_weights_of_another_network(data, tmp_path):
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    assert train(RunFolder.create(config(data, wide, total_kimg=0.032, fmap_max=16)))
    assert train(RunFolder.create(config(data, narrow, total_kimg=0.032)))
    shutil.copy(wide / "final" / "generator.safetensors", narrow / "final" / "generator.safetensors")
    given = ["generate", "--weights", str(narrow / "final" / "generator.safetensors"), "--out", str(tmp_path / "x")]
    assert cli.main(given) == 2


def test_7_labels_that_are_no_classes(tmp_path):
    data = write_data(tmp_path / "data")
    labels = np.load(data / "labels.npy")
    labels[3] = 2
    np.save(data / "labels.npy", labels)
    message = message_of(lambda: RunFolder.create(config(data, tmp_path / "run", labels=True)))
    assert "labels outside of its 2 classes" in message
    assert train(RunFolder.create(config(data, tmp_path / "run", total_kimg=0.016)))  # without them, no matter


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
def test_8_out_of_memory_names_three_settings(error):
    def run_out():
        with advice_when_out_of_memory():
            raise error

    message = message_of(run_out)
    for option in ("--micro-batch", "--activation-checkpointing", "--precision bf16"):
        assert option in message


def test_8_the_cpu_allocator_is_recognised():
    def run_out():
        with advice_when_out_of_memory():
            torch.empty(1 << 50)

    assert "--micro-batch" in message_of(run_out)


def test_8_other_errors_pass():
    with pytest.raises(RuntimeError, match="something else"), advice_when_out_of_memory():
        raise RuntimeError("something else")
