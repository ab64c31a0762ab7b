"""The page of `export --format html` without a browser: its parts, directions, and where onnxruntime-web is from."""

import base64
import gzip
import hashlib
import io
import json
import re
import tarfile
import tempfile
from pathlib import Path

import pytest
import torch

from pggan_fast import Generator
from pggan_fast.generation import onnxruntime_web, webpage
from pggan_fast.generation.directions import principal_directions
from pggan_fast.generation.images import _latent
from pggan_fast.networks.r3gan import R3ganGenerator
from pggan_fast.utils.cache import cache_folder
from pggan_fast.utils.errors import UserError

FILES = {"dist/ort.wasm.bundle.min.mjs": b"export {}", "dist/ort-wasm-simd-threaded.wasm": b"\0asm"}


def folder_of(path, files=FILES):
    for name, contents in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(contents)
    return path


def archive_of(path, files=FILES):
    with tarfile.open(path, "w:gz") as archive:
        for name, contents in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    return path


def test_the_page_holds_everything_and_loads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(webpage, "export_program", lambda G, **stage: None)  # takes seconds
    monkeypatch.setattr(webpage, "onnx_bytes", lambda program: b"model")
    G = Generator(8, fmap_base=32, fmap_max=8, label_dim=2)
    metadata = {"resolution": 8, "alpha": 1.0, "classes": ["</script><b>", "{css}"], "images": 12_500}
    text = webpage.webpage(G, metadata, title="<a>", source="--run {wasm}", runtime=folder_of(tmp_path))
    parts = dict(re.findall(r'<script type="[^"]+" id="(\w+)">(.*?)</script>', text))
    unpacked = {name: gzip.decompress(base64.b64decode(parts[name])) for name in ("runtime", "wasm", "model")}
    assert unpacked == {"runtime": b"export {}", "wasm": b"\0asm", "model": b"model"}
    settings = json.loads(parts["page"])
    assert settings["classes"] == metadata["classes"] and settings["source"] == "--run {wasm}"
    assert settings["latent"] == G.latent_dim and settings["labels"] == 2 and len(settings["directions"]) == 8
    assert "<title>&lt;a&gt;</title>" in text and "12.5 thousand images" in text
    assert not re.search(r'(src|href)="', text)


def test_directions_are_orthonormal_and_the_strongest_come_first():
    torch.manual_seed(0)
    G = Generator(8, fmap_base=64, fmap_max=16, latent_dim=12, label_dim=3)
    directions = principal_directions(G, 20)
    assert directions.shape == (12, 12)
    torch.testing.assert_close(directions @ directions.T, torch.eye(12))
    effect = (directions @ G.input.weight[:, :12].detach().T).norm(dim=1)  # of the first layer's output
    assert (effect[:-1] >= effect[1:] - 1e-5).all() and effect[0] > 1.2 * effect[-1]
    torch.testing.assert_close(effect[0], torch.linalg.matrix_norm(G.input.weight[:, :12].detach(), 2))
    assert (directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("kind", ["residual", "spectral norm", "r3gan"])
def test_directions_of_other_networks_are_of_what_takes_the_latent(kind):
    torch.manual_seed(0)
    if kind == "r3gan":
        G = R3ganGenerator(8, fmap_base=64, fmap_max=16, latent_dim=12, label_dim=3)
        weight = G.input.project.weight
    else:
        G = Generator(8, fmap_base=64, fmap_max=16, latent_dim=12, residual=True, spectral_norm=kind != "residual")
        weight = G.input.weight
    effect = (principal_directions(G, 12) @ weight[:, :12].detach().T).norm(dim=1)
    torch.testing.assert_close(effect, torch.linalg.svdvals(weight[:, :12].detach()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 9, 16, 50])
def test_truncated_latents_are_resampled_whole_until_all_are_within(size):
    """The page computes the same loop, so its order of random numbers is fixed."""
    random = torch.Generator().manual_seed(3)
    expected = torch.randn(1, size, generator=random)
    while (expected.abs() > 0.6).any():
        expected = torch.where(expected.abs() > 0.6, torch.randn(1, size, generator=random), expected)
    assert torch.equal(_latent(size, 3, 0.6), expected)


def test_the_runtime_is_read_from_folder_and_archive(tmp_path):
    expected = {"runtime": b"export {}", "wasm": b"\0asm"}
    assert onnxruntime_web.runtime_files(folder_of(tmp_path / "folder")) == expected
    assert onnxruntime_web.runtime_files(archive_of(tmp_path / "a.tgz")) == expected


def test_something_else_is_refused_in_one_line(tmp_path):
    (tmp_path / "text.tgz").write_text("text")
    part = dict(list(FILES.items())[:1])
    places = [tmp_path / "nothing", tmp_path / "text.tgz", folder_of(tmp_path / "folder", part)]
    for place in [*places, archive_of(tmp_path / "part.tgz", part), tmp_path]:
        with pytest.raises(UserError, match="--onnxruntime-web .*: is not the npm package onnxruntime-web") as found:
            onnxruntime_web.runtime_files(place)
        assert "\n" not in str(found.value)


def npm(folder, monkeypatch, script):
    """Put an npm that runs `script` on the path, and an empty cache folder."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


def test_npm_fetches_it_once(tmp_path, monkeypatch):
    archive = archive_of(tmp_path / "a.tgz")
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    monkeypatch.setattr(onnxruntime_web, "INTEGRITY", digest)
    npm(tmp_path / "bin", monkeypatch, f"echo $@ >> {tmp_path}/log; cp {archive} onnxruntime-web-1.30.0.tgz")
    for _ in range(2):
        assert onnxruntime_web.runtime_files(None)["wasm"] == b"\0asm"
    told = "pack onnxruntime-web@1.30.0 --silent\n"
    assert (tmp_path / "log").read_text() == told
    (kept,) = (tmp_path / "bin/cache").rglob("*.tgz")
    kept.write_bytes(kept.read_bytes()[:-1])  # damaged, or of somebody else: fetched anew
    assert onnxruntime_web.runtime_files(None)["wasm"] == b"\0asm"
    assert (tmp_path / "log").read_text() == 2 * told


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'no route' >&2; exit 1", r"npm cannot fetch it \(no route\)"),
        ("exit 0", r"npm cannot fetch it \(exit code 0\)"),
        ("echo other > onnxruntime-web-1.30.0.tgz", "what npm fetched has another hash"),
    ],
)
def test_npm_that_fails_is_told_in_one_line(tmp_path, monkeypatch, script, reason):
    npm(tmp_path / "bin", monkeypatch, script)
    with pytest.raises(
        UserError, match=f"^--format html: needs onnxruntime-web 1.30.0, and {reason}; name the package"
    ):
        onnxruntime_web.runtime_files(None)
    assert not list((tmp_path / "bin").rglob("*.tgz"))


def test_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pggan-fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache/pggan-fast"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_folder() == Path(tempfile.gettempdir()) / "pggan-fast"


def test_no_npm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        UserError, match="npm, which fetches it, is not installed; name the package with --onnxruntime-"
    ):
        onnxruntime_web.runtime_files(None)
