"""prepare stopped by SIGKILL and Ctrl-C, and resumed; two at once."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from pggan_fast.data.dataset import PreparedData
from pggan_fast.data.sources import Folder
from tests.data.test_sources import fails, photos, prepared


def test_resumes_where_it_was_killed(tmp_path):
    """SIGKILL at whatever moment, several times; the result is that of a run that was left alone."""
    folder = tmp_path / "in"
    folder.mkdir()
    for index, image in enumerate(photos(120, side=64)):
        Image.fromarray(image).save(folder / f"{index:03d}.png")
    (folder / "050.png").write_bytes(b"broken")
    # Slowed down, so that a kill finds it at work, and flushed more often.
    program = (
        "import time; from pathlib import Path; from pggan_fast.training import dataset, prepare as module\n"
        "fit, dataset.FLUSH_SECONDS = module.fit, 0.05\n"
        "def slow(*a, **k): time.sleep(0.01); return fit(*a, **k)\n"
        "module.fit = slow\n"
        f"module.prepare(module.PrepareConfig(images=Path({str(folder)!r}), out=Path({str(tmp_path / 'killed')!r}),"
        " resolution=64, workers=1))\n"
    )
    partial = tmp_path / ".killed.partial"
    journal, noted = partial / "journal.jsonl", 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        while process.poll() is None and (not journal.exists() or len(journal.read_text().splitlines()) <= noted + 20):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        noted = len(journal.read_text().splitlines())
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resuming after" in done.stdout
    whole = prepared(tmp_path, folder, resolution=64)
    killed = PreparedData(tmp_path / "killed")
    for resolution in (4, 8, 16, 32, 64):
        assert np.array_equal(killed.images(resolution), whole.images(resolution))
    one, other = (json.loads((tmp_path / name / "dataset.json").read_text()) for name in ("out", "killed"))
    assert one == other and list(one["skipped"]) == ["050.png"]
    assert sorted(p.name for p in (tmp_path / "killed").iterdir()) == sorted(
        p.name for p in (tmp_path / "out").iterdir()
    )
    assert not partial.exists()


def stop_after(monkeypatch, count):
    """Ctrl-C while the item with this number is being read."""

    def stopped(self, start=0):
        for index, item in enumerate(original(self, start), start):
            if index == count:
                raise KeyboardInterrupt
            yield item

    original = Folder.items
    monkeypatch.setattr(Folder, "items", stopped)


def test_ctrl_c_keeps_what_is_done(tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    for index, image in enumerate(photos(20)):
        Image.fromarray(image).save(tmp_path / "in" / f"{index:02d}.png")
    stop_after(monkeypatch, 12)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path, tmp_path / "in", resolution=8, workers=1)
    assert "the same command resumes there" in capsys.readouterr().out
    monkeypatch.undo()
    # With other settings nothing of it can be used, and nothing of it shows.
    data = prepared(tmp_path, tmp_path / "in", resolution=4)
    assert data.count == 20 and not (tmp_path / "out" / "images_8.npy").exists()
    assert "resuming" not in capsys.readouterr().out


def test_two_at_once_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(photos(1)[0]).save(tmp_path / "in" / "a.png")

    class Slow(Folder):
        def items(self, start=0):
            message = fails(lambda: prepared(tmp_path, tmp_path / "in", Folder(self.path), resolution=8))
            assert "another process is preparing it" in message
            yield from super().items(start)

    assert prepared(tmp_path, tmp_path / "in", Slow(tmp_path / "in"), resolution=8).count == 1
