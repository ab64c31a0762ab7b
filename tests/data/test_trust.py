"""Trouble on the way of images: sources that fail, change or lie, and outputs that cannot be replaced."""

import errno
import io
import json
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pggan_fast.data import growing_array
from pggan_fast.data.dataset import PreparedData
from pggan_fast.data.npy import read_npy
from pggan_fast.data.prepare import PrepareConfig, prepare
from pggan_fast.data.prepared import changed
from pggan_fast.data.sources import Array, Folder, HuggingFace, Zip, files
from pggan_fast.utils.errors import UserError


def save(folder, count=4, value=None, side=16):
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for index in range(count):
        pixels = random.integers(0, 256, (side, side, 3), np.uint8)
        if value is not None:
            pixels[:] = value
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


def fails(tmp_path, images, **settings):
    with pytest.raises(UserError) as error:
        prepare(PrepareConfig(images=images, out=tmp_path / "out", **settings))
    assert "\n" not in str(error.value)
    return str(error.value)


def classes(tmp_path, images):
    prepare(PrepareConfig(images=images, out=tmp_path / "out"))
    return json.loads((tmp_path / "out" / "dataset.json").read_text())["class_counts"]


def test_images_that_changed_are_not_mixed_with_old_ones(tmp_path, monkeypatch):
    folder = save(tmp_path / "in", 40, 10)
    original = Folder.items

    def stopped(self, start=0):
        for index, item in enumerate(original(self, start)):
            if index == 36:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(Folder, "items", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(PrepareConfig(images=folder, out=tmp_path / "out", resolution=16))
    monkeypatch.undo()
    save(tmp_path / "in", 40, 20)
    prepare(PrepareConfig(images=folder, out=tmp_path / "out", resolution=16))
    assert (PreparedData(tmp_path / "out").images(16) == 20).all()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT, errno.ESTALE])
def test_a_source_that_fails_stops_and_resumes(tmp_path, monkeypatch, number, capsys):
    folder = save(tmp_path / "in", 40)
    original = files.read

    def failing(name, file):
        if name >= "030":
            raise OSError(number, os.strerror(number), str(file))
        return original(name, file)

    monkeypatch.setattr(files, "read", failing)
    assert "images are kept, the same command resumes there" in fails(tmp_path, folder, resolution=16, workers=1)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    prepare(PrepareConfig(images=folder, out=tmp_path / "out", resolution=16))
    assert "resuming after" in capsys.readouterr().out
    assert PreparedData(tmp_path / "out").count == 40


def test_memory_that_runs_out_is_advice_and_keeps_what_is_done(tmp_path, monkeypatch):
    folder = save(tmp_path / "in", 10)

    def failing(name, file):
        raise MemoryError

    monkeypatch.setattr(files, "read", failing)
    assert "out of memory" in (message := fails(tmp_path, folder, resolution=16)) and "--workers" in message
    assert (tmp_path / ".out.partial").is_dir()


def test_most_files_unreadable_is_an_error(tmp_path):
    folder = save(tmp_path / "in", 10)
    for index in range(30):
        (folder / f"bad{index}.png").write_bytes(b"bad")
    assert "30 of 40 files cannot be read (bad0.png: not an image" in fails(tmp_path, folder, resolution=16)


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(self, item):
        with growing_array.named(self.path):
            Full().write(item)

    monkeypatch.setattr(growing_array.GrowingArray, "append", full)
    with pytest.raises(OSError, match=r"No space left.*images_4\.npy|No space left.*images_16\.npy"):
        prepare(PrepareConfig(images=save(tmp_path / "in"), out=tmp_path / "out", resolution=16))


def test_classes_through_links_and_beside_other_files(tmp_path):
    save(tmp_path / "nas" / "dog")
    save(tmp_path / "in" / "train" / "cat")
    (tmp_path / "in" / "train" / "dog").symlink_to(tmp_path / "nas" / "dog")
    (tmp_path / "in" / "train" / "cat" / "up").symlink_to(tmp_path / "in")  # a cycle
    (tmp_path / "in" / "README.txt").write_text("hi")
    assert classes(tmp_path, tmp_path / "in") == {"cat": 4, "dog": 4}


def test_a_name_that_is_not_utf8(tmp_path):
    folder = save(tmp_path / "in")
    os.rename(os.fsencode(folder / "000.png"), os.fsencode(folder) + b"/caf\xe9.png")
    classes(tmp_path, folder)
    assert "caf\\xe9.png" in json.loads((tmp_path / "out" / "dataset.json").read_text())["files"]


@pytest.mark.parametrize("labels", [[["00000/000.png", 2], ["00000/001.png", 0]], None])
def test_labels_of_dataset_tool(tmp_path, labels):
    save(tmp_path / "in" / "00000", 2)
    (tmp_path / "in" / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert classes(tmp_path, tmp_path / "in") == ({"0": 1, "2": 1} if labels else {})


@pytest.mark.parametrize(
    "labels", [[["0.png", 1], ["0.png", 2]], [["./0.png", 1], ["0.png", 0]], [["0.png", 1e300]], [["0.png", -1.0]]]
)
def test_labels_that_are_none_or_two(tmp_path, labels):
    save(tmp_path / "in")
    (tmp_path / "in" / "000.png").rename(tmp_path / "in" / "0.png")
    (tmp_path / "in" / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert "dataset.json gives" in fails(tmp_path, tmp_path / "in")


@pytest.mark.parametrize("name", ["#recycle", "#snapshot", "@Recycle", "@eaDir", "$RECYCLE.BIN", ".Trash-1000"])
def test_what_storage_systems_keep_beside_images_is_no_class(tmp_path, name):
    for each in ("cat", "dog", name):
        save(tmp_path / "in" / each, 2)
    assert classes(tmp_path, tmp_path / "in") == {"cat": 2, "dog": 2}


def test_a_zip_of_another_system(tmp_path):
    png = io.BytesIO()
    Image.new("RGB", (16, 16)).save(png, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in ("./x\\cat\\0.png", "x\\dog\\0.png", "Thumbs.db"):
            entry = zipfile.ZipInfo("placeholder")
            entry.filename = entry.orig_filename = name
            file.writestr(entry, png.getvalue())
    assert classes(tmp_path, tmp_path / "a.zip") == {"cat": 1, "dog": 1}


def write_source(path, order="C", value=None):
    """40 images in a .npy file or an archive."""
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8)
    if value is not None:
        images[:] = value
    if path.suffix == ".npy":
        np.save(path, np.asarray(images, order=order))
        return path
    with zipfile.ZipFile(path, "w") as archive:
        for index, image in enumerate(images):
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            archive.writestr(f"{index:02d}.png", png.getvalue())
    return path


@pytest.mark.parametrize("change", ["cut", "written anew"])
@pytest.mark.parametrize(("name", "order"), [("a.npy", "C"), ("a.npy", "F"), ("a.zip", "C")])
def test_a_file_of_images_that_changes_while_it_is_read(tmp_path, monkeypatch, name, order, change):
    """A touch of mapped memory behind the end of a file ends the process; an archive's last images are no bad files."""
    path = write_source(tmp_path / name, order)
    kind = Zip if path.suffix == ".zip" else Array
    original = kind.items

    def changing(self, start=0):
        for index, item in enumerate(original(self, start)):
            if index == 30:
                if change == "cut":
                    os.truncate(path, path.stat().st_size * 7 // 10)
                else:
                    write_source(path, order, value=7)
            yield item

    monkeypatch.setattr(kind, "items", changing)
    message = fails(tmp_path, path, resolution=16, workers=1)
    assert f"--images {path}: has changed while it was read" in message
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    write_source(path, order, value=7)
    prepare(PrepareConfig(images=path, out=tmp_path / "out", resolution=16))
    data = PreparedData(tmp_path / "out")
    assert data.count == 40 and (data.images(16) == 7).all()


def test_an_output_that_is_a_link_to_itself_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "out").symlink_to("out")
    monkeypatch.setattr(Folder, "items", None)  # nothing is read
    assert "--out" in (message := fails(tmp_path, save(tmp_path / "in"))) and "leads to itself" in message


@pytest.mark.parametrize("kind", ["link", "here"])
def test_an_output_that_cannot_be_replaced(tmp_path, monkeypatch, kind):
    images = save(tmp_path / "in")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "real")
    prepare(PrepareConfig(images=images, out=tmp_path / "link" if kind == "link" else Path("."), resolution=16))
    assert PreparedData(tmp_path / "real").count == 4 and (tmp_path / "link").is_symlink()


def test_headers_that_claim_terabytes_are_refused_without_memory():
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40, 8)})
    file.seek(0)
    with pytest.raises(ValueError, match="cut off"):
        read_npy(file)


def test_a_tfrecord_that_claims_terabytes(tmp_path):
    crc32c = pytest.importorskip("google_crc32c")
    length = struct.pack("<Q", 1 << 62)
    crc = crc32c.value(length)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    (tmp_path / "x-r03.tfrecords").write_bytes(length + struct.pack("<I", masked) + b"x" * 50)
    assert "cut off in its last record" in fails(tmp_path, tmp_path / "x-r03.tfrecords", resolution=8)


def test_a_row_does_not_pull_in_a_file_from_elsewhere(tmp_path):
    datasets = pytest.importorskip("datasets")
    secret = save(tmp_path / "secret", 1) / "000.png"
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(secret)}]}, features=features)
    with pytest.raises(ValueError, match="outside of the dataset"):
        next(HuggingFace(rows, "hf:x").items()).load()
    assert next(HuggingFace(rows, "hf:x", folders=[secret.parent]).items()).load().size == (16, 16)


@pytest.mark.parametrize("name", ["\ud800", "a\0b"])
def test_names_of_classes_can_be_written_as_utf8(tmp_path, name):
    prepare(PrepareConfig(images=save(tmp_path / "in"), out=tmp_path / "out"))
    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    (tmp_path / "out" / "dataset.json").write_text(json.dumps({**manifest, "classes": [name]}))
    with pytest.raises(UserError, match="dataset.json is damaged .has classes"):
        PreparedData(tmp_path / "out")


def test_metadata_of_other_data_differ(tmp_path):
    prepare(PrepareConfig(images=save(tmp_path / "in"), out=tmp_path / "out"))
    before = PreparedData(tmp_path / "out").metadata()
    assert changed(json.loads(json.dumps(before)), before) is None
    for resolution in (4, 8, 16):
        path = tmp_path / "out" / f"images_{resolution}.npy"
        np.save(path, 255 - np.load(path))
    after = PreparedData(tmp_path / "out").metadata()
    assert changed(before, after) == "other images of the same count, at 4, 8, 16 px"
    relabelled = {**before, "fingerprint": {**before["fingerprint"], "labels": "0"}}
    assert changed(relabelled, before) == "other labels of the same count"
    older = {name: before[name] for name in ("count", "channels", "classes", "base")}
    assert changed(older, before) is None
