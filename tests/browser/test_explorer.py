"""The page of `export --format html` in Chromium: its pixels are those of `generate`, whatever is moved."""

import base64
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image

from pggan_fast import Generator
from pggan_fast.cli import main
from pggan_fast.generation.directions import principal_directions
from pggan_fast.generation.images import GenerateConfig, generate_images
from pggan_fast.generation.interpolation import walk
from pggan_fast.interop.weights import save_weights
from pggan_fast.networks.r3gan import R3ganGenerator
from pggan_fast.networks.sampling import generate, latents
from tests.browser.chromium import PATIENCE, Browser, find_browser

pytestmark = [
    pytest.mark.skipif("PGGAN_FAST_TEST_BROWSER" not in os.environ, reason="make test-browser runs it"),
    pytest.mark.skipif(find_browser() is None, reason="needs Chromium: apt-get install chromium"),
]

# onnxruntime-web's sums are in another order than torch's: a value between two levels may fall to either.
LEVELS = 1
READY = "document.body.dataset.state === 'ready' || document.body.dataset.state === 'failed'"
PIXELS = """(() => { const c = document.getElementById('view'), n = c.width * c.height;
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  let s = ''; for (let i = 0; i < 4 * n; i++) s += String.fromCharCode(d[i]);
  return [c.width, c.height, btoa(s)]; })()"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A generator with classes, its weights file, and its page."""
    folder = tmp_path_factory.mktemp("explorer")
    torch.manual_seed(0)
    G = Generator(32, fmap_base=512, fmap_max=64, label_dim=3, latent_dim=50).eval()
    with torch.no_grad():
        for parameter in G.parameters():
            if parameter.ndim == 1:  # biases, which begin as zeros
                parameter.normal_(0, 0.3)
        for layer in G.to_rgb.values():
            layer.weight.mul_(2)  # a contrast that fills the range and leaves it at both ends
    metadata = {"options": G.options, "classes": ["cat", "</script>", "dög"], "images": 1500}
    save_weights(folder / "g.safetensors", G, {**metadata, "resolution": 32, "alpha": 1.0})
    page = folder / "page.html"
    code = main(["export", "--format", "html", "--weights", str(folder / "g.safetensors"), "--out", str(page)])
    if code:
        pytest.skip("npm cannot fetch onnxruntime-web here; the error above says why")
    return G, folder, page


@pytest.fixture(scope="module")
def browser():
    with Browser() as browser:
        yield browser


@pytest.fixture
def page(browser, exported):
    opened = browser.open(exported[2], width=1100, height=800)
    opened.wait_for(READY)
    yield opened
    assert opened.problems() == []
    opened.close()


def shown(page):
    """Wait for the page and return its pixels, uint8 [H, W, 3]."""
    page.wait_for(READY)
    assert page.evaluate("document.body.dataset.state") == "ready", page.evaluate(
        "document.getElementById('status').textContent"
    )
    width, height, text = page.evaluate(PIXELS)
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)[:, :, :3]


def assert_equal(found, expected):
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= LEVELS
    assert len(np.unique(expected)) > 100  # no blank image is compared


def from_generate(exported, tmp_path, **options):
    """Return what `pggan-fast generate` writes for one image, uint8 [H, W, 3]."""
    if "latents" not in options:
        options["count"] = 1
    (path,) = generate_images(GenerateConfig(out=tmp_path / "images", weights=exported[1] / "g.safetensors", **options))
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("seed", [0, 12345, 2**32 + 7])
def test_seeds(exported, page, tmp_path, seed):
    page.type("#seed", str(seed))
    assert_equal(shown(page), from_generate(exported, tmp_path, seed=seed))
    assert f"--seed {seed} " in page.evaluate("document.getElementById('command').textContent")


def test_class_and_truncation(exported, page, tmp_path):
    page.type("#truncation", "0.7")
    page.press("#label", "ArrowDown", 3)
    assert_equal(shown(page), from_generate(exported, tmp_path, seed=0, truncation=0.7, label="dög"))
    command = page.evaluate("document.getElementById('command').textContent")
    assert command.endswith("--seed 0 --count 1 --truncation 0.7 --label 2 --out FOLDER")


def test_sliders(exported, page):
    """Move two sliders, one by the keyboard and one by the mouse, and put both back."""
    G = exported[0]
    at_rest = shown(page)
    page.press("#direction0", "ArrowRight", 25)
    page.click("#direction2", across=0.2)
    found = shown(page)
    moved = [float(page.evaluate(f"document.getElementById('direction{k}').value")) for k in (0, 2)]
    assert moved[0] == 2.5 and -4.5 < moved[1] < -3
    z = latents(G, 1, 0) + torch.tensor(moved) @ principal_directions(G, 3)[[0, 2]]
    assert_equal(found, generate(G, z, torch.tensor([0]))[0])
    assert np.abs(found.astype(int) - at_rest).mean() > 3  # it did change
    page.click("#reset")
    assert np.array_equal(shown(page), at_rest)


def test_sliders_name_the_command(exported, page, tmp_path):
    page.press("#direction1", "ArrowRight", 12)
    page.press("#direction3", "ArrowLeft", 5)
    command = page.evaluate("document.getElementById('command').textContent")
    assert command.endswith("--seed 0 --count 1 --move 2:1.2,4:-0.5 --out FOLDER")
    assert_equal(shown(page), from_generate(exported, tmp_path, move="2:1.2,4:-0.5"))


def test_a_latent_from_a_file_is_edited(exported, page, tmp_path):
    file = tmp_path / "latent.npy"
    np.save(file, latents(exported[0], 1, 77).numpy())
    at_rest = shown(page)
    page.choose("#latents", file)
    page.wait_for("document.getElementById('command').textContent.includes('--latents latent.npy')")
    page.press("#direction0", "ArrowLeft", 10)
    command = page.evaluate("document.getElementById('command').textContent")
    assert command.endswith("--latents latent.npy --move 1:-1 --out FOLDER")
    assert_equal(shown(page), from_generate(exported, tmp_path, latents=str(file), move="1:-1", label="cat"))
    page.click("#reset")
    np.save(tmp_path / "short.npy", np.zeros(7, np.float32))
    page.choose("#latents", tmp_path / "short.npy")
    page.wait_for("document.getElementById('problem').textContent !== ''")
    assert page.evaluate("document.getElementById('problem').textContent") == (
        "short.npy: must be of shape 50 or Nx50, is 7"
    )
    assert np.array_equal(shown(page), at_rest)


def test_interpolation(exported, page):
    G = exported[0]
    page.type("#to", "9")
    page.press("#share", "ArrowRight", 40)
    z = walk(torch.cat([latents(G, 1, seed) for seed in (0, 9)]), 10)[4:5]
    assert_equal(shown(page), generate(G, z, torch.tensor([0]))[0])


def test_grid(exported, page):
    page.type("#seed", "5")
    page.press("#grid", "ArrowDown", 2)
    G = exported[0]
    z = torch.cat([latents(G, 1, seed) for seed in range(5, 14)])
    images = generate(G, z, torch.arange(5, 14) % 3).reshape(3, 3, 32, 32, 3)
    assert_equal(shown(page), images.transpose(0, 2, 1, 3, 4).reshape(96, 96, 3))


def test_save(browser, page, tmp_path):
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    pixels = shown(page)
    page.click("#save")
    file = tmp_path / "seed000000.png"
    end = time.monotonic() + PATIENCE
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert np.array_equal(np.asarray(Image.open(file).convert("RGB")), pixels)


def test_play_walks_and_stops(page):
    page.click("#play")
    page.wait_for("Number(document.getElementById('share').value) > 0.05")
    page.click("#play")
    assert page.evaluate("document.getElementById('play').textContent") == "play"


def test_networks_of_another_kind(browser, tmp_path):
    torch.manual_seed(0)
    G = R3ganGenerator(16, fmap_base=128, fmap_max=32).eval()
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if parameter.ndim == 4 and "output" not in name:  # the last convolutions of its blocks begin as zeros
                parameter.normal_(0, 0.2)
        G.output.weight.mul_(0.03)  # so that most of its values are within -1..1
    metadata = {"options": G.options, "classes": [], "images": 0, "resolution": 16, "alpha": 1.0}
    save_weights(tmp_path / "g.safetensors", G, metadata)
    arguments = ["export", "--format", "html", "--weights", tmp_path / "g.safetensors", "--out", tmp_path / "page.html"]
    if main([str(argument) for argument in arguments]):
        pytest.skip("npm cannot fetch onnxruntime-web here; the error above says why")
    page = browser.open(tmp_path / "page.html", width=800, height=600)
    page.wait_for(READY)
    page.type("#seed", "3")
    expected = generate(G, latents(G, 1, 3), None)[0]
    assert_equal(shown(page), expected)
    assert page.evaluate("document.getElementById('label')") is None
    assert page.problems() == []
    page.close()


@pytest.mark.parametrize("width", [1100, 390, 320])
def test_it_fits_the_window(browser, exported, screenshots, width):
    page = browser.open(exported[2], width=width, height=800)
    shown(page)
    page.press("#grid", "ArrowDown", 2)
    shown(page)
    page.screenshot(screenshots / f"explorer-{width}.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
