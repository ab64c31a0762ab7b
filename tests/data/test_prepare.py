"""prepare: the official exporter's levels, every kind of image, and every mistake."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pggan_fast.data.dataset import DatasetWriter, PreparedData, pyramid
from pggan_fast.data.prepare import PrepareConfig, prepare
from pggan_fast.data.preprocessing import fit, read
from pggan_fast.utils.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "data_pipeline.npz"


def save(folder, name, size=(32, 32), color=(200, 100, 50), mode="RGB"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)
    return path


def load_image(path, resolution, *, crop, channels):
    return fit(read(path.name, path), resolution, crop=crop, channels=channels)


def test_pyramid_matches_the_official_exporter():
    with np.load(GOLDEN) as golden:
        for index, image in enumerate(golden["export/in"]):
            levels = pyramid(image)
            assert sorted(levels) == [4, 8, 16, 32]
            for resolution, level in levels.items():
                assert np.array_equal(level, golden[f"export/res{resolution}"][index])


def test_pyramid_rounds_half_to_even_and_only_at_the_end():
    image = np.zeros((1, 8, 8), np.uint8)
    image[0, 0, 0], image[0, 0, 2], image[0, 4, 4] = 2, 6, 6
    # Means of 0.5 and 1.5 at 4 px: ties, which go to the even neighbours 0 and 2.
    assert pyramid(image)[4][0, 0].tolist() == [0, 2, 0, 0]
    image = np.full((1, 16, 16), 1, np.uint8)
    image[0, :2, :4] = 0
    image[0, :2, 4:6] = [[1, 2], [1, 2]]
    # 0 and 0.5 above, 1 and 1 below: 0.625 from floats; from rounded levels it would be 0.5 -> 0.
    image[0, 0, 2], image[0, 1, 2] = 1, 1
    assert pyramid(image)[4][0, 0, 0] == 1


def test_pyramid_is_exact_at_1024():
    image = np.random.default_rng(0).integers(0, 256, (1, 1024, 1024), dtype=np.uint8)
    for resolution, level in pyramid(image).items():
        side = 1024 // resolution
        sums = image.reshape(resolution, side, resolution, side).astype(np.int64).sum(axis=(1, 3))
        quotient, rest = np.divmod(sums, side * side)
        up = (2 * rest > side * side) | ((2 * rest == side * side) & (quotient % 2 == 1))
        assert np.array_equal(level[0], quotient + up)


def test_a_folder_becomes_arrays_labels_and_a_manifest(tmp_path, capsys):
    images = tmp_path / "in"
    save(images, "dogs/b.png", color=(255, 0, 0))
    save(images, "cats/a.jpg", size=(40, 70), color=(0, 255, 0))
    save(images, "dogs/deeper/c.webp", size=(64, 33), color=(0, 0, 255))
    prepare(PrepareConfig(images=images, out=tmp_path / "out", resolution=16))

    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert manifest["classes"] == ["cats", "dogs"]
    assert manifest["class_counts"] == {"cats": 1, "dogs": 2}
    assert manifest["files"] == ["cats/a.jpg", "dogs/b.png", "dogs/deeper/c.webp"]
    assert (manifest["resolution"], manifest["count"], manifest["channels"]) == (16, 3, 3)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "dataset.json",
        "images_16.npy",
        "images_4.npy",
        "images_8.npy",
        "labels.npy",
    ]
    data = PreparedData(tmp_path / "out")
    assert data.labels.tolist() == [0, 1, 1]
    for resolution in (4, 8, 16):
        array = data.images(resolution)
        assert isinstance(array, np.memmap)
        assert (array.shape, array.dtype) == ((3, 3, resolution, resolution), np.uint8)
        assert array[:, :, 0, 0].argmax(axis=1).tolist() == [1, 0, 2]
    assert "3 images, 4 to 16 px, 2 classes" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_files_at_the_top_make_no_classes(tmp_path):
    save(tmp_path / "in", "a.png")
    prepare(PrepareConfig(images=tmp_path / "in", out=tmp_path / "out"))
    data = PreparedData(tmp_path / "out")
    assert (data.classes, data.labels.tolist(), data.resolution) == ([], [0], 32)


def test_crop_takes_the_centre_or_squeezes_the_whole(tmp_path):
    image = np.zeros((8, 24, 3), np.uint8)
    image[:, 8:16] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    centre = load_image(tmp_path / "a.png", 8, crop="center", channels=3)
    assert (centre == 255).all()
    whole = load_image(tmp_path / "a.png", 8, crop="none", channels=3)
    assert whole[0, 4, 0] < 20 and whole[0, 4, 7] < 20 and whole[0, 4, 4] > 235


def test_resizes_with_lanczos(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.LANCZOS))
    found = load_image(tmp_path / "a.png", 16, crop="center", channels=3)
    assert np.array_equal(found.transpose(1, 2, 0), expected)


def test_respects_exif_orientation(tmp_path):
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 16, 8))  # the upper half is white ...
    exif = image.getexif()
    exif[0x0112] = 3  # ... and the camera was held upside down
    image.save(tmp_path / "a.png", exif=exif)
    found = load_image(tmp_path / "a.png", 16, crop="center", channels=3)
    assert (found[:, :8] == 0).all() and (found[:, 8:] == 255).all()


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("LA", (90, 255), (90, 90, 90)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 77, (77, 77, 77)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
    ],
)
def test_all_modes_become_rgb(tmp_path, mode, color, expected):
    path = save(tmp_path, "a.tif", mode=mode, color=color)
    found = load_image(path, 8, crop="center", channels=3)
    assert found.shape == (3, 8, 8)
    assert tuple(found[:, 0, 0].tolist()) == expected


def test_palettes_keep_their_colours_and_transparency(tmp_path):
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    opaque, clear = (load_image(tmp_path / f"{name}.png", 8, crop="center", channels=3) for name in ("opaque", "clear"))
    assert opaque[:, 0, 0].tolist() == [10, 200, 30]
    assert clear[:, 0, 0].tolist() == [255, 255, 255]


def test_one_channel(tmp_path):
    save(tmp_path / "in", "a.png", color=(255, 255, 255))
    prepare(PrepareConfig(images=tmp_path / "in", out=tmp_path / "out", channels=1, resolution=8))
    images = PreparedData(tmp_path / "out").images(8)
    assert images.shape == (1, 1, 8, 8) and (images == 255).all()


def test_bad_files_are_skipped_and_named(tmp_path, capsys):
    images = tmp_path / "in"
    save(images, "good.png")
    save(images, "small.png", size=(100, 15))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(images / "cut.png")
    whole = (images / "cut.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    (images / "notes.txt").write_text("not an image")
    (images / "empty.jpg").touch()
    (images / ".hidden").write_text("not looked at")
    prepare(PrepareConfig(images=images, out=tmp_path / "out", resolution=16))

    out = capsys.readouterr().out
    assert "1 images" in out and "3 files skipped" in out and "2 left out as no images by their names" in out
    skipped = json.loads((tmp_path / "out" / "dataset.json").read_text())["skipped"]
    assert sorted(skipped) == ["cut.png", "empty.jpg", "small.png"]
    assert skipped["small.png"] == "smaller than 16 px (15 px)"
    assert skipped["empty.jpg"] == "not an image"
    assert all(f"  {name}: " in out for name in skipped)
    assert PreparedData(tmp_path / "out").count == 1


def test_default_resolution_fits_nine_of_ten(tmp_path, capsys):
    for index in range(9):
        save(tmp_path / "in", f"{index}.png", size=(70, 40 + index))
    save(tmp_path / "in", "9.png", size=(20, 500))
    prepare(PrepareConfig(images=tmp_path / "in", out=tmp_path / "out"))
    assert PreparedData(tmp_path / "out").resolution == 32
    assert PreparedData(tmp_path / "out").count == 9
    assert "resolution 32" in capsys.readouterr().out


def fails(capsys=None, **settings):
    with pytest.raises(UserError) as error:
        prepare(PrepareConfig(**settings))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_mistakes(tmp_path):
    images, out = tmp_path / "in", tmp_path / "out"
    assert "no such folder" in fails(images=images, out=out)
    images.mkdir()
    assert "there are no files in it" in fails(images=images, out=out)
    (images / "a.bin").write_text("x")
    assert "none of its 1 files is an image that can be read (a.bin: not an image)" in fails(images=images, out=out)
    save(images, "a.png", size=(8, 8))
    assert "smaller than that" in fails(images=images, out=out, resolution=16)
    assert "--resolution 20" in fails(images=images, out=out, resolution=20)
    assert "--base 5x4x" in fails(images=images, out=out, base="5x4x")
    assert "the smaller one 4" in fails(images=images, out=out, base="5x6")
    assert "--workers 0" in fails(images=images, out=out, workers=0)
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_nothing_is_left_when_every_image_is_cut_off(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(noise).save(tmp_path / "in" / "a.png")
    whole = (tmp_path / "in" / "a.png").read_bytes()
    (tmp_path / "in" / "a.png").write_bytes(whole[: len(whole) // 2])
    assert "none of its images can be read" in fails(images=tmp_path / "in", out=tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["in"]


def test_a_folder_with_something_in_it_is_not_touched(tmp_path):
    save(tmp_path / "in", "a.png")
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    assert "not empty" in fails(images=tmp_path / "in", out=out)
    assert [path.name for path in out.iterdir()] == ["precious.txt"]
    (out / "precious.txt").unlink()
    prepare(PrepareConfig(images=tmp_path / "in", out=out))
    assert PreparedData(out).count == 1


def test_the_writer_leaves_nothing_behind_when_interrupted(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        DatasetWriter(tmp_path / "out", resolution=8, channels=1, classes=[]) as writer,
    ):
        writer.add(np.zeros((1, 8, 8), np.uint8), 0, "a")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
