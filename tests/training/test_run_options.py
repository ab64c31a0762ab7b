"""Whole runs with options beyond the paper's: they reach the step, train, resume bit for bit, and generate."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pggan_fast.generation.images import GenerateConfig, generate_images
from pggan_fast.interop.weights import load_generator
from pggan_fast.networks import AutoencoderDiscriminator
from pggan_fast.training import DatasetWriter, RunFolder, UserError, train
from pggan_fast.training.checkpoint import checkpoints, load_checkpoint
from tests.training.runs import assert_same, config, stats, without_times, write_data

RUNS = {
    "projection": dict(
        labels=True,
        label_mode="projection",
        attention_at=8,
        residual=True,
        spectral_norm="both",
        minibatch_discrimination=True,
        objective="hinge",
        r1_weight=1.0,
        augment="ada",
        augment_kimg=1.0,
        d_steps=2,
        d_learning_rate_factor=4.0,
    ),
    "concat": dict(labels=True, label_mode="concat", objective="wgan", d_steps=2, augment="diffaugment"),
    "ebgan": dict(objective="ebgan", precision="bf16"),
    "modern": dict(
        objective="relativistic",
        labels=True,
        label_weight=0.5,
        g_label_weight=0.25,
        r1_weight="cosine:2:0.2:0.2",
        r2_weight="linear:1:0.1:0.2",
        penalty_every=3,
        penalty_on="raw",
        augment="ada",
        augment_p="linear:0:0.5:0.2",
        learning_rate="cosine:2e-3:5e-4:0.2",
        adam_beta1=0.1,
        adam_beta2="cosine:0.9:0.99:0.2",
        ema_half_life_kimg="linear:0:0.05:0.2",
        ema_ramp=0.5,
        minibatch_repeats=4,
        reset_optimizers=False,
    ),
    "official": dict(
        adam_beta1=0.5,
        adam_eps=1e-4,
        adam_eps_place="uncorrected",
        minibatch_repeats=4,
        ema_half_life_kimg=0.02,
        penalty_every=2,
        fmap_decay=0.5,
        slope=0.1,
        pixel_norm_eps=1e-4,
        normalize_latents=False,
        use_wscale=False,
        fused_scale=False,
        mbstd_group_size=2,
        learning_rate={4: 1e-4},
    ),
}


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Tensors are tiny: a second thread gains nothing, and on a busy machine it is waited for."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("prepared") / "data")


@pytest.mark.parametrize("name", RUNS)
def test_runs_train_and_resume_bit_for_bit(name, data, tmp_path):
    settings = dict(RUNS[name], tick_kimg=0.016, sample_kimg=0.128)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert train(RunFolder.create(config(data, straight, **settings)))
    # In the middle of the first transition
    assert train(RunFolder.create(config(data, stopped, total_kimg=0.096, **settings)))
    assert train(RunFolder.open(stopped, {"total_kimg": 0.240}))

    found, expected = (load_checkpoint(checkpoints(run / "checkpoints")[-1]) for run in (stopped, straight))
    assert_same(found["step"], expected["step"])
    assert without_times(stats(stopped)) == without_times(stats(straight))
    lines = stats(straight)
    assert all(np.isfinite([line["d_loss"], line["g_loss"]]).all() for line in lines)
    if name == "projection":
        assert {"overfitting", "augment_p", "real_gradient_norm"} < lines[-1].keys()
        assert "augment" in expected["step"]
        d_rate, g_rate = (expected["step"][f"optimizer_{n}"]["param_groups"][0]["lr"] for n in "DG")
        assert d_rate == 4 * g_rate
    if name == "modern":
        curves = {"beta2", "r1_weight", "r2_weight", "augment_p", "ema_decay", "penalty", "fake_gradient_norm"}
        assert curves < lines[-1].keys() and "overfitting" not in lines[-1]
        assert lines[0]["r1_weight"] > lines[-1]["r1_weight"] > 0.2 or lines[-1]["r1_weight"] == 0.2
        assert "exp_avg" in next(iter(expected["step"]["optimizer_D"]["state"].values()))
        report = (straight / "report.html").read_text()
        for title in (
            "norms of D&#x27;s gradient at reals and at fakes",
            "penalty",
            "beta2",
            "r2_weight",
            "learning_rate",
        ):
            assert f">{title}<" in report, title
        counts = expected["stats"]["counts"] or {"penalty": 0}
        assert counts["penalty"] <= counts.get("d_loss", 0)
    if settings.get("d_steps") == 2:
        steps = [max(s["step"] for s in expected["step"][f"optimizer_{n}"]["state"].values()) for n in "DG"]
        assert steps[0] == 2 * steps[1]
    paths = generate_images(GenerateConfig(out=tmp_path / "images", run=straight, count=2, device="cpu"))
    assert [Image.open(path).size for path in paths] == [(16, 16)] * 2
    if name == "ebgan":
        names = set(load_file(straight / "final" / "discriminator.safetensors"))
        assert names == set(AutoencoderDiscriminator(16, fmap_base=64, fmap_max=8).state_dict())


def test_a_batch_for_each_step_of_d_counts(data, tmp_path):
    settings = dict(d_steps=3, total_kimg=0.096, tick_kimg=0.048, stable_kimg=0.096)
    train(RunFolder.create(config(data, tmp_path / "run", **settings)))
    state = load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    assert state["images"] == state["batches"]["position"] == 96
    # Batches of 16 at 4 px
    assert all(s["step"] == 2 for s in state["step"]["optimizer_G"]["state"].values())
    assert all(s["step"] == 6 for s in state["step"]["optimizer_D"]["state"].values())


@pytest.mark.parametrize("channels", [1, 4])
def test_wide_images_train_and_generate(channels, tmp_path):
    random = np.random.default_rng(0)
    with DatasetWriter(tmp_path / "data", resolution=16, channels=channels, classes=[], base=(4, 6)) as writer:
        for index in range(20):
            writer.add(random.integers(0, 256, (channels, 16, 24), dtype=np.uint8), 0, f"{index}.png")
        writer.commit()
    run = tmp_path / "run"
    assert train(RunFolder.create(config(tmp_path / "data", run, augment="ada")))
    (path,) = generate_images(GenerateConfig(out=tmp_path / "images", run=run, count=1, device="cpu"))
    with Image.open(path) as image:
        assert image.size == (24, 16) and image.mode == {1: "L", 4: "RGBA"}[channels]


# Truncation and ensembles


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train(RunFolder.create(config(data, folder / str(seed), seed=seed, total_kimg=0.096, labels=True)))
    return folder


def generated(out, **settings) -> list[np.ndarray]:
    images = []
    for path in generate_images(GenerateConfig(out=out, device="cpu", **settings)):
        with Image.open(path) as image:
            images.append(np.asarray(image))
    return images


def test_truncation(runs, tmp_path, monkeypatch):
    G, _ = load_generator(runs / "0" / "final" / "generator.safetensors")
    plain = generated(tmp_path / "plain", run=runs / "0", count=3)
    wide = generated(tmp_path / "wide", run=runs / "0", count=3, truncation=0.5)
    again = generated(tmp_path / "again", run=runs / "0", count=1, seed=2, truncation=0.5)
    assert not np.array_equal(plain, wide) and np.array_equal(wide[2], again[0])
    seen = []
    monkeypatch.setattr(
        "pggan_fast.generation.images.generate", lambda G, z, *_, **__: seen.append(z) or [plain[0]] * len(z)
    )
    generated(tmp_path / "many", run=runs / "0", count=200, truncation=0.5)
    z = torch.cat(seen)
    assert z.abs().max() <= 0.5
    # Of a normal distribution cut off at half a deviation: a deviation of 0.284, measured on 1,600 numbers.
    assert z.std() == pytest.approx(0.284, abs=0.02) and abs(z.mean()) < 0.03


def test_an_ensemble_generates_in_turn(runs, tmp_path):
    first, second = (generated(tmp_path / f"only{i}", run=runs / str(i), count=8) for i in (0, 1))
    members = f"{runs / '1' / 'final' / 'generator.safetensors'}"
    both = generated(tmp_path / "both", run=runs / "0", count=8, ensemble=members)
    # Two classes: each generator makes both of them before the other's turn.
    for seed in range(8):
        assert np.array_equal(both[seed], (first, second)[seed // 2 % 2][seed])
    (grid,) = generated(tmp_path / "grid", run=runs / "0", count=8, ensemble=members, grid=True)
    assert grid.ndim == 3


def test_what_an_ensemble_refuses(runs, data, tmp_path):
    other = tmp_path / "other"
    train(RunFolder.create(dataclasses.replace(config(data, other, total_kimg=0.096), labels=False)))
    with pytest.raises(UserError, match="classes differ between the generators"):
        generated(tmp_path / "images", run=runs / "0", ensemble=str(other))
    with pytest.raises(UserError, match="holds no run"):
        generated(tmp_path / "images", run=runs / "0", ensemble=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="--truncation 0.0: must be above 0"):
        GenerateConfig(out=tmp_path, run=other, truncation=0.0)
