"""Damaged and hostile files: every kind, mutated, is read or refused in one line.

`PGGAN_FAST_HOSTILE` sets how many are tried of each kind (make test-hostile).
"""

import io
import json
import os
import random
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from pggan_fast.data.dataset import DatasetWriter, PreparedData
from pggan_fast.data.prepare import PrepareConfig, prepare
from pggan_fast.utils.errors import UserError

COUNT = int(os.environ.get("PGGAN_FAST_HOSTILE", 20))
VALUES = (None, True, -1, 0, 1 << 70, 1.5, float("nan"), "x", "\ud800", "../../x", [], [[]], {}, {"a": 1}, [None, "y"])


def png():
    file = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(file, "PNG")
    return file.getvalue()


def mutated_bytes(data, rng):
    data = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del data[at : at + rng.randrange(1, 64)]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 16))
        else:
            data[at : at + 8] = b"\xff" * 8
        data = data or bytearray(b"\0")
    return bytes(data)


def mutated_json(value, rng):
    """Replace one value anywhere in `value` by one of another type, or drop it."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
        copy = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
        if rng.random() < 0.2:
            del copy[key]
        else:
            copy[key] = mutated_json(copy[key], rng)
        return copy
    return rng.choice(VALUES)


def mutated(path, rng):
    data = path.read_bytes()
    if path.suffix in (".json", ".jsonl") and rng.random() < 0.7:
        lines = data.splitlines() if path.suffix == ".jsonl" else [data]
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(mutated_json(json.loads(lines[at]), rng)).encode()
        path.write_bytes(b"\n".join(lines) + b"\n")
    else:
        path.write_bytes(mutated_bytes(data, rng))


def image_array(root):
    np.save(root / "in.npy", np.zeros((4, 8, 8, 3), np.uint8))
    return root / "in.npy", root / "in.npy"


def image_zip(root):
    with zipfile.ZipFile(root / "in.zip", "w") as file:
        for name in ("a/0.png", "b/1.png"):
            file.writestr(name, png())
        file.writestr("dataset.json", json.dumps({"labels": [["a/0.png", 0], ["b/1.png", 1]]}))
    return root / "in.zip", root / "in.zip"


def stylegan_labels(root):
    (root / "in").mkdir()
    for name in ("0.png", "1.png"):
        (root / "in" / name).write_bytes(png())
    (root / "in" / "dataset.json").write_text(json.dumps({"labels": [["0.png", 0], ["1.png", [0, 1]]]}))
    return root / "in", root / "in" / "dataset.json"


def records(root, changed="x-r03.tfrecords"):
    tfrecord = pytest.importorskip("tfrecord")
    writer = tfrecord.TFRecordWriter(str(root / "x-r03.tfrecords"))
    for _ in range(2):
        writer.write({"shape": ([3, 8, 8], "int"), "data": (bytes(192), "byte")})
    writer.close()
    with open(root / "x-rxx.labels", "wb") as file:
        np.save(file, np.eye(2, dtype=np.float32))
    return root / "x-r03.tfrecords", root / changed


def record_labels(root):
    return records(root, "x-rxx.labels")


def unfinished(root, changed="journal.jsonl"):
    images, _ = stylegan_labels(root)

    class Stop(Exception):
        pass

    from pggan_fast.data import prepare as module

    original, module._check_result = module._check_result, lambda *_: (_ for _ in ()).throw(Stop())
    try:
        prepare(PrepareConfig(images=images, out=root / "out", resolution=8, workers=1))
    except Stop:
        pass
    finally:
        module._check_result = original
    return images, root / ".out.partial" / changed


def unfinished_work(root):
    return unfinished(root, "work.json")


KINDS = (image_array, image_zip, stylegan_labels, records, record_labels, unfinished, unfinished_work)


@pytest.mark.parametrize("kind", KINDS)
def test_sources_and_journals(tmp_path, kind):
    made = tmp_path / "made"
    made.mkdir()
    images, changed = kind(made)
    for seed in range(COUNT):
        rng = random.Random(seed)
        root = tmp_path / "tried"
        shutil.copytree(made, root)
        mutated(root / changed.relative_to(made), rng)
        try:
            prepare(PrepareConfig(images=root / images.relative_to(made), out=root / "out", resolution=8, workers=1))
            assert PreparedData(root / "out").count > 0, seed
        except UserError as error:
            assert "\n" not in str(error), seed
        shutil.rmtree(root)


@pytest.mark.parametrize("name", ["dataset.json", "labels.npy", "images_4.npy", "images_8.npy"])
def test_prepared_data(tmp_path, name):
    with DatasetWriter(tmp_path / "made", resolution=8, channels=1, classes=["a", "b"]) as writer:
        for index in range(4):
            writer.add(np.full((1, 8, 8), index, np.uint8), index % 2, str(index))
        writer.commit()
    for seed in range(COUNT):
        rng = random.Random(seed)
        shutil.copytree(tmp_path / "made", tmp_path / "tried")
        mutated(tmp_path / "tried" / name, rng)
        try:
            data = PreparedData(tmp_path / "tried")
            data.metadata()
            assert data.images(data.resolution).shape[0] == len(data.labels)
        except UserError as error:
            assert "\n" not in str(error), seed
        shutil.rmtree(tmp_path / "tried")
