"""R3GAN's networks in TrainStep and in every command: trained, resumed, generated from, evaluated and exported."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F

from bench.baseline import r3gan as plain
from pggan_fast.cli import main
from pggan_fast.networks import R3ganDiscriminator, R3ganGenerator
from pggan_fast.training import RunFolder, TrainConfig, TrainStep, UserError, train
from pggan_fast.training.build import build_networks
from pggan_fast.training.checkpoint import checkpoints
from pggan_fast.training.losses import NonSaturating, Relativistic
from tests.training.runs import SETTINGS, assert_same, config, stats, without_times, write_data

SMALL = dict(fmap_base=128, fmap_max=32, group_channels=8)
WIDTHS, GROUPS = [32, 32, 16], [8, 8, 4]
RUN = dict(network="r3gan", fmap_base=64, fmap_max=16, group_channels=8, blocks=1, latent_dim=8, total_kimg=0.064)


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def filled(network: type, label_dim: int) -> torch.nn.Module:
    """With nothing at 0, so that every gradient is of its own."""
    net = network(16, label_dim=label_dim, **SMALL)
    for parameter in net.parameters():
        if parameter.ndim == 4 and not parameter.any():
            parameter.data.normal_(0, 0.2)
    return net


@pytest.mark.parametrize("label_dim", [0, 3])
def test_a_step_is_that_of_plain_pytorch(double, label_dim):
    """D by relativistic pairs, R1 and R2, the average, G: the paper's, twice, so that Adam's state is used."""
    torch.manual_seed(0)
    G, D = filled(R3ganGenerator, label_dim), filled(R3ganDiscriminator, label_dim)
    theirs_G = plain.Generator(WIDTHS, GROUPS, label_dim=label_dim)
    theirs_D = plain.Discriminator(WIDTHS, GROUPS, label_dim=label_dim)
    theirs_G.load_state_dict(G.state_dict(), strict=True)
    theirs_D.load_state_dict(D.state_dict(), strict=True)
    average = copy.deepcopy(theirs_G)
    step = TrainStep(G, D, objective=Relativistic(r1_weight=0.5, r2_weight=0.5), learning_rate=1e-3)
    adam = dict(lr=1e-3, betas=(0.0, 0.99), eps=1e-8)
    optimizer_G = torch.optim.Adam(theirs_G.parameters(), **adam)
    optimizer_D = torch.optim.Adam(theirs_D.parameters(), **adam)
    real, labels = torch.randn(6, 3, 16, 16).clamp(-1, 1), torch.arange(6) % 3 if label_dim else None
    one_hot = F.one_hot(labels, label_dim).double() if label_dim else None
    for seed in (1, 2):
        torch.manual_seed(seed)
        found = step(real, labels)

        torch.manual_seed(seed)
        z, _ = torch.randn(6, 64), torch.rand(6, 1, 1, 1)
        d_loss = plain.d_loss(theirs_D, real, theirs_G(z, one_hot).detach(), one_hot, gamma=0.5)
        optimizer_D.zero_grad()
        d_loss.backward()
        optimizer_D.step()
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), theirs_G.parameters(), strict=True):
                mean.lerp_(weight, 1 - 0.999)
        g_loss = plain.g_loss(theirs_D, real, theirs_G(torch.randn(6, 64), one_hot), one_hot)
        optimizer_G.zero_grad()
        g_loss.backward()
        optimizer_G.step()
        # Sums over thousands of terms that cancel, in another order. Adam divides by the gradient's own size:
        # where that is near rounding, so is what it adds to a weight, up to a small part of the learning rate.
        torch.testing.assert_close(found["d_loss"], d_loss.detach(), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(found["g_loss"], g_loss.detach(), rtol=1e-9, atol=1e-10)
        pairs = ((step.G, theirs_G), (step.D, theirs_D), (step.G_ema, average))
        for ours, theirs in pairs:
            torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [{"precision": "bf16"}, {"precision": "fp16"}, {"micro_batch": 2}, {"augment": "diffaugment"}, {"d_steps": 2}],
    ids=str,
)
def test_other_ways_to_step(options):
    torch.manual_seed(0)
    G, D = R3ganGenerator(16, **SMALL), R3ganDiscriminator(16, **SMALL)
    before = [p.clone() for p in D.parameters()]
    scalars = TrainStep(G, D, objective=NonSaturating(r1_weight=0.1), **options)(torch.rand(4, 3, 16, 16))
    assert scalars["skipped"] == 0 and all(value.isfinite() for value in scalars.values())
    # The first two layers of a block get no gradient in the first step: its last layer is 0.
    assert sum(not torch.equal(p, b) for p, b in zip(D.parameters(), before, strict=True)) > 5


def test_checkpointed_steps_are_the_same():
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        G, D = R3ganGenerator(16, **SMALL), R3ganDiscriminator(16, **SMALL)
        step = TrainStep(G, D, objective=NonSaturating(r1_weight=0.1), activation_checkpointing=checkpointing)
        torch.manual_seed(1)
        step(torch.rand(4, 3, 16, 16))
        assert step.D.activation_checkpointing is checkpointing
        results.append(step.D.state_dict())
    torch.testing.assert_close(*results)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run by the command line, with labels, to its end."""
    out = tmp_path_factory.mktemp("runs") / "run"
    options = "--network r3gan --labels --objective non-saturating --r1-weight 0.1 --blocks 1 --latent-dim 8"
    settings = "--fmap-base 64 --fmap-max 16 --group-channels 8 --batch-size 8 --total-kimg 0.064 --tick-kimg 0.016"
    others = "--checkpoint-kimg 0.032 --sample-kimg 0.032 --device cpu --no-tensorboard"
    assert main(["train", "--data", str(data), "--out", str(out), *f"{options} {settings} {others}".split()]) == 0
    return out


def test_a_run_trains_at_full_size_from_the_first_image(run):
    lines = stats(run)
    assert lines[-1]["images"] == 64 and {line["resolution"] for line in lines} == {16}
    described = json.loads((run / "final" / "generator.json").read_text())
    assert described["options"]["network"] == "r3gan" and described["options"]["label_dim"] == 2
    assert "r3gan" in (run / "config.json").read_text()


def test_a_run_resumes_bit_for_bit(data, tmp_path):
    settings = {**RUN, "objective": "non-saturating", "r1_weight": 0.1, "checkpoint_kimg": 0.032, "stable_kimg": 0.05}
    whole = config(data, tmp_path / "whole", **settings)
    assert train(RunFolder.create(whole))
    half = config(data, tmp_path / "half", **settings)
    folder = RunFolder.create(half)
    assert train(folder)
    newest = checkpoints(half.out / "checkpoints")[-1]
    newest.unlink()
    assert checkpoints(half.out / "checkpoints")[-1].stem == "000000032"
    assert main(["train", "--resume", str(half.out)]) == 0
    states = [torch.load(checkpoints(c.out / "checkpoints")[-1], weights_only=True) for c in (whole, half)]
    assert_same(states[0]["step"], states[1]["step"])
    assert without_times(stats(whole.out)) == without_times(stats(half.out))


def test_the_other_commands(run, tmp_path, capsys):
    weights = str(run / "final" / "generator.safetensors")
    assert main(["generate", "--run", str(run), "--out", str(tmp_path / "images"), "--count", "3"]) == 0
    assert len(list((tmp_path / "images").glob("*.png"))) == 3
    assert main(["generate", "--weights", weights, "--out", str(tmp_path / "grid"), "--grid", "--label", "b"]) == 0
    walk = ["--out", str(tmp_path / "walk.gif"), "--keys", "2", "--frames", "2"]
    assert main(["interpolate", "--run", str(run), *walk]) == 0
    assert main(["export", "--run", str(run), "--format", "torch-export", "--out", str(tmp_path / "g.pt2")]) == 0
    for name in ("pro-gan-pth", "gan-zoo"):
        capsys.readouterr()
        assert main(["export", "--run", str(run), "--format", name, "--out", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert "R3ganGenerator is none of the paper's networks" in error and error.count("\n") == 1


def test_exported_as_onnx(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    file = tmp_path / "g.onnx"
    assert main(["export", "--run", str(run), "--format", "onnx", "--out", str(file)]) == 0
    from pggan_fast.interop.weights import load_generator

    G, _ = load_generator(run / "final" / "generator.safetensors")
    z, labels = torch.randn(3, 8), torch.eye(2)[[0, 1, 1]]
    (images,) = onnxruntime.InferenceSession(file).run(None, {"z": z.numpy(), "labels": labels.numpy()})
    # fp32, each of ten layers rounding in another order
    torch.testing.assert_close(torch.from_numpy(images), G(z, labels).detach(), rtol=1e-4, atol=1e-5)


def test_evaluated(run, tmp_path):
    out = tmp_path / "scores.json"
    assert main(["evaluate", "--run", str(run), "--count", "16", "--device", "cpu", "--out", str(out)]) == 0
    assert "swd" in out.read_text()


def test_starts_from_another_run(run, data, tmp_path, capsys):
    settings = {**RUN, "labels": True, "total_kimg": 0.008, "batch_size": {4: 8}, "init_from": run}
    assert train(RunFolder.create(config(data, tmp_path / "more", **settings)))
    with pytest.raises(UserError, match="is of networks with other options"):
        train(RunFolder.create(config(data, tmp_path / "other", init_from=run)))
    assert main(["train", "--grow-from", str(run), "--out", str(tmp_path / "x"), "--resolution", "32"]) == 2
    assert "its networks do not grow (--network r3gan)" in capsys.readouterr().err


REFUSED = {
    "growth": ({"progressive": True}, "--progressive: does not go with --network r3gan"),
    "attention": ({"attention_at": 8}, "--attention-at: does not go with --network r3gan"),
    "spectral norm": ({"spectral_norm": "both"}, "--spectral-norm: does not go with --network r3gan"),
    "projection": ({"labels": True, "label_mode": "concat"}, "--label-mode: does not go with --network r3gan"),
    "autoencoder": ({"objective": "ebgan"}, "--network r3gan: does not go with --objective ebgan"),
    "groups": ({"group_channels": 24}, "--group-channels 24: must divide the 16 channels of the blocks at 4 px"),
    "the paper's": ({"network": "pggan", "blocks": 3}, "--blocks: does not go with --network pggan"),
    "unknown": ({"network": "dcgan"}, "--network dcgan: must be one of pggan, r3gan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name, tmp_path):
    changes, message = REFUSED[name]
    settings = {**SETTINGS, "network": "r3gan", "fmap_base": 64, "fmap_max": 8, "group_channels": 8, "resolution": 8}
    with pytest.raises(UserError, match=message) as caught:
        TrainConfig(data=tmp_path, out=tmp_path, **{**settings, **changes})
    assert "\n" not in str(caught.value)


def test_settings_reach_the_networks(data, tmp_path):
    class Data:
        channels, base, classes = 1, (4, 6), ["a", "b"]

    settings = config(data, tmp_path, **{**RUN, "labels": True, "resolution": 16, "expansion": 3, "group_channels": 12})
    G, D = build_networks(settings, Data)
    shared = dict(image_channels=1, base=[4, 6], label_dim=2, fmap_base=64, fmap_max=16, blocks=1, expansion=3)
    assert G.options.items() >= (shared | dict(latent_dim=8, group_channels=12, resolution=16)).items()
    assert D.options.items() >= (shared | dict(group_channels=12, resolution=16)).items()


def test_damaged_descriptions_are_refused(run, tmp_path, capsys):
    for change in ({"network": ["r3gan"]}, {"network": "dcgan"}, {"blocks": 1 << 40}, {"residual": True}):
        described = json.loads((run / "final" / "generator.json").read_text())
        described["options"] |= change
        (tmp_path / "g.json").write_text(json.dumps(described))
        (tmp_path / "g.safetensors").write_bytes((run / "final" / "generator.safetensors").read_bytes())
        capsys.readouterr()
        out = str(tmp_path / "images")
        assert main(["generate", "--weights", str(tmp_path / "g.safetensors"), "--out", out]) == 2
        assert capsys.readouterr().err.count("\n") == 1
