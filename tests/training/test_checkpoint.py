"""Checkpoints are whole or absent, few, and free of code."""

import os
import pickle
import zipfile

import pytest
import torch

from pggan_fast.training import checkpoint
from pggan_fast.utils import atomic_write
from pggan_fast.utils.errors import UserError


def state(value):
    return {"weights": {"a": torch.full((3,), float(value))}, "live": [8, True], "none": None}


def test_round_trip_keeps_values_and_layout(tmp_path):
    saved = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    path = checkpoint.save_checkpoint(tmp_path, 1234, {"x": saved, "n": 0.1})
    assert path.name == "000001234.pt"
    loaded = checkpoint.load_checkpoint(path)
    assert torch.equal(loaded["x"], saved) and loaded["x"].stride() == saved.stride()
    assert (loaded["n"], loaded["images"]) == (0.1, 1234)


def test_keeps_the_last_three(tmp_path):
    (tmp_path / "notes.pt").write_text("somebody's own file")
    for images in (5, 10, 20, 40, 1_000_000_000):
        checkpoint.save_checkpoint(tmp_path, images, state(images))
    assert [int(path.stem) for path in checkpoint.checkpoints(tmp_path)] == [20, 40, 1_000_000_000]
    assert (tmp_path / "notes.pt").exists()


@pytest.mark.parametrize("fault", ["save", "replace"])
def test_a_failed_save_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, fault):
    path = checkpoint.save_checkpoint(tmp_path, 7, state(1))

    def full_disk(*arguments):
        if fault == "save":
            arguments[1].write(b"half a file")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.torch if fault == "save" else atomic_write.os, fault, full_disk)
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\); 000000007.pt is the last"):
            checkpoint.save_checkpoint(tmp_path, 7, state(2))
    assert os.listdir(tmp_path) == [path.name]
    assert checkpoint.load_checkpoint(path)["weights"]["a"][0] == 1


def test_the_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(atomic_write.os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(atomic_write.os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    checkpoint.save_checkpoint(tmp_path, 7, state(1))
    assert calls == ["fsync", "replace", "fsync"]  # contents, name, folder


@pytest.mark.parametrize("kept", [0, 10, 500])
def test_a_damaged_file_is_named(tmp_path, kept):
    path = checkpoint.save_checkpoint(tmp_path, 7, state(1))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"000000007.pt: is damaged") as error:
        checkpoint.load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_every_changed_bit_is_found(tmp_path):
    path = checkpoint.save_checkpoint(tmp_path, 7, state(1))
    whole = path.read_bytes()
    assert checkpoint.find_damage(path) is None
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert checkpoint.find_damage(path) is not None


def test_a_sealed_file_is_still_an_archive_that_torch_reads(tmp_path):
    path = checkpoint.save_checkpoint(tmp_path, 7, state(1))
    assert torch.load(path, weights_only=True)["images"] == 7
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and len(archive.comment) == 64


def test_a_damaged_file_is_set_aside_for_the_one_before(tmp_path, capsys):
    for images in (5, 10, 20):
        path = checkpoint.save_checkpoint(tmp_path, images, state(images))
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 16
    path.write_bytes(contents)
    assert checkpoint.newest_whole(tmp_path).name == "000000010.pt"
    assert "000000020.pt: is damaged" in capsys.readouterr().out
    assert (tmp_path / "000000020.pt.damaged").read_bytes() == contents
    assert [int(p.stem) for p in checkpoint.checkpoints(tmp_path)] == [5, 10]


def test_if_all_are_damaged_none_is_touched(tmp_path):
    assert checkpoint.newest_whole(tmp_path) is None
    for images in (5, 10):
        checkpoint.save_checkpoint(tmp_path, images, state(images)).write_bytes(b"nothing")
    with pytest.raises(UserError, match="000000010.pt: is damaged .* there is no whole one"):
        checkpoint.newest_whole(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["000000005.pt", "000000010.pt"]


class Surprise:
    def __reduce__(self):
        return os.system, ("touch surprised",)


def test_code_in_a_file_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "x": Surprise()}, tmp_path / "1.pt")
    (tmp_path / "2.pt").write_bytes(pickle.dumps(Surprise(), protocol=2))
    for name in ("1.pt", "2.pt"):
        with pytest.raises(UserError, match="is damaged|cannot be read"):
            checkpoint.load_checkpoint(tmp_path / name)
    assert not (tmp_path / "surprised").exists()


def test_another_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 99)
        checkpoint.save_checkpoint(tmp_path, 1, {}).rename(tmp_path / "1.pt")
    with pytest.raises(UserError, match="has format 99"):
        checkpoint.load_checkpoint(tmp_path / "1.pt")


def test_random_state_continues_where_it_was():
    torch.manual_seed(1)
    torch.randn(3)
    saved = checkpoint.random_state(torch.device("cpu"))
    expected = torch.randn(5)
    torch.manual_seed(2)
    checkpoint.set_random_state(saved, torch.device("cpu"))
    assert torch.equal(torch.randn(5), expected)
