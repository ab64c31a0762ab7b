"""import and export on the command line: files of others in, files for others out, errors of one line."""

import json
import resource
import sys
import types

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pggan_fast import Discriminator, Generator
from pggan_fast.cli import main
from pggan_fast.interop import to_gan_zoo, to_pro_gan_pth
from pggan_fast.interop.weights import load_generator
from pggan_fast.training import UserError
from pggan_fast.training.init_from import find_weights

SMALL = {"fmap_base": 32, "fmap_max": 8}


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def files(tmp_path):
    """By format: a file of that implementation, and the networks that are in it."""
    torch.manual_seed(0)
    pro = Generator(8, latent_dim=5, input_norm=False, **SMALL), Discriminator(8, fused_scale=False, **SMALL)
    zoo = (
        Generator(8, latent_dim=5, input_bias="pixel", **SMALL),
        Discriminator(8, fused_scale=False, mbstd_group_size=1, **SMALL),
    )
    parts = [{"conf": {"use_eql": True}, "state_dict": to_pro_gan_pth(net)} for net in pro]
    torch.save(
        {"generator": parts[0], "shadow_generator": parts[0], "discriminator": parts[1], "gen_optim": {"state": {}}},
        tmp_path / "pro-gan-pth.bin",
    )
    torch.save({"netG": to_gan_zoo(zoo[0]), "netD": to_gan_zoo(zoo[1])}, tmp_path / "gan-zoo.pt")
    return {"pro-gan-pth": (tmp_path / "pro-gan-pth.bin", *pro), "gan-zoo": (tmp_path / "gan-zoo.pt", *zoo)}


@pytest.mark.parametrize("source", ["pro-gan-pth", "gan-zoo"])
def test_import_and_back(capsys, tmp_path, files, source):
    file, G, D = files[source]
    code, out, _ = run(capsys, "import", "--from", source, "--weights", file, "--out", tmp_path / "out")
    assert code == 0 and "generator.safetensors" in out and "discriminator.safetensors" in out
    imported, metadata = load_generator(tmp_path / "out" / "generator.safetensors")
    z = torch.randn(3, 5)
    torch.testing.assert_close(imported(z), G(z))
    critic = Discriminator(**json.loads((tmp_path / "out" / "discriminator.json").read_text())["options"])
    critic.load_state_dict(load_file(tmp_path / "out" / "discriminator.safetensors"))
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(critic(images)[0], D(images)[0])
    weights = tmp_path / "out" / "generator.safetensors"
    code, _, _ = run(capsys, "export", "--weights", weights, "--format", source, "--out", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    theirs = (to_pro_gan_pth if source == "pro-gan-pth" else to_gan_zoo)(G)
    assert code == 0 and back.keys() == theirs.keys()
    assert run(capsys, "generate", "--weights", weights, "--count", 1, "--out", tmp_path / "png")[0] == 0


def test_runs_do_not_start_from_networks_of_another_function(capsys, tmp_path, files):
    run(capsys, "import", "--from", "pro-gan-pth", "--weights", files["pro-gan-pth"][0], "--out", tmp_path / "out")
    with pytest.raises(UserError, match="input_norm=False, runs have True"):
        find_weights(tmp_path / "out" / "generator.safetensors")


def test_export(capsys, tmp_path, files):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    file, G, _ = files["gan-zoo"]
    run(capsys, "import", "--from", "gan-zoo", "--weights", file, "--out", tmp_path / "out")
    weights = tmp_path / "out" / "generator.safetensors"
    for format_, name in (("safetensors", "g.safetensors"), ("torch-export", "g.pt2"), ("onnx", "g.onnx")):
        options = ("export", "--weights", weights, "--format", format_, "--out", tmp_path / name)
        assert run(capsys, *options)[0] == 0
        code, _, error = run(capsys, *options)
        assert code == 2 and "exists already" in error
    z = torch.randn(3, 5)
    expected = G(z).detach()
    torch.testing.assert_close(load_generator(tmp_path / "g.safetensors")[0](z).detach(), expected)
    torch.testing.assert_close(
        torch.export.load(tmp_path / "g.pt2").module()(z).detach(), expected, atol=1e-5, rtol=1e-4
    )
    session = onnxruntime.InferenceSession(tmp_path / "g.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"z": z.numpy()})[0], expected.numpy(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import", "--from", "official"), "--weights is missing"),
        (("import", "--weights", "x", "--out", "y"), "--from is missing"),
        (("import", "--from", "keras", "--weights", "x", "--out", "y"), "--from keras: must be one of official,"),
        (("import", "--from", "official", "--weights", "x", "--out", "y"), "--weights x: no such file"),
        (("import", "--from", "official", "--weights", "x", "--out", "y", "--label-dim", "2"), "leave them out"),
        (("export", "--format", "onnx", "--out", "y"), "--run or --weights"),
        (("export", "--format", "safetensors", "--weights", "x", "--out", "y"), "must end in .safetensors"),
    ],
)
def test_mistakes(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = run(capsys, *arguments)
    assert code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize("source", ["official", "pro-gan-pth", "gan-zoo"])
def test_files_that_hold_something_else(capsys, tmp_path, source):
    for name, content in (("a", {"G": 1}), ("b", [torch.zeros(2)]), ("c", {"weird.weight": torch.zeros(2)})):
        torch.save(content, tmp_path / name)
    torch.save({"x": Generator}, tmp_path / "d")
    (tmp_path / "e").write_bytes(b"not a file of weights")
    (tmp_path / "f").write_bytes(b"")
    for name in "abcdef":
        code, _, error = run(
            capsys, "import", "--from", source, "--weights", tmp_path / name, "--out", tmp_path / "out"
        )
        assert code == 2 and error.count("\n") == 1, name
        assert not (tmp_path / "out").exists()


def test_settings_beside_the_networks_are_skipped(capsys, tmp_path, files, monkeypatch):
    """A GAN zoo checkpoint holds an object of a class of its own; nothing of it is needed."""

    class BaseConfig:
        pass

    BaseConfig.__module__, BaseConfig.__qualname__ = "models.utils.config", "BaseConfig"
    module = types.ModuleType("models.utils.config")
    module.BaseConfig = BaseConfig
    monkeypatch.setitem(sys.modules, "models", types.ModuleType("models"))
    monkeypatch.setitem(sys.modules, "models.utils", types.ModuleType("models.utils"))
    monkeypatch.setitem(sys.modules, "models.utils.config", module)
    config = BaseConfig()
    config.depth, config.equalizedlR = 512, True
    _, G, _ = files["gan-zoo"]
    torch.save({"config": config, "netG": to_gan_zoo(G)}, tmp_path / "full.pt")
    code, _, error = run(
        capsys, "import", "--from", "gan-zoo", "--weights", tmp_path / "full.pt", "--out", tmp_path / "out"
    )
    assert code == 0, error


@pytest.mark.parametrize("full_at", [1, 2])
def test_a_full_disk_leaves_nothing_of_an_import(capsys, tmp_path, files, monkeypatch, full_at):
    """At the generator or at the discriminator; the library raises an error of its own, which is no OSError."""
    calls = 0

    def save_file(tensors, path):
        nonlocal calls
        calls += 1
        path.write_bytes(b"half of it")
        if calls == full_at:
            raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    file = files["gan-zoo"][0]
    code, _, error = run(capsys, "import", "--from", "gan-zoo", "--weights", file, "--out", tmp_path / "out")
    name = ("generator", "discriminator")[full_at - 1]
    assert code == 2 and f"{name}.safetensors: cannot be written" in error and error.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("format_", "function"),
    [("gan-zoo", "torch.save"), ("torch-export", "pggan_fast.convert.program_bytes")],
)
def test_a_full_disk_leaves_nothing_of_an_export(capsys, tmp_path, files, monkeypatch, format_, function):
    run(capsys, "import", "--from", "gan-zoo", "--weights", files["gan-zoo"][0], "--out", tmp_path / "out")

    def fails(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(function, fails)
    weights, out = tmp_path / "out" / "generator.safetensors", tmp_path / "new" / "g.pt"
    code, _, error = run(capsys, "export", "--weights", weights, "--format", format_, "--out", out)
    assert code == 2 and f"--out {out}: cannot be written" in error and error.count("\n") == 1
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("format_", ["safetensors", "gan-zoo", "torch-export"])
def test_a_file_that_may_not_grow_names_the_systems_reason(capsys, tmp_path, files, format_):
    run(capsys, "import", "--from", "gan-zoo", "--weights", files["gan-zoo"][0], "--out", tmp_path / "out")
    weights, out = tmp_path / "out" / "generator.safetensors", tmp_path / "new" / "g.safetensors"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        code, _, error = run(capsys, "export", "--weights", weights, "--format", format_, "--out", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2 and "File too large" in error and str(out) in error and error.count("\n") == 1
    assert list(out.parent.iterdir()) == []
