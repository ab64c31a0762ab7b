"""Latents from files and along principal directions, for `generate` and `interpolate`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pggan_fast import Generator
from pggan_fast.cli import main
from pggan_fast.generation.directions import principal_directions
from pggan_fast.generation.editing import parse_moves
from pggan_fast.generation.images import GenerateConfig, generate_images
from pggan_fast.generation.interpolation import walk
from pggan_fast.interop.weights import save_weights
from pggan_fast.networks.sampling import generate, latents
from pggan_fast.utils.errors import UserError

MOVE_FORM = "must be K:X,... with each direction K, from 1 on, once, and a distance X of at most 1e+06"


def saved(folder, label_dim):
    torch.manual_seed(0)
    G = Generator(8, fmap_max=8, label_dim=label_dim).eval().requires_grad_(False)
    metadata = {"options": G.options, "classes": ["a", "b", "c"][:label_dim], "images": 0}
    folder.mkdir()
    save_weights(folder / "G.safetensors", G, {**metadata, "resolution": 8, "alpha": 1.0})
    return G, folder / "G.safetensors"


@pytest.fixture
def conditional(tmp_path):
    """A generator of three classes and its weights file."""
    return saved(tmp_path / "conditional", 3)


@pytest.fixture
def plain(tmp_path):
    """A generator without classes and its weights file."""
    return saved(tmp_path / "plain", 0)


def run(capsys, *arguments):
    code = main([*map(str, arguments), "--device", "cpu"])
    return code, *capsys.readouterr()


def pixels(path):
    return np.asarray(Image.open(path))


def test_a_projected_latent_is_generated_again_and_moved(conditional, tmp_path, capsys):
    """From `project` to an edited image by commands alone, with the class that was found."""
    G, weights = conditional
    target = tmp_path / "target.png"
    Image.fromarray(generate(G, latents(G, 1, 9), torch.tensor([1]))[0]).save(target)
    options = ["--features", "none", "--steps", 30, "--candidates", 16, "--label", "b"]
    found = tmp_path / "found"
    assert run(capsys, "project", "--weights", weights, "--image", target, "--out", found, *options)[0] == 0
    latent = found / "latent.npy"

    same = ["generate", "--weights", weights, "--latents", latent, "--out", tmp_path / "same"]
    code, told, _ = run(capsys, *same)
    assert code == 0 and "1 written" in told
    assert np.array_equal(pixels(tmp_path / "same/latent000000.png"), pixels(found / "reconstruction.png"))

    moved = ["generate", "--weights", weights, "--latents", latent, "--move", "2:1.5,1:-3", "--out", tmp_path / "moved"]
    assert run(capsys, *moved)[0] == 0
    first, second = principal_directions(G, 2)
    z = torch.from_numpy(np.load(latent)) + 1.5 * second - 3 * first
    image = pixels(tmp_path / "moved/latent000000.png")
    assert np.array_equal(image, generate(G, z[None], torch.tensor([1]))[0])
    assert not np.array_equal(image, pixels(found / "reconstruction.png"))


def test_several_files_several_latents_and_a_class_for_all(conditional, tmp_path):
    G, weights = conditional
    z = torch.cat([latents(G, 1, seed) for seed in range(20)]).numpy()
    np.save(tmp_path / "many.npy", np.asfortranarray(z[:19].astype(np.float64)))
    np.save(tmp_path / "one.npy", z[19])
    files = f"{tmp_path / 'many.npy'},{tmp_path / 'one.npy'}"
    settings = {"weights": weights, "latents": files, "label": "c", "device": "cpu"}
    paths = generate_images(GenerateConfig(out=tmp_path / "out", batch_size=6, **settings))
    assert [path.name for path in paths[::19]] == ["latent000000.png", "latent000019.png"]
    expected = np.concatenate([generate(G, torch.from_numpy(part), torch.full((len(part),), 2)) for part in (z,)])
    # Sums of a batch of another size may round to the level beside.
    assert np.abs(np.stack([pixels(path) for path in paths]).astype(int) - expected).max() <= 1
    (grid,) = generate_images(GenerateConfig(out=tmp_path / "grid", grid=True, **settings))
    assert pixels(grid).any()


def test_seeds_are_moved_too(plain, tmp_path):
    G, weights = plain
    settings = {"weights": weights, "count": 1, "seed": 4, "move": "1:2", "device": "cpu"}
    (path,) = generate_images(GenerateConfig(out=tmp_path / "out", **settings))
    assert np.array_equal(pixels(path), generate(G, latents(G, 1, 4) + 2 * principal_directions(G, 1), None)[0])


def test_a_walk_between_latents_of_files(plain, tmp_path, capsys):
    G, weights = plain
    keys = torch.cat([latents(G, 1, seed) for seed in (3, 8)])
    for name, z in zip("ab", keys.numpy(), strict=True):
        np.save(tmp_path / f"{name}.npy", z)
    files = f"{tmp_path / 'a.npy'},{tmp_path / 'b.npy'}"
    out = tmp_path / "walk.gif"
    code, _, error = run(
        capsys, "interpolate", "--weights", weights, "--latents", files, "--frames", 3, "--fps", 10, "--out", out
    )
    assert (code, error) == (0, "")
    with Image.open(out) as video:
        assert video.n_frames == len(walk(keys, 3)) == 6
    code, _, error = run(
        capsys, "interpolate", "--weights", weights, "--latents", tmp_path / "a.npy", "--out", tmp_path / "w.gif"
    )
    assert code == 2 and error.endswith("a.npy: one latent, must be two or more to walk between\n")


def test_a_walk_of_two_classes_needs_one(conditional, tmp_path, capsys):
    G, weights = conditional
    for name, label in (("x", "a"), ("y", "b")):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "latent.npy", latents(G, 1, 0)[0].numpy())
        (tmp_path / name / "projection.json").write_text(json.dumps({"label": label}))
    files = f"{tmp_path / 'x/latent.npy'},{tmp_path / 'y/latent.npy'}"
    command = ["interpolate", "--weights", weights, "--latents", files, "--frames", 1, "--fps", 10]
    code, _, error = run(capsys, *command, "--out", tmp_path / "w.gif")
    assert code == 2 and "are of several classes; give --label CLASS for the whole walk" in error
    assert run(capsys, *command, "--out", tmp_path / "w.gif", "--label", "c")[0] == 0


def test_a_walk_through_zeros_is_finite():
    assert walk(torch.stack([torch.zeros(4), torch.ones(4)]), 3).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--latents", "missing.npy"], "--latents missing.npy: cannot be read (No such file or directory)"),
        (["--latents", "text.npy"], "--latents text.npy: cannot be read (no .npy file or a damaged one"),
        (["--latents", "."], "--latents .: cannot be read (is a folder, must be a file)"),
        (["--latents", "short.npy"], "--latents short.npy: float32 of shape 5, must be numbers of shape 8 or Nx8"),
        (["--latents", "scalar.npy"], "--latents scalar.npy: float32 of shape none, must be"),
        (["--latents", "bool.npy"], "--latents bool.npy: bool of shape 8, must be numbers of shape 8 or Nx8"),
        (["--latents", "nan.npy"], "--latents nan.npy: must be finite numbers"),
        (["--latents", "large.npy"], "--latents large.npy: must be finite numbers"),
        (["--latents", "none.npy"], "--latents none.npy: holds no latents"),
        (["--latents", "object.npy"], "--latents object.npy: cannot be read (an array of Python objects"),
        (["--latents", "good.npy,", "--label", "a"], "--latents good.npy,: must be paths"),
        (["--latents", "good.npy"], "--latents good.npy: has no projection.json beside it that names a class; give"),
        (["--latents", "other/good.npy"], "other/projection.json: its class is another generator's (--label cat: must"),
        (["--latents", "bad/good.npy"], "bad/projection.json: is damaged ("),
        (["--latents", "good.npy", "--label", "d"], "--label d: must be 0 to 2 or one of: a, b, c"),
        (["--latents", "good.npy", "--seed", "3"], "--seed 3: not with --latents"),
        (["--latents", "good.npy", "--count", "3"], "--count 3: not with --latents"),
        (["--latents", "good.npy", "--truncation", "1"], "--truncation 1.0: not with --latents"),
        (["--move", "9:1"], "--move 9:1: direction 9, this generator has 8"),
        *((["--move", text], f"--move {text}: {MOVE_FORM}") for text in ("", "1", "0:1", "1:1,1:2", "1:nan", "a:1")),
    ],
)
def test_mistakes_are_one_line(conditional, tmp_path, monkeypatch, capsys, changes, message):
    monkeypatch.chdir(tmp_path)
    good = np.ones(8, np.float32)
    arrays = {
        "short": good[:5],
        "scalar": good[0],
        "bool": good > 0,
        "nan": good * np.nan,
        "none": good[:0].reshape(0, 8),
    }
    arrays |= {"good": good, "large": np.full(8, 1e300)}
    for name, array in arrays.items():
        np.save(f"{name}.npy", array)
    np.save("object.npy", np.array([{}] * 8), allow_pickle=True)
    (tmp_path / "text.npy").write_text("text")
    for folder, label in (("other", "cat"), ("bad", [1])):
        (tmp_path / folder).mkdir()
        np.save(f"{folder}/good.npy", good)
        (tmp_path / folder / "projection.json").write_text(json.dumps({"label": label}))
    code, _, error = run(capsys, "generate", "--weights", conditional[1], "--out", "out", *changes)
    assert code == 2 and error.startswith(f"pggan-fast: error: {message}") and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_a_generator_without_classes_refuses_one(plain, tmp_path):
    np.save(tmp_path / "z.npy", np.ones(8, np.float32))
    with pytest.raises(UserError, match="--label a: this generator was trained without labels"):
        settings = {"weights": plain[1], "latents": str(tmp_path / "z.npy"), "label": "a", "device": "cpu"}
        generate_images(GenerateConfig(out=tmp_path / "out", **settings))


def test_moves():
    assert parse_moves(" 3:-1.5, 1:2") == {3: -1.5, 1: 2.0}
