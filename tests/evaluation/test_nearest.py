"""The grid of nearest reals: copies stand beside what they were copied from."""

import numpy as np
import pytest
import torch
from PIL import Image

from pggan_fast.evaluation import nearest
from pggan_fast.evaluation.evaluate import EvaluateConfig, evaluate
from pggan_fast.evaluation.sources import PreparedImages
from pggan_fast.training import PreparedData
from tests.training.runs import write_data


@pytest.fixture
def reals(tmp_path):
    return PreparedImages(PreparedData(write_data(tmp_path / "data", count=45)), resolution=16, seed=0)


class Copies:
    """Noisy copies of some reals."""

    count, channels, size = 3, 3, (16, 16)
    originals = (3, 17, 44)

    def __init__(self, reals):
        self.images = np.concatenate([reals.take(i, i + 1) for i in self.originals])

    def take(self, start, stop):
        return np.clip(self.images[start:stop].astype(int) + 3, 0, 255).astype(np.uint8)


def tiles(path):
    """Return [rows, columns, 16, 16, 3]; tiles are enlarged four times."""
    pixels = np.asarray(Image.open(path))[::4, ::4]
    return pixels.reshape(-1, 16, nearest.NEIGHBOURS + 1, 16, 3).transpose(0, 2, 1, 3, 4)


@pytest.mark.parametrize("network", [True, False])
@pytest.mark.parametrize("batch_size", [7, 64])
def test_the_original_comes_first_and_all_reals_are_looked_at(reals, tmp_path, monkeypatch, network, batch_size):
    if network:
        pytest.importorskip("efficientnet_lite_pytorch", reason="the extra metrics is not installed")
    else:

        def missing(device):
            raise ValueError("not installed")

        monkeypatch.setattr(nearest, "EfficientNetLite0", missing)
    copies = Copies(reals)
    path = tmp_path / "nearest.png"
    kind = nearest.save_nearest(path, copies, reals, count=3, device=torch.device("cpu"), batch_size=batch_size)
    assert kind == ("features of EfficientNet-Lite0" if network else "pixels")
    found = tiles(path).transpose(0, 1, 4, 2, 3)
    assert np.array_equal(found[:, 0], copies.take(0, 3))
    assert np.array_equal(found[:, 1], copies.images)
    if not network:  # the whole order, from all distances at once
        everything = reals.take(0, 45)
        for row, copy in zip(found, copies.take(0, 3), strict=True):
            distances = np.square(everything.astype(float) - copy).sum(axis=(1, 2, 3))
            assert np.array_equal(row[1:], everything[distances.argsort()[: nearest.NEIGHBOURS]])


def test_evaluate_writes_it(tmp_path, capsys, monkeypatch):
    data = write_data(tmp_path / "data", count=12)
    config = EvaluateConfig(images=data, reals=data, metrics="swd", device="cpu", nearest=tmp_path / "n.png", count=4)
    evaluate(config)
    assert f"written: {tmp_path / 'n.png'}, nearest by " in capsys.readouterr().out
    found = tiles(tmp_path / "n.png")
    assert len(found) == 4 and np.array_equal(found[:, 0], found[:, 1])
    with pytest.raises(ValueError, match="--nearest .*: exists already"):
        EvaluateConfig(images=data, reals=data, nearest=tmp_path / "n.png")
