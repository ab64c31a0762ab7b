"""Images by seed: the same whatever else is asked for, written one by one, with advice when memory runs out."""

import pytest
import torch

from pggan_fast import Generator
from pggan_fast.cli import main
from pggan_fast.generation import images as module
from pggan_fast.generation.images import GenerateConfig, generate_images
from pggan_fast.generation.interpolation import InterpolateConfig, interpolate
from pggan_fast.interop.weights import save_weights
from pggan_fast.utils.errors import UserError


@pytest.fixture
def weights(tmp_path):
    """Two generators of three classes."""
    paths = []
    for index in range(2):
        torch.manual_seed(index)
        G = Generator(8, fmap_max=8, label_dim=3)
        metadata = {"options": G.options, "classes": ["a", "b", "c"], "images": 0, "resolution": 8, "alpha": 1.0}
        paths.append(tmp_path / f"{index}.safetensors")
        save_weights(paths[-1], G, metadata)
    return paths


@pytest.mark.parametrize("ensemble", [False, True])
def test_a_seed_gives_one_image_wherever_it_stands(weights, tmp_path, ensemble):
    settings = dict(weights=weights[0], ensemble=str(weights[1]) if ensemble else None, device="cpu")
    generate_images(GenerateConfig(out=tmp_path / "all", count=20, **settings))
    for seed in (1, 5, 16):
        (path,) = generate_images(GenerateConfig(out=tmp_path / str(seed), seed=seed, count=1, **settings))
        assert path.read_bytes() == (tmp_path / "all" / path.name).read_bytes()


def test_a_walk_has_one_class_wherever_it_stands(weights, tmp_path):
    settings = dict(weights=weights[0], keys=2, frames=2, fps=10, device="cpu")
    alone = interpolate(InterpolateConfig(out=tmp_path / "alone.gif", seed=2, **settings))
    as_label = interpolate(InterpolateConfig(out=tmp_path / "b.gif", seed=2, label="b", **settings))
    other = interpolate(InterpolateConfig(out=tmp_path / "c.gif", seed=2, label="c", **settings))
    # The second of the walks from seed 0 has the second class.
    assert alone.read_bytes() == as_label.read_bytes() != other.read_bytes()


def test_images_are_written_as_they_are_generated(weights, tmp_path, monkeypatch, capsys):
    calls = 0
    original = module.generate

    def stops_at_the_third(*arguments, **settings):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    monkeypatch.setattr(module, "generate", stops_at_the_third)
    arguments = ["generate", "--weights", weights[0], "--out", tmp_path / "out", "--count", 50000, "--batch-size", 4]
    assert main([*map(str, arguments), "--device", "cpu"]) == 130
    assert "interrupted, 8 of 50,000 images written" in capsys.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 8


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 GB")]
)
def test_memory_that_runs_out_ends_in_advice(weights, tmp_path, monkeypatch, error):
    def runs_out(*_, **__):
        raise error

    monkeypatch.setattr(module, "generate", runs_out)
    monkeypatch.setattr("pggan_fast.generation.interpolation.generate", runs_out)
    with pytest.raises(UserError, match="^out of memory .*--batch-size N below 16"):
        generate_images(GenerateConfig(out=tmp_path / "out", weights=weights[0], device="cpu"))
    with pytest.raises(UserError, match="^out of memory .*--count"):
        interpolate(InterpolateConfig(out=tmp_path / "a.gif", weights=weights[0], device="cpu"))
    assert not (tmp_path / "a.gif").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "--count 0"),
        ({"count": 10**12}, "--count 1000000000000"),
        ({"seed": 2**63}, "--seed 9223372036854775808"),
        ({"truncation": float("nan")}, "--truncation nan"),
        ({"truncation": float("inf")}, "--truncation inf"),
        ({"batch_size": 0}, "--batch-size 0"),
    ],
)
def test_settings_out_of_bounds(weights, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        GenerateConfig(out=tmp_path / "out", weights=weights[0], **settings)
