"""Projection finds the latents of a generator's own images again, and says in one line what it cannot take."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pggan_fast import Generator
from pggan_fast.cli import main
from pggan_fast.generation import projection
from pggan_fast.generation.projection import ProjectConfig, project
from pggan_fast.interop.weights import save_weights
from pggan_fast.networks.r3gan import R3ganGenerator
from pggan_fast.networks.sampling import generate, latents


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A generator of two classes with some contrast, and its file."""
    torch.manual_seed(0)
    G = Generator(16, fmap_base=64, fmap_max=16, latent_dim=8, label_dim=2).eval()
    path = tmp_path_factory.mktemp("weights") / "generator.safetensors"
    save_weights(path, G, {"options": G.options, "classes": ["a", "b"], "images": 0, "resolution": 16, "alpha": 1.0})
    return G.requires_grad_(False), path


def image_of(G, seed, label):
    """Return the image of a seed that is no candidate: uint8 [H, W, C]."""
    return generate(G, latents(G, 1, seed), torch.tensor([label]))[0]


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("label", [0, 1])
def test_a_generated_image_is_found_again(weights, tmp_path, capsys, label):
    G, path = weights
    expected = image_of(G, 10_000, label)
    Image.fromarray(expected).save(tmp_path / "target.png")
    out = tmp_path / "out"
    options = ["--features", "none", "--steps", 150, "--candidates", 64, "--device", "cpu"]
    target = tmp_path / "target.png"
    code, told, _ = run(capsys, "project", "--weights", path, "--image", target, "--out", out, *options)
    assert code == 0 and "distance: pixels and no features" in told
    report = json.loads((out / "projection.json").read_text())
    assert report["label"] == "ab"[label]
    # The nearest of other seeds' images is far away; the one found differs by a level or two of 255.
    others = np.stack([image_of(G, seed, label) for seed in range(64)]).astype(float)
    nearest = np.square((others - expected) / 127.5).mean(axis=(1, 2, 3)).min()
    assert report["mean_squared_error"] < min(nearest / 50, 1e-4)
    image = np.asarray(Image.open(out / "reconstruction.png"))
    assert np.abs(image.astype(int) - expected).mean() < 2
    z = torch.from_numpy(np.load(out / "latent.npy"))
    assert np.array_equal(generate(G, z[None], torch.tensor([label]))[0], image)
    assert abs(z.norm().item() - 8**0.5) <= projection.SHELL + 1e-4
    pair = np.asarray(Image.open(out / "comparison.png"))  # each 16 px tile 16 times as large
    assert np.array_equal(pair[::16, ::16], np.concatenate([expected, image], axis=1))


def test_networks_of_another_kind():
    """R3GAN's, from whose channels no image need follow: what is found is nearer than the nearest candidate."""
    torch.manual_seed(0)
    G = R3ganGenerator(8, fmap_base=64, fmap_max=16, latent_dim=12).eval().requires_grad_(False)
    target = torch.from_numpy(generate(G, latents(G, 1, 10_000), None)[0].transpose(2, 0, 1).copy())
    settings = {"image": "x", "out": "y", "weights": "z", "candidates": 16, "starts": 2}
    first, found = (project(G, target, ProjectConfig(**settings, steps=steps)) for steps in (1, 60))
    assert found.label is None and found.mean_squared_error < first.mean_squared_error / 4


def test_features_decide_where_they_weigh_most(weights):
    """With features of the mean color alone, that is what agrees in the end."""
    G, _ = weights
    target = torch.full((3, 16, 16), 140, dtype=torch.uint8)

    def mean_color(images):
        return torch.cat([images.mean(dim=(2, 3)), torch.ones(len(images), 1)], dim=1)

    settings = {"image": "x", "out": "y", "weights": "z", "candidates": 16, "steps": 60, "starts": 2}
    without, with_features = (
        project(G, target, ProjectConfig(**settings, feature_weight=weight), features=mean_color) for weight in (0, 100)
    )
    assert with_features.feature_distance < 0.5 * without.feature_distance
    assert without.mean_squared_error < with_features.mean_squared_error


def test_the_installed_network_is_taken(weights, tmp_path, capsys):
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra metrics is not installed")
    G, path = weights
    Image.fromarray(image_of(G, 10_000, 0)).save(tmp_path / "target.png")
    options = ["--steps", 2, "--candidates", 2, "--starts", 1, "--label", "a", "--device", "cpu"]
    command = ["project", "--weights", path, "--image", tmp_path / "target.png", "--out", tmp_path / "out", *options]
    code, told, _ = run(capsys, *command)
    assert code == 0 and "pixels and EfficientNet-Lite0" in told and ", features 0." in told
    report = json.loads((tmp_path / "out/projection.json").read_text())
    assert report["features"] == "EfficientNet-Lite0" and 0 < report["feature_distance"] < 4


def test_without_a_network_pixels_alone_count(weights, tmp_path, capsys, monkeypatch):
    def missing(device):
        raise ValueError("cannot be imported")

    monkeypatch.setattr(projection, "EfficientNetLite0", missing)
    Image.new("L", (40, 20)).save(tmp_path / "gray.png")
    command = ["project", "--weights", weights[1], "--image", tmp_path / "gray.png", "--steps", 1, "--candidates", 2]
    code, told, _ = run(capsys, *command, "--out", tmp_path / "out")
    assert code == 0 and "no features (pip install" in told
    code, _, error = run(capsys, *command, "--out", tmp_path / "other", "--features", "lite0")
    assert code == 2 and error == "pggan-fast: error: --features lite0: cannot be imported\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--image", "missing.png"], "--image missing.png: cannot be read (No such file or directory)"),
        (["--image", "text.png"], "--image text.png: cannot be read"),
        (["--steps", "0"], "--steps 0: must be from 1 to 1000000"),
        (["--learning-rate", "nan"], "--learning-rate nan: must be a finite number"),
        (["--label", "c"], "--label c: must be 0 to 1 or one of: a, b"),
        (["--out", "full"], "--out full"),
        (["--run", "x"], "--run or --weights: exactly one of them must be given"),
    ],
)
def test_mistakes_are_one_line(weights, tmp_path, monkeypatch, capsys, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    Image.new("RGB", (16, 16)).save("good.png")
    code, _, error = run(capsys, "project", "--weights", weights[1], "--image", "good.png", "--out", "out", *changes)
    assert code == 2 and error.startswith(f"pggan-fast: error: {message}") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_made_is_said_before_the_work(weights, tmp_path, monkeypatch, capsys):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "image.png")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(projection, "project", None)
    out = tmp_path / "file" / "out"
    arguments = ["--weights", weights[1], "--image", tmp_path / "image.png", "--features", "none", "--out", out]
    code, _, error = run(capsys, "project", *arguments)
    assert (code, error) == (2, f"pggan-fast: error: --out {out}: cannot be made (Not a directory)\n")
