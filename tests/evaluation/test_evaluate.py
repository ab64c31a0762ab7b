"""The command `evaluate`: sources, results, what they depend on, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pggan_fast import Generator
from pggan_fast.cli import main
from pggan_fast.evaluation import EvaluateConfig, evaluate
from pggan_fast.generation.images import GenerateConfig, generate_images
from pggan_fast.interop.weights import save_weights
from pggan_fast.metrics import sliced_wasserstein
from pggan_fast.metrics.pyramid import pyr_down, pyr_up
from pggan_fast.training import DatasetWriter
from tests.metrics.golden import images

COUNT = 40


def write_files(folder, batch):
    """PNG files of uint8 [N, C, H, W]."""
    folder.mkdir(parents=True)
    for index, image in enumerate(batch):
        pixels = image.transpose(1, 2, 0)
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(folder / f"{index:04d}.png")
    return folder


def write_data(folder, batch, classes=()):
    with DatasetWriter(folder, resolution=batch.shape[-1], channels=batch.shape[1], classes=list(classes)) as writer:
        for index, image in enumerate(batch):
            writer.add(image, index % 3 % max(1, len(classes)), f"{index}.png")
        writer.commit()
    return folder


def write_weights(path, *, label_dim=0, channels=3, stage=32, alpha=1.0, classes=()):
    torch.manual_seed(0)
    G = Generator(32, fmap_base=64, fmap_max=8, label_dim=label_dim, image_channels=channels)
    metadata = {"options": G.options, "classes": list(classes), "images": 5, "resolution": stage, "alpha": alpha}
    save_weights(path, G, metadata)
    return path


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same images as files and as prepared data, others, and a generator."""
    root = tmp_path_factory.mktemp("places")
    write_files(root / "files", images(32, "A")[:COUNT])
    write_data(root / "data", images(32, "A")[:COUNT])
    write_data(root / "others", images(32, "B")[:COUNT])
    write_weights(root / "generator.safetensors")
    return root


def results(reals, metrics="swd", **what):
    return evaluate(EvaluateConfig(reals=reals, metrics=metrics, device="cpu", **what))


def test_the_same_images_are_at_distance_zero(places):
    for evaluated in ("files", "data"):
        found = results(places / "files", images=places / evaluated)["results"]
        assert found["swd_average"] == pytest.approx(0, abs=1e-3)
    part = results(places / "files", images=places / "files", count=10, seed=7)
    assert part["results"]["swd_average"] == pytest.approx(0, abs=1e-3)
    assert part["images"]["digest"] == part["reals"]["digest"]


def test_values_are_those_of_the_metric_whatever_the_images_are_in(places):
    expected = sliced_wasserstein(images(32, "B")[:COUNT], images(32, "A")[:COUNT])
    for evaluated in ("files", "data"):
        found = results(places / "others", images=places / evaluated, batch_size=7)["results"]
        assert found == pytest.approx({f"swd_{name}": value for name, value in expected.items()}, rel=1e-4)


def test_more_noise_and_more_blur_are_farther(places, tmp_path):
    originals = images(32, "A")[:COUNT]
    noise = np.random.RandomState(0).normal(size=originals.shape)
    blurred = torch.tensor(originals).float()
    found = {"noise": [], "blur": []}
    for step, sigma in enumerate((8, 24, 64)):
        blurred = pyr_up(pyr_down(blurred))
        worse = {"noise": np.clip(np.rint(originals + sigma * noise), 0, 255), "blur": blurred.round().numpy()}
        for name, batch in worse.items():
            folder = write_files(tmp_path / f"{name}{step}", batch.astype(np.uint8))
            found[name].append(results(places / "data", images=folder)["results"]["swd_average"])
    for name, values in found.items():
        assert 1 < values[0] < values[1] < values[2], name


def test_equal_seeds_give_equal_results(places):
    first = results(places / "data", "swd,ms-ssim,mmd,parzen", weights=places / "generator.safetensors", count=24)
    again = results(places / "data", "swd,ms-ssim,mmd,parzen", weights=places / "generator.safetensors", count=24)
    for report in (first, again):
        del report["date"], report["seconds"]
    assert again == first
    other = results(places / "data", weights=places / "generator.safetensors", count=24, seed=1)
    assert other["results"]["swd_average"] != first["results"]["swd_average"]


def test_generated_images_are_those_of_the_command_generate(places, tmp_path):
    weights = places / "generator.safetensors"
    generate_images(GenerateConfig(out=tmp_path / "generated", weights=weights, count=12, seed=3, device="cpu"))
    evaluated = results(places / "data", weights=weights, count=12, seed=3)
    files = evaluate(
        EvaluateConfig(images=tmp_path / "generated", reals=places / "data", count=12, metrics="swd", seed=3)
    )
    assert evaluated["results"] == pytest.approx(files["results"], rel=1e-4)


def test_the_result_says_what_it_is_about(places, tmp_path):
    out = tmp_path / "result.json"
    report = results(places / "data", weights=places / "generator.safetensors", count=10, out=out)
    assert json.loads(out.read_text()) == json.loads(json.dumps(report))
    settings = report["settings"]
    assert (settings["count"], settings["resolution"], settings["seed"]) == (10, 32, 0)
    assert settings["reals"] == str(places / "data") and settings["weights"] == str(places / "generator.safetensors")
    assert report["images"]["images_shown"] == 5 and report["reals"]["count"] == COUNT
    assert report["metrics"]["swd"]["directions"] == 512
    assert set(report["versions"]) == {"pggan_fast", "torch", "numpy"}


def test_labels_are_those_of_the_reals(tmp_path):
    reals = write_data(tmp_path / "data", images(32, "A")[:9], classes=["a", "b", "c"])
    same = write_weights(tmp_path / "same.safetensors", label_dim=3, classes=["a", "b", "c"])
    other = write_weights(tmp_path / "other.safetensors", label_dim=3, classes=["d", "e", "f"])
    by_reals, in_turn = (results(reals, weights=path)["images"] for path in (same, other))
    assert by_reals["labels_from"] == "the reals" and in_turn["labels_from"] == "the seeds"
    assert by_reals["digest"] != in_turn["digest"]


@pytest.mark.parametrize(("stage", "alpha", "resolution"), [(8, 1.0, None), (8, 0.25, 16), (32, 1.0, 16)])
def test_images_of_other_stages_are_brought_to_size(places, tmp_path, stage, alpha, resolution):
    weights = write_weights(tmp_path / "g.safetensors", stage=stage, alpha=alpha)
    report = results(places / "data", weights=weights, count=4, resolution=resolution)
    assert report["settings"]["resolution"] == (resolution or 32)
    assert report["images"]["drawn_at"] == stage and report["images"]["alpha"] == alpha


def test_other_sizes_of_files_are_cropped_and_resized(places, tmp_path):
    wide = np.concatenate([images(64, "A")[:6], images(64, "B")[:6]], axis=3)  # 64 high, 128 wide
    folder = write_files(tmp_path / "wide", wide)
    report = results(folder, images=places / "files", count=6)
    assert report["settings"]["resolution"] == 32
    as_it_is = results(folder, images=folder, count=6)
    assert as_it_is["settings"]["resolution"] == 64 and as_it_is["results"]["swd_average"] == 0
    smaller = results(folder, images=folder, count=6, resolution=32)
    assert list(smaller["results"]) == ["swd_32", "swd_16", "swd_average"]


def fails(capsys, *arguments):
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pggan-fast: error: ") and error.count("\n") == 1
    return error


def test_the_command_line(places, tmp_path, capsys):
    out = tmp_path / "result.json"
    arguments = ["--weights", places / "generator.safetensors", "--reals", places / "data", "--out", out]
    assert main(["evaluate", *map(str, arguments), "--count", "6", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for text in ("reals: 6 of 32x32 px, prepared data", "images: 6 of 32x32 px, generated", "swd_average", "ms_ssim"):
        assert text in printed
    assert f"--out {out}: exists already" in fails(capsys, *arguments)


def test_files_take_the_shape_of_prepared_reals(tmp_path, capsys):
    """Crop and resize photographs as `prepare` does, and compare them with data made of them."""
    photographs = np.random.default_rng(0).integers(0, 256, (8, 3, 40, 36), dtype=np.uint8)
    for channels in (1, 3):
        files = write_files(tmp_path / f"files{channels}", photographs[:, :channels])
        data = tmp_path / f"data{channels}"
        prepare = ["prepare", "--images", files, "--out", data, "--channels", channels, "--resolution", 32]
        assert main([str(each) for each in prepare]) == 0
        assert results(data, images=files)["results"]["swd_average"] == pytest.approx(0, abs=1e-3)
        results(data, images=files, resolution=16)
        printed = capsys.readouterr().out
        assert "images: 8 of 32x32 px, image files" in printed and "images: 8 of 16x16 px, image files" in printed
    small = write_files(tmp_path / "small", photographs[:, :, :3, :3])
    assert "the first is 3x3 px, smaller than all of --reals" in fails(capsys, "--images", small, "--reals", data)


def test_mistakes_are_answered_in_a_line(places, tmp_path, capsys):
    files, data, weights = places / "files", places / "data", places / "generator.safetensors"
    reals = ["--reals", data]
    assert "exactly one of them" in fails(capsys, *reals)
    assert "exactly one of them" in fails(capsys, *reals, "--images", files, "--weights", weights)
    assert "--reals is missing" in fails(capsys, "--images", files)
    assert "--metrics fjd: metric fjd: must be one of: swd," in fails(
        capsys, *reals, "--images", files, "--metrics", "fjd"
    )
    assert "name at least one of: swd," in fails(capsys, *reals, "--images", files, "--metrics", ",")
    assert "--count 41: there are only 40" in fails(capsys, *reals, "--images", files, "--count", 41)
    assert "--batch-size 0: must be from 1 to 1048576" in fails(capsys, *reals, "--images", files, "--batch-size", 0)
    assert "no such folder" in fails(capsys, *reals, "--images", tmp_path / "nowhere")
    assert f"--images {tmp_path}: holds no images" in fails(capsys, *reals, "--images", tmp_path)
    assert "--run" in fails(capsys, *reals, "--run", tmp_path)
    assert "is not prepared at 48 px; --resolution must be one of 4, 8, 16, 32" in fails(
        capsys, *reals, "--images", files, "--resolution", 48
    )
    assert "must be 32 times or divided by a whole number" in fails(
        capsys, *reals, "--weights", weights, "--resolution", 48
    )
    assert "--metrics swd,ms-ssim: images 8x8: sides must be 16 px" in fails(
        capsys, *reals, "--images", data, "--resolution", 8
    )
    gray = write_weights(tmp_path / "gray.safetensors", channels=1)
    assert "have 3 channels, the evaluated images 1" in fails(capsys, *reals, "--weights", gray)


def test_files_that_are_no_images_are_left_out_and_named(places, tmp_path, capsys):
    folder = write_files(tmp_path / "files", images(32, "A")[:6])
    (folder / "0001.png").write_bytes(b"no image")
    (folder / "._0002.png").write_bytes(b"a Mac's")
    (folder / "notes.pdf").write_bytes(b"text")
    report = results(folder, images=folder)
    assert report["settings"]["count"] == 5 and report["results"]["swd_average"] == 0
    assert report["images"]["left_out"] == {"0001.png": "not an image"}
    assert "--images: 1 left out (0001.png: not an image)" in capsys.readouterr().out
    error = fails(capsys, "--images", folder, "--reals", folder, "--count", 6)
    assert "--count 6: only 5 images can be read" in error


@pytest.mark.parametrize(
    "text", ["{}", "[1]", '{"settings": {"data": [1]}}', "\udcff", '{"settings": {"data": "x\\u0000y"}}']
)
def test_a_damaged_config_of_a_run_is_one_line(places, tmp_path, capsys, text):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    write_weights(run / "final" / "generator.safetensors")
    assert "config.json is damaged" in fails(capsys, "--run", run)
