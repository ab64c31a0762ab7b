"""Generators as the Hugging Face Hub has them: saved, loaded, uploaded to a folder in its place, damaged, pickled."""

import json
import os
import shutil

import pytest
import torch
import yaml

from pggan_fast import Discriminator, Generator
from pggan_fast.cli import main
from pggan_fast.networks import R3ganGenerator
from pggan_fast.utils.errors import UserError

hub = pytest.importorskip("huggingface_hub")


def tiny(**options):
    torch.manual_seed(0)
    return Generator(16, fmap_max=8, label_dim=2, **options)


METADATA = {"classes": ["blue", "red"], "images": 1200, "resolution": 8, "alpha": 0.5}


@pytest.fixture
def saved(tmp_path):
    assert tiny().save_pretrained(tmp_path / "G", metadata=METADATA) is None
    return tmp_path / "G"


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_folder_and_back(saved):
    assert {path.name for path in saved.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    G = Generator.from_pretrained(saved)
    assert type(G) is Generator and not G.training
    assert same(G.state_dict(), tiny().state_dict()) and G.options == tiny().options
    assert G.hub_metadata == METADATA
    G.save_pretrained(saved.parent / "again")
    for name in ("model.safetensors", "config.json"):
        assert (saved / name).read_bytes() == (saved.parent / "again" / name).read_bytes()


def test_other_generators_and_wrong_classes(saved, tmp_path):
    R3ganGenerator(8, fmap_max=8).save_pretrained(tmp_path / "r3")
    assert type(R3ganGenerator.from_pretrained(tmp_path / "r3")) is R3ganGenerator
    with pytest.raises(TypeError, match="holds a R3ganGenerator, not a Generator"):
        Generator.from_pretrained(tmp_path / "r3")
    assert not hasattr(Discriminator, "save_pretrained")


def test_the_card(saved):
    _, head, text = (saved / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(head)
    assert told["library_name"] == "pggan-fast" and told["pipeline_tag"] == "unconditional-image-generation"
    assert "resolution=8, alpha=0.5" in text and "Classes, by index: blue, red." in text


def test_names_of_classes_are_anybodys(tmp_path):
    metadata = {**METADATA, "classes": ["<script>alert(1)</script>\n# title", "a & b"]}
    tiny().save_pretrained(tmp_path / "G", metadata=metadata)
    text = (tmp_path / "G" / "README.md").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; # title, a &amp; b." in text and "<script" not in text
    with pytest.raises(UserError, match="classes.0. is str .*must be text without NUL and lone surrogates"):
        tiny().save_pretrained(tmp_path / "other", metadata={**METADATA, "classes": ["\ud800", "b"]})


def test_a_folder_whose_name_is_not_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    tiny().save_pretrained(folder, metadata=METADATA, card=f"# {folder.name}")
    assert "caf\\udce9" in (folder / "README.md").read_text()
    assert same(Generator.from_pretrained(folder).state_dict(), tiny().state_dict())


def test_upload(monkeypatch, tmp_path):
    """The mixin uploads what it saves; the Hub is a folder here."""

    class Api:
        def __init__(self, **_): ...
        def create_repo(self, repo_id, **options):
            assert options["private"]
            return hub.RepoUrl(f"https://example.com/{repo_id}", endpoint="https://example.com")

        def upload_folder(self, *, folder_path, repo_id, **_):
            shutil.copytree(folder_path, tmp_path / repo_id)
            return "the commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert tiny().push_to_hub("somebody/digits", private=True, metadata=METADATA) == "the commit"
    assert Generator.from_pretrained(tmp_path / "somebody/digits").hub_metadata == METADATA


def test_a_repository_that_was_downloaded(saved, monkeypatch):
    asked = []

    def download(repo_id, filename, **options):
        asked.append((repo_id, filename, options["revision"]))
        return str(saved / filename)

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **options: download(**options))
    monkeypatch.setattr(hub, "hf_hub_download", download)
    G = Generator.from_pretrained("somebody/digits", revision="v1")
    assert same(G.state_dict(), tiny().state_dict())
    assert {name for _, name, _ in asked} == {"config.json", "model.safetensors"}
    assert {(repo, revision) for repo, _, revision in asked} == {("somebody/digits", "v1")}


class Trap:
    """A pickle that would run a command."""

    def __reduce__(self):
        return (pytest.fail, ("something was unpickled",))


def damaged(folder, kind):
    config = json.loads((folder / "config.json").read_text())
    if kind == "pickle":
        (folder / "model.safetensors").unlink()
        torch.save(Trap(), folder / "pytorch_model.bin")
    elif kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "weights":
        (folder / "model.safetensors").write_bytes(b"nothing like it")
    elif kind == "options":
        config["options"]["fmap_max"] = 4
    elif kind == "huge":
        config["options"]["fmap_max"] = 1 << 40
    elif kind == "unknown":
        config["options"]["wings"] = 2
    elif kind == "classes":
        config["classes"] = ["one"]
    if kind in ("options", "huge", "unknown", "classes"):
        (folder / "config.json").write_text(json.dumps(config))
    elif kind in ("[]", "{", "3"):
        (folder / "config.json").write_text(kind)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("pickle", "has no model.safetensors; other files of weights are not read"),
        ("no config", "holds no generator"),
        ("weights", "does not fit config.json"),
        ("options", "does not fit config.json"),
        ("huge", "config.json is no generator's"),
        ("unknown", "has no option 'wings'"),
        ("classes", "classes are 1, the generator has 2"),
        ("[]", "config.json"),
        ("{", "config.json"),
        ("3", "config.json"),
    ],
)
def test_what_is_refused(saved, kind, words):
    damaged(saved, kind)
    with pytest.raises(UserError, match=words) as error:
        Generator.from_pretrained(saved)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["a/b/c", "nowhere at all", ""])
def test_a_name_that_is_none(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises((UserError, OSError)) as error:
        Generator.from_pretrained(name)
    assert str(error.value)


def test_metadata_that_does_not_fit(tmp_path):
    with pytest.raises(UserError, match="metadata: classes are 1"):
        tiny().save_pretrained(tmp_path / "G", metadata={"classes": ["one"]})
    assert not (tmp_path / "G").exists()


def test_without_the_extra(monkeypatch, tmp_path):
    import sys

    from pggan_fast.interop.hub import _mixin

    _mixin.cache_clear()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"needs huggingface_hub .*pip install 'pggan-fast\[hub\]'"):
        tiny().save_pretrained(tmp_path / "G")


def test_a_run_with_its_card(tmp_path, capsys):
    """Data, images shown, metrics and samples, and no path of this machine."""
    from pggan_fast.training import RunFolder, train
    from tests.training.runs import config, write_data

    settings = config(write_data(tmp_path / "digits | <b>"), tmp_path / "run")
    run = RunFolder.create(settings)
    assert train(run, metric_callback=lambda *_: {"swd": 12.5})
    out = tmp_path / "hub"
    assert main(["export", "--format", "hub", "--run", str(run.path), "--out", str(out)]) == 0
    text = (out / "README.md").read_text()
    assert "digits \\| &lt;b&gt;:" in text and "| swd | 12.5 |" in text and "![Samples](grid.png)" in text
    assert str(tmp_path) not in text
    assert (out / "grid.png").read_bytes() == max(run.samples.glob("*.png")).read_bytes()
    G = Generator.from_pretrained(out)
    assert f"images shown | {G.hub_metadata['images'] / 1000:,.1f} thousand" in text
    capsys.readouterr()
    assert main(["export", "--format", "hub", "--run", str(run.path), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    kept = json.loads((run.path / "config.json").read_text())
    for name, value in (("count", "many"), ("classes", 5), ("classes", [7])):
        (run.path / "config.json").write_text(json.dumps({**kept, "data": {**kept["data"], name: value}}))
        arguments = ["export", "--format", "hub", "--run", str(run.path), "--out", str(tmp_path / "damaged")]
        assert main(arguments) == 2 and not (tmp_path / "damaged").exists()
        error = capsys.readouterr().err
        assert f"config.json is damaged (data.{name}" in error and error.count("\n") == 1
