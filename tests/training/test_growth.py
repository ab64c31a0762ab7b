"""Presets, growing on, fine-tuning, training without growth, and images that are not square."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pggan_fast import Discriminator
from pggan_fast.cli import main
from pggan_fast.interop.weights import load_generator
from pggan_fast.training import DatasetWriter, RunFolder, Schedule, TrainConfig, UserError, train
from pggan_fast.training.presets import PRESETS

TINY = {
    "stable_kimg": 0.032,
    "transition_kimg": 0.032,
    "batch_size": {4: 8},
    "fmap_base": 32,
    "fmap_max": 8,
    "tick_kimg": 0.016,
    "device": "cpu",
    "tensorboard": False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("growth") / "data")


def write_data(path, base=(4, 4), channels=3):
    with DatasetWriter(path, resolution=16, channels=channels, classes=["a", "b"], base=base) as writer:
        for index in range(20):
            shape = (channels, 4 * base[0], 4 * base[1])
            image = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
            writer.add(image, index % 2, f"{index}.png")
        writer.commit()
    return path


@pytest.fixture(scope="module")
def small(data, tmp_path_factory):
    """A finished run at 8 px."""
    out = tmp_path_factory.mktemp("growth") / "small"
    assert train(RunFolder.create(TrainConfig(data=data, out=out, resolution=8, **TINY)))
    return out


def stats(run):
    return [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]


def fails(capsys, *arguments):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    ("name", "total", "stages"),
    [
        # Resolution: batch size, learning rate; the official tables for one and for eight GPUs.
        (
            "paper-1gpu",
            12_000_000,
            {4: (128, 1e-3), 16: (128, 1e-3), 32: (64, 1e-3), 64: (32, 1e-3), 128: (16, 1e-3), 256: (8, 1e-3)}
            | {512: (4, 1e-3), 1024: (4, 1.5e-3)},
        ),
        (
            "paper-8gpu",
            12_000_000,
            {4: (512, 1e-3), 8: (256, 1e-3), 16: (128, 1e-3), 32: (64, 1e-3), 64: (32, 1e-3), 128: (32, 1.5e-3)}
            | {256: (32, 2e-3), 512: (32, 3e-3), 1024: (32, 3e-3)},
        ),
    ],
)
def test_presets_are_the_official_settings(tmp_path, name, total, stages):
    config = TrainConfig(data=tmp_path, out=tmp_path, resolution=1024, **PRESETS[name])
    assert (config.fmap_base, config.fmap_max, config.ema_decay, config.precision) == (8192, 512, 0.999, "fp32")
    schedule = config.schedule()
    assert schedule.total_images == total
    for number, resolution in enumerate([4 << step for step in range(9)]):
        stage = schedule.at(600_000 + 1_200_000 * number - 1)
        assert (stage.resolution, stage.alpha) == (resolution, 1.0)
        if resolution in stages:
            assert (stage.batch_size, stage.learning_rate) == stages[resolution]


def test_a_preset_on_the_command_line(data, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = [
        "train",
        "--data",
        data,
        "--out",
        run,
        "--preset",
        "cpu-small",
        "--fmap-max",
        "8",
        "--total-kimg",
        "0.1",
    ]
    assert main([str(argument) for argument in arguments]) == 0
    settings = json.loads((run / "config.json").read_text())["settings"]
    assert (settings["fmap_base"], settings["fmap_max"], settings["stable_kimg"]) == (1024, 8, 16.0)
    assert "--preset huge: must be one of paper-1gpu," in fails(capsys, *arguments[:5], "--preset", "huge")
    assert "--preset cpu-small: cannot be with --resume" in fails(
        capsys, "train", "--resume", run, "--preset", "cpu-small"
    )


def test_without_growth_the_full_size_sees_as_many_images(data, tmp_path):
    out = tmp_path / "run"
    assert train(RunFolder.create(TrainConfig(data=data, out=out, progressive=False, **TINY)))
    lines = stats(out)
    assert {(line["resolution"], line["alpha"]) for line in lines} == {(16, 1.0)}
    assert lines[-1]["images"] == Schedule(16, stable_images=32, transition_images=32).total_images


def test_a_finished_run_grows_on(small, data, tmp_path, capsys):
    out = tmp_path / "grown"
    arguments = ["train", "--grow-from", small, "--resolution", "16", "--out", out, "--total-kimg", "0.064"]
    assert main([str(argument) for argument in arguments]) == 0
    assert "generator at 16 px is new" in capsys.readouterr().out
    lines = stats(out)
    # Straight into the transition: the old resolution has had its stable phase.
    assert [(line["resolution"], line["alpha"] < 1) for line in lines] == [
        (16, True),
        (16, True),
        (16, False),
        (16, False),
    ]
    settings = json.loads((out / "config.json").read_text())["settings"]
    assert (settings["fmap_max"], settings["data"]) == (8, str(data))
    G, metadata = load_generator(out / "final" / "generator.safetensors")
    assert (G.resolution, metadata["resolution"]) == (16, 16)


def test_growing_on_begins_with_the_same_images(small, data, tmp_path, monkeypatch):
    """At the first step, the larger networks generate what the smaller ones did last."""
    from pggan_fast.training import trainer

    outputs = {}

    class Watched(trainer.TrainStep):
        def __call__(self, real, labels=None, *, alpha=1.0):
            if not outputs:
                z = torch.randn(4, self.G.latent_dim, generator=torch.Generator().manual_seed(0))
                outputs["G"] = self.G_ema(z, resolution=8)
                outputs["D"] = self.D(torch.ones(4, 3, 8, 8))[0]
            return super().__call__(real, labels, alpha=alpha)

    monkeypatch.setattr(trainer, "TrainStep", Watched)
    config = TrainConfig(data=data, out=tmp_path / "run", init_from=small, start_resolution=8, total_kimg=0.016, **TINY)
    assert train(RunFolder.create(config))
    before, _ = load_generator(small / "final" / "generator.safetensors")
    z = torch.randn(4, before.latent_dim, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(before(z, resolution=8), outputs["G"], atol=1e-5)  # convolutions of another memory format
    D = Discriminator(8, fmap_base=32, fmap_max=8)
    D.load_state_dict(load_file(small / "final" / "discriminator.safetensors"))
    assert torch.allclose(D(torch.ones(4, 3, 8, 8))[0], outputs["D"], atol=1e-5)


@pytest.mark.parametrize("source", ["run", "final", "generator alone"])
def test_fine_tuning(small, data, tmp_path, source, capsys):
    """From a run, from its weights, and from a generator without its discriminator; at a lower resolution, too."""
    path = small
    if source != "run":
        path = tmp_path / "generator.safetensors"
        path.write_bytes((small / "final" / "generator.safetensors").read_bytes())
    if source == "final":
        (tmp_path / "discriminator.safetensors").write_bytes(
            (small / "final" / "discriminator.safetensors").read_bytes()
        )
    out = tmp_path / "tuned"
    # No step changes anything much with these.
    still = {"learning_rate": {4: 1e-9}, "ema_decay": 1 - 1e-9}
    config = TrainConfig(data=data, out=out, init_from=path, resolution=4, total_kimg=0.016, **still, **TINY)
    assert train(RunFolder.create(config))
    for name in ("generator", "discriminator"):
        found, before = (load_file(folder / "final" / f"{name}.safetensors") for folder in (out, small))
        alike = all(torch.allclose(value, before[key], atol=1e-6) for key, value in found.items())
        assert alike == (name == "generator" or source != "generator alone")
    assert ("has no discriminator" in capsys.readouterr().out) == (source == "generator alone")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"slope": 0.1}, "is of a network with slope=0.2, this run has 0.1"),
        ({"use_wscale": False}, "is of a network with use_wscale=True, this run has False"),
        ({"mbstd_group_size": 2}, "is of a network with mbstd_group_size=4, this run has 2"),
        ({"init_from": "nowhere"}, "is neither a run with weights nor a .safetensors file"),
        ({"fmap_max": 4}, "this run needs"),
        ({"labels": True}, "this run needs"),
    ],
)
def test_weights_that_do_not_fit(small, data, tmp_path, settings, words):
    settings = {**TINY, "init_from": small, **settings}
    if isinstance(settings["init_from"], str):
        settings["init_from"] = tmp_path / settings["init_from"]
    with pytest.raises(UserError, match=words) as error:
        train(RunFolder.create(TrainConfig(data=data, out=tmp_path / "run", **settings)))
    assert "--init-from" in str(error.value) and "\n" not in str(error.value)


def test_mistakes_about_growing_on(small, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert "--resolution is missing: " in fails(capsys, "train", "--grow-from", small, "--out", out)
    message = fails(capsys, "train", "--grow-from", small, "--out", out, "--resolution", "8")
    assert f"--resolution 8: must be above the 8 of --grow-from {small}" in message
    assert "holds no finished run" in fails(capsys, "train", "--grow-from", data, "--out", out, "--resolution", "16")
    assert "the data in" in fails(capsys, "train", "--grow-from", small, "--out", out, "--resolution", "32")
    assert f"a new run can --grow-from {small}" in fails(capsys, "train", "--resume", small, "--resolution", "16")
    assert "only one of them" in fails(capsys, "train", "--grow-from", small, "--resume", small)
    assert not out.exists()


@pytest.mark.parametrize(("base", "channels"), [((4, 6), 3), ((8, 4), 1), ((4, 4), 2), ((4, 4), 4)])
def test_images_of_other_shapes(tmp_path, base, channels):
    data = write_data(tmp_path / "data", base, channels)
    out = tmp_path / "run"
    assert train(RunFolder.create(TrainConfig(data=data, out=out, total_kimg=0.16, **TINY)))
    G, _ = load_generator(out / "final" / "generator.safetensors")
    assert G(torch.zeros(1, G.latent_dim)).shape == (1, channels, 4 * base[0], 4 * base[1])
    sizes = {Image.open(image).size for image in (out / "samples").iterdir()}
    assert len(sizes) == 1  # at every stage
    arguments = ["generate", "--run", out, "--out", tmp_path / "generated", "--count", "1"]
    assert main([str(argument) for argument in arguments]) == 0
    with Image.open(tmp_path / "generated" / "seed000000.png") as image:
        assert image.size == (4 * base[1], 4 * base[0])
        assert len(image.getbands()) == channels
