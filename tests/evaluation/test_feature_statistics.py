"""FID and KID end to end: torch-fidelity's numbers, features of reals that are kept, any number of processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from pggan_fast import Generator
from pggan_fast.evaluation.evaluate import EvaluateConfig, evaluate
from pggan_fast.interop.weights import save_weights
from pggan_fast.metrics import collection
from pggan_fast.training import PreparedData, UserError
from tests.evaluation.small_network import SmallNetwork
from tests.training.runs import stats, write_data

REALS = 90
fidelity = pytest.importorskip("torch_fidelity", reason="the extra metrics is not installed")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Prepared data with classes, and a generator of the same classes."""
    folder = tmp_path_factory.mktemp("statistics")
    torch.manual_seed(0)
    G = Generator(16, fmap_base=64, fmap_max=16, label_dim=2)
    metadata = {"options": G.options, "classes": ["a", "b"], "images": 0, "resolution": 16, "alpha": 1.0}
    save_weights(folder / "generator.safetensors", G, metadata)
    return folder, write_data(folder / "data", count=REALS)


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    """Count the images that the network sees."""
    seen = []

    class Counting(SmallNetwork):
        def __call__(self, images):
            seen.append(len(images))
            return super().__call__(images)

    monkeypatch.setattr(collection, "Inception", Counting)
    return seen


def run(files, **changes):
    settings = {"metrics": "fid,kid,inception-score", "count": 70, "batch_size": 16, "device": "cpu", **changes}
    return evaluate(EvaluateConfig(weights=files[0] / "generator.safetensors", reals=files[1], **settings))


def test_numbers_are_torch_fidelitys(files, small_network):
    """Its whole pipeline, on the same images in the same order, with the same network."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    from pggan_fast.evaluation.evaluate import open_sources

    class Extractor(FeatureExtractorBase):
        INPUT_DTYPE = torch.uint8

        def __init__(self, name, features_list, **_):
            super().__init__(name, features_list)
            self.network = SmallNetwork(torch.device("cpu"))
            self.eval()

        @staticmethod
        def get_provided_features_list():
            return "features", "logits"

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "logits" if metric == "isc" else "features"

        @staticmethod
        def can_be_compiled():
            return False

        @staticmethod
        def get_dummy_input_for_compile():
            return torch.zeros(1, 3, 16, 16, dtype=torch.uint8)

        def forward(self, images):
            found = self.network(images)
            return tuple(found[name] for name in self.features_list)

    class Images(torch.utils.data.Dataset):
        def __init__(self, source, count):
            self.batch = torch.from_numpy(source.take(0, count).copy())

        def __len__(self):
            return len(self.batch)

        def __getitem__(self, index):
            return self.batch[index]

    fidelity.register_feature_extractor("small", Extractor)
    config = EvaluateConfig(weights=files[0] / "generator.safetensors", reals=files[1])
    fakes, reals, _ = open_sources(config, torch.device("cpu"))
    expected = fidelity.calculate_metrics(
        input1=Images(reals, REALS),
        input2=Images(fakes, 70),
        fid=True,
        kid=True,
        feature_extractor="small",
        kid_subset_size=70,
        kid_subsets=1,
        rng_seed=0,
        cuda=False,
        batch_size=16,
        num_workers=0,
        verbose=False,
    )
    found = run(files, metrics="fid,kid", reals_count=REALS)["results"]
    # Their means and covariances are sums in fp32, ours in fp64.
    assert found["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert found["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-5)
    assert found["fid"] > 0.01 and found["kid"] > 0.01  # the sets do differ


def test_features_of_reals_are_kept(files, small_network, cache):
    first = run(files)
    assert sum(small_network) == 1 + 70 + 70  # a fixed image, reals, generated
    assert len(list(cache.glob("*.npz"))) == 1
    small_network.clear()
    again = run(files)
    assert sum(small_network) == 1 + 70
    for name in ("results", "reals", "images"):
        assert again[name] == first[name]
    small_network.clear()
    with_pixels = run(files, metrics="ms-ssim,fid")  # which reads the reals, and looks at none of them
    assert sum(small_network) == 1 + 70
    assert with_pixels["results"]["fid"] == first["results"]["fid"]
    assert with_pixels["reals"]["digest"] == first["reals"]["digest"]


@pytest.mark.parametrize("changed", ["network", "data", "seed", "count", "damaged", "cut short"])
def test_what_is_kept_is_not_taken_for_something_else(files, small_network, cache, tmp_path, monkeypatch, changed):
    run(files)
    (file,) = cache.glob("*.npz")
    changes = {"seed": {"seed": 1}, "count": {"count": 69}}.get(changed, {})
    if changed == "network":
        monkeypatch.setattr(SmallNetwork, "seed", 1)
    elif changed == "data":
        data = write_data(tmp_path / "data", count=REALS)
        images = np.load(data / "images_16.npy")
        images[:] = 255 - images
        np.save(data / "images_16.npy", images)
        files = (files[0], data)
    elif changed == "damaged":
        file.write_bytes(b"\x80\x04" + file.read_bytes()[2:])
    elif changed == "cut short":
        file.write_bytes(file.read_bytes()[:1000])
    small_network.clear()
    found = run(files, **changes)
    count = changes.get("count", 70)
    assert sum(small_network) == 1 + 2 * count
    file.unlink()
    for other in cache.glob("*.npz"):
        other.unlink()
    assert run(files, **changes)["results"] == found["results"]


def test_a_cache_that_cannot_be_written_changes_nothing(files, tmp_path, monkeypatch, capsys):
    expected = run(files)["results"]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert run(files)["results"] == expected
    assert "features of the reals are not kept: " in capsys.readouterr().out


def test_more_reals_than_images(files):
    assert run(files, count=100, reals_count=80)["results"]["fid"] > 0
    with pytest.raises(UserError, match="--reals-count 91: there are only 90"):
        run(files, reals_count=91)
    with pytest.raises(UserError, match="--reals-count 80: swd, ms-ssim compare as many reals as images"):
        run(files, metrics="swd,fid,ms-ssim", reals_count=80)
    with pytest.raises(UserError, match="--reals-count 0"):
        run(files, reals_count=0)


def launch(count, tmp_path, *arguments):
    """Run a command in `count` processes and return its standard output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / f"cache-{count}")}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
    command = [sys.executable, *launcher, "-m", "tests.evaluation.small_network", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_processes_share_the_work_and_give_the_same_bits(files, tmp_path):
    folder, data = files
    options = ["--weights", folder / "generator.safetensors", "--reals", data, "--device", "cpu", "--batch-size", 16]
    reports = []
    for count in (1, 3):
        out = tmp_path / f"{count}.json"
        told = launch(
            count, tmp_path, "evaluate", *options, "--metrics", "ms-ssim,fid,kid", "--count", 70, "--out", out
        )
        assert told.count("written:") == 1
        reports.append(json.loads(out.read_text()))
    assert reports[0]["results"] == reports[1]["results"]
    for name in ("images", "reals"):
        assert reports[0][name]["digest"] == reports[1][name]["digest"]


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_training_in_two_processes_measures_what_the_command_does(files, tmp_path, monkeypatch):
    _, data = files
    assert PreparedData(data).count == REALS
    out = tmp_path / "run"
    settings = (
        "--stable-kimg 0.032 --transition-kimg 0.032 --batch-size 16 --fmap-base 32 --fmap-max 8 --no-tensorboard"
    )
    metrics = "--metrics fid,ms-ssim --metric-images 70 --metric-kimg 0.064 --tick-kimg 0.064 --device cpu"
    launch(2, tmp_path, "train", "--data", data, "--out", out, *settings.split(), *metrics.split())
    lines = [line for line in stats(out) if "fid" in line]
    assert len(lines) >= 2
    report = evaluate(EvaluateConfig(run=out, metrics="fid,ms-ssim", count=70, batch_size=32, device="cpu"))
    assert {name: lines[-1][name] for name in report["results"]} == pytest.approx(report["results"], rel=1e-6)
