"""Pipes and devices where files belong: each is refused, and none is waited for."""

import os
import signal

import numpy as np
import pytest
from PIL import Image

from pggan_fast.data.prepare import PrepareConfig, prepare
from pggan_fast.data.prepared import PreparedData
from pggan_fast.data.sources import open_files
from pggan_fast.generation.projection import _read_target
from pggan_fast.networks import Generator
from pggan_fast.training import UserError
from pggan_fast.training.run_folder import RunFolder
from pggan_fast.utils.schema import read_json
from pggan_fast.utils.settings_file import _read
from pggan_fast.utils.torch_files import load_weights_only
from tests.training.runs import config, write_data

PATIENCE = 20  # seconds after which a pipe has been waited for


class Waited(BaseException):
    """Raised where the code under test waits for a pipe; nothing may catch it."""


@pytest.fixture(autouse=True)
def impatience():
    def stop(*_):
        raise Waited

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make(path, kind):
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")  # endless
    return path


OPENERS = {
    "images.npy": lambda path: open_files(path, "--images"),
    "images.zip": lambda path: open_files(path, "--images"),
    "images.tfrecords": lambda path: prepare(PrepareConfig(images=path, out=path.parent / "out")),
    "image.png": lambda path: _read_target(path, Generator(8, fmap_base=32, fmap_max=4), 8),
    "config.json": lambda path: read_json(path, dict),
    "settings.toml": _read,
    "weights.pt": load_weights_only,
}


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
@pytest.mark.parametrize("name", OPENERS)
def test_what_is_named_must_be_a_file(tmp_path, name, kind):
    with pytest.raises(ValueError, match=kind):
        OPENERS[name](make(tmp_path / name, kind))


@pytest.mark.parametrize("kind", ["a pipe", "a device"])
@pytest.mark.parametrize("name", ["config.json", "stats.jsonl"])
def test_parts_of_a_run_must_be_files(tmp_path, name, kind):
    write_data(tmp_path / "data")
    run = RunFolder.create(config(tmp_path / "data", tmp_path / "run"))
    make(run.path / name, kind)
    expected = "is a link" if (name, kind) == ("stats.jsonl", "a device") else kind
    with pytest.raises(UserError, match=expected) as error:
        RunFolder.open(run.path, {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["labels.npy", "images_8.npy"])
def test_parts_of_prepared_data_must_be_files(tmp_path, name):
    write_data(tmp_path / "data")
    make(tmp_path / "data" / name, "a pipe")
    with pytest.raises(UserError, match="a pipe"):
        PreparedData(tmp_path / "data").images(8)


def test_what_lies_beside_images_is_left_out(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "0.png")
    make(folder / "pipe.png", "a pipe")
    make(folder / "zero.png", "a device")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "nowhere.png").symlink_to("nothing")
    source = open_files(folder, "--images")
    assert list(source.names) == ["0.png"]
    assert set(source.left_out) == {"pipe.png", "zero.png", "itself.png", "nowhere.png"}
