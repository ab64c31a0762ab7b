"""prepare from every source, written by programs that are not ours."""

import json
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from pggan_fast.data.dataset import PreparedData
from pggan_fast.data.prepare import PrepareConfig, in_order, prepare
from pggan_fast.data.preprocessing import from_array
from pggan_fast.data.sources import HuggingFace, Item, TfRecords, TorchDataset, open_source
from pggan_fast.utils.errors import UserError

SIDE = 16


def photos(count, side=SIDE, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def prepared(tmp_path, images, source=None, name="out", **settings):
    out = tmp_path / name
    prepare(PrepareConfig(images=images, out=out, **settings), source)
    return PreparedData(out)


def top_level(data):
    """Return images as [N, H, W, C]."""
    return data.images(data.resolution).transpose(0, 2, 3, 1)


def fails(action):
    with pytest.raises(UserError) as error:
        action()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_zip_is_like_the_folder_it_holds(tmp_path):
    folder = tmp_path / "in"
    for index, image in enumerate(photos(6)):
        path = folder / "all" / ("cats", "dogs")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    archive = tmp_path / "in.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*.png"), reverse=True):
            file.write(path, path.relative_to(folder))
        file.writestr("__MACOSX/all/cats/._0.png", b"junk")
    one, other = prepared(tmp_path, folder, name="a"), prepared(tmp_path, archive, name="b")
    # The first folder that not all files share names the class.
    assert one.classes == other.classes == ["cats", "dogs"]
    assert one.labels.tolist() == other.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(top_level(one), photos(6)[[0, 2, 4, 1, 3, 5]])
    assert np.array_equal(top_level(one), top_level(other))


def test_a_folder_of_arrays(tmp_path):
    """CelebA-HQ as its own script leaves it: imgHQ00000.npy, uint8 [1, 3, H, W]."""
    folder = tmp_path / "in"
    folder.mkdir()
    for index, image in enumerate(photos(3)):
        np.save(folder / f"imgHQ{index:05d}.npy", image.transpose(2, 0, 1)[None])
    assert np.array_equal(top_level(prepared(tmp_path, folder)), photos(3))


@pytest.mark.parametrize("layout", ["nhwc", "nchw", "nhw", "float"])
def test_one_array_of_all_images(tmp_path, layout):
    images = photos(5)
    stored = {
        "nhwc": images,
        "nchw": images.transpose(0, 3, 1, 2),
        "nhw": images[..., 0],
        "float": (images / 255).astype(np.float32),
    }[layout]
    np.save(tmp_path / "all.npy", stored)
    channels = 1 if layout == "nhw" else 3
    data = prepared(tmp_path, tmp_path / "all.npy", channels=channels)
    assert (data.resolution, data.classes) == (SIDE, [])
    assert np.array_equal(top_level(data), images[..., :channels])


def write_tfrecords(folder, images, labels=None, name="faces"):
    """Every level by the PyPI package tfrecord, the levels themselves by averaging."""
    tfrecord = pytest.importorskip("tfrecord")
    folder.mkdir(exist_ok=True)
    for level in range(2, images.shape[1].bit_length()):
        side, step = 2**level, images.shape[1] // 2**level
        writer = tfrecord.TFRecordWriter(str(folder / f"{name}-r{level:02d}.tfrecords"))
        for image in images:
            means = image.reshape(side, step, side, step, -1).mean(axis=(1, 3))
            pixels = np.rint(means).astype(np.uint8).transpose(2, 0, 1)
            writer.write({"shape": (list(pixels.shape), "int"), "data": (pixels.tobytes(), "byte")})
        writer.close()
    if labels is not None:
        with open(folder / f"{name}-rxx.labels", "wb") as file:
            np.save(file, np.eye(labels.max() + 1, dtype=np.float32)[labels])


def test_tfrecords_of_another_writer(tmp_path):
    images, labels = photos(9), np.arange(9) % 3
    write_tfrecords(tmp_path / "records", images, labels)
    data = prepared(tmp_path, tmp_path / "records")
    assert (data.resolution, data.classes, data.labels.tolist()) == (SIDE, ["0", "1", "2"], labels.tolist())
    assert np.array_equal(top_level(data), images)
    # The level of the resolution that was requested, not the largest.
    assert TfRecords(tmp_path / "records", 8).path.name == "faces-r03.tfrecords"
    small = prepared(tmp_path, tmp_path / "records", name="small", resolution=8)
    for resolution in (4, 8):
        assert np.abs(small.images(resolution).astype(int) - data.images(resolution)).max() <= 1  # rounded twice
    assert np.array_equal(small.images(8), data.images(8))
    one = prepared(tmp_path, tmp_path / "records" / "faces-r03.tfrecords", name="one")
    assert np.array_equal(one.images(8), small.images(8))


def test_tfrecords_that_are_damaged(tmp_path, capsys):
    write_tfrecords(tmp_path / "records", photos(4))
    file = tmp_path / "records" / "faces-r04.tfrecords"
    whole = file.read_bytes()
    record = len(whole) // 4

    flipped = bytearray(whole)
    flipped[record + record // 2] ^= 1  # within the pixels of the second image
    file.write_bytes(flipped)
    data = prepared(tmp_path, file)
    assert data.count == 3
    skipped = json.loads((tmp_path / "out" / "dataset.json").read_text())["skipped"]
    assert skipped == {"faces-r04.tfrecords[1]": "cannot be read (checksum does not match)"}

    file.write_bytes(whole[: 2 * record + 50])
    assert "cut off in its last record" in fails(lambda: prepared(tmp_path, file, name="cut"))
    file.write_bytes(whole[: 2 * record + 5])
    assert f"damaged or cut off at byte {2 * record}" in fails(lambda: prepared(tmp_path, file, name="cut"))
    file.write_bytes(b"GIF89a, or whatever else somebody has renamed")
    assert "damaged or cut off at byte 0" in fails(lambda: prepared(tmp_path, file, name="other"))
    write_tfrecords(tmp_path / "records", photos(1), name="cars")
    assert "several datasets" in fails(lambda: prepared(tmp_path, tmp_path / "records", name="two"))


def test_labels_of_tfrecords_that_are_no_classes(tmp_path, capsys):
    write_tfrecords(tmp_path / "records", photos(2))
    with open(tmp_path / "records" / "faces-rxx.labels", "wb") as file:
        np.save(file, np.array([[1, 1], [0, 1]], np.float32))
    assert prepared(tmp_path, tmp_path / "records").classes == []
    assert "rows are not one class each" in capsys.readouterr().out


@pytest.fixture
def huggingface(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"id": datasets.Value("int64"), "photo": datasets.Image(), "kind": datasets.ClassLabel(names=["hat", "shoe"])}
    )
    images = [Image.fromarray(image) for image in photos(7)]
    return datasets.Dataset.from_dict({"id": range(7), "photo": images, "kind": [0, 1] * 3 + [0]}, features=features)


def test_a_hugging_face_dataset(tmp_path, huggingface):
    data = prepared(tmp_path, "hf:clothes", HuggingFace(huggingface, "hf:clothes"))
    assert (data.classes, data.labels.tolist(), data.resolution) == (["hat", "shoe"], [0, 1] * 3 + [0], SIDE)
    assert np.array_equal(top_level(data), photos(7))

    huggingface.save_to_disk(str(tmp_path / "saved"))
    for name, settings in {"disk": {}, "stream": {"streaming": True, "resolution": SIDE}}.items():
        again = prepared(tmp_path, f"hf:{tmp_path}/saved", name=name, **settings)
        assert np.array_equal(top_level(again), top_level(data)) and again.labels.tolist() == data.labels.tolist()


def test_a_hugging_face_stream_resumes(huggingface):
    source = HuggingFace(huggingface.to_iterable_dataset(), "hf:clothes")
    assert source.count is None
    names = [item.name for item in source.items(5)]
    assert names == ["hf:clothes[5]", "hf:clothes[6]"]
    found = [np.asarray(item.load()) for item in source.items(5)]
    assert np.array_equal(found, photos(7)[5:])


def test_mistakes_about_hugging_face(tmp_path, huggingface):
    assert "has no column of images" in fails(lambda: HuggingFace(huggingface.remove_columns("photo"), "hf:x"))
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in fails(lambda: open_source(Path(f"hf:{tmp_path}/empty")))


class Samples(torch.utils.data.Dataset):
    """Somebody's own: tensors and labels, the fourth one broken."""

    classes = ["a", "b"]

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == 3:
            raise RuntimeError("no such photo")
        return torch.from_numpy(photos(6)[index]).permute(2, 0, 1) / 255, index % 2


class Stream(IterableDataset):
    def __iter__(self):
        return iter([{"image": Image.fromarray(image)} for image in photos(5)])


samples = Samples  # a factory, for torch:MODULE:NAME


def test_a_torch_dataset(tmp_path):
    data = prepared(tmp_path, "torch:mine", TorchDataset(Samples(), "torch:mine", workers=2), resolution=SIDE)
    assert (data.classes, data.labels.tolist()) == (["a", "b"], [0, 1, 0, 0, 1])
    assert np.array_equal(top_level(data), photos(6)[[0, 1, 2, 4, 5]])
    skipped = json.loads((tmp_path / "out" / "dataset.json").read_text())["skipped"]
    assert skipped == {"torch:mine[3]": "cannot be read (RuntimeError: no such photo)"}


def test_a_torch_stream(tmp_path):
    data = prepared(tmp_path, "torch:stream", TorchDataset(Stream(), "torch:stream"))
    assert np.array_equal(top_level(data), photos(5))


def test_a_torch_dataset_by_name(tmp_path, monkeypatch):
    (tmp_path / "photos_of_mine.py").write_text(Path(__file__).read_text())
    monkeypatch.chdir(tmp_path)
    assert open_source(Path("torch:photos_of_mine:samples")).count == 6
    assert "cannot be imported" in fails(lambda: open_source(Path("torch:photos_of_mine:nothing")))
    assert "must be torch:MODULE:NAME" in fails(lambda: open_source(Path("torch:photos_of_mine")))
    assert "is a dict" in fails(lambda: open_source(Path("torch:builtins:dict")))


def test_labels_outside_of_the_classes(tmp_path):
    class Wrong(Samples):
        def __getitem__(self, index):
            return photos(1)[0], 2

    message = fails(lambda: prepared(tmp_path, "torch:x", TorchDataset(Wrong(), "torch:x"), resolution=SIDE))
    assert "torch:x[0]: has label 2, must be 0 to 1" in message


@pytest.mark.parametrize("base", ["4x6", "8x4"])
def test_images_that_are_not_square(tmp_path, base):
    height, width = (int(side) for side in base.split("x"))
    images = np.random.default_rng(0).integers(0, 256, (2, 4 * height, 4 * width, 3), dtype=np.uint8)
    folder = tmp_path / "in"
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index}.png")
    data = prepared(tmp_path, folder, base=base)
    assert (data.resolution, data.base) == (16, (height, width))
    assert np.array_equal(top_level(data), images)
    for resolution in (4, 8):
        scale = 16 // resolution
        shape = (2, height * resolution // 4, scale, width * resolution // 4, scale, 3)
        means = np.rint(images.reshape(shape).mean(axis=(2, 4))).transpose(0, 3, 1, 2)
        assert np.array_equal(data.images(resolution), means)
    # A square image loses its edges: above and below, or left and right.
    square = np.zeros((60, 60, 3), np.uint8)
    cut = 60 - 60 * min(height, width) // max(height, width)
    (square[cut // 2 : 60 - cut // 2] if width > height else square[:, cut // 2 : 60 - cut // 2])[:] = 255
    Image.fromarray(square).save(folder / "square.png")
    # Lanczos looks a little beyond the cut.
    assert prepared(tmp_path, folder, name="more", base=base).images(8)[2].min() > 240


@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_is_kept_where_there_is_a_channel_for_it(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, channels), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in" / "a.png")
    assert np.array_equal(top_level(prepared(tmp_path, tmp_path / "in", channels=channels))[0], image)


def test_results_come_in_order_from_several_threads():
    threads, others, all_at_work = set(), threading.Event(), threading.Barrier(4)

    def slow_first(item):
        threads.add(threading.get_ident())
        if int(item.name) < 4:
            all_at_work.wait(60)  # each of the four threads has one of the first four
        if item.name == "0":
            assert others.wait(60)  # the first to be asked for is the last to be done
        if item.name == "3":
            others.set()
        if item.name == "7":
            raise ValueError("seven")
        return int(item.name)

    items = [Item(str(number), None, lambda: None) for number in range(50)]
    found = [result for _, result in in_order(slow_first, items, 4)]
    assert str(found.pop(7)) == "seven"
    assert found == [number for number in range(50) if number != 7]
    assert len(threads) == 4


def test_nothing_is_read_far_ahead():
    read = []

    def items():
        for number in range(1000):
            read.append(number)
            yield Item(str(number), None, lambda: None)

    results = in_order(lambda item: item.name, items(), 2)
    next(results)
    assert len(read) <= 2 * 4
    results.close()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((5, 5, 5), np.uint8), "no image of 1 to 4 channels"),
        (np.zeros((2, 3, 8, 8), np.uint8), "no image of 1 to 4 channels"),
        (np.full((3, 8, 8), -1.0), "floats must be in 0..1"),
        (np.zeros((3, 8, 8), np.int64), "must be uint8"),
    ],
)
def test_arrays_that_are_no_images(array, words):
    with pytest.raises(ValueError, match=words):
        from_array(array)


def test_files_that_are_no_sources(tmp_path):
    (tmp_path / "a.rar").touch()
    (tmp_path / "a.zip").write_bytes(b"PK nothing")
    (tmp_path / "a.npy").write_bytes(b"nothing")
    np.save(tmp_path / "b.npy", np.zeros((4, 7, 8, 9, 2), np.uint8))
    for name, words in [
        ("a.rar", "must be a folder, .zip, .npy"),
        ("a.zip", "is no zip archive"),
        ("a.npy", "is no array of images"),
        ("b.npy", "is no array of images"),
        ("c", "no such folder or file"),
    ]:
        assert words in fails(lambda name=name: open_source(tmp_path / name))


def test_extras_that_are_missing_are_named(tmp_path, monkeypatch):
    for module in ("google_crc32c", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "a.tfrecords").touch()
    assert "pip install 'pggan-fast[tfrecords]'" in fails(lambda: open_source(tmp_path / "a.tfrecords"))
    assert "pip install 'pggan-fast[datasets]'" in fails(lambda: open_source(Path("hf:somebody/clothes")))
