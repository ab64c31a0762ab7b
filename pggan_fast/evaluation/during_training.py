"""Metrics of a run's averaged generator while it trains."""

from __future__ import annotations

import torch
from torch import Tensor

from pggan_fast.evaluation.sources import GeneratedImages, PreparedImages
from pggan_fast.evaluation.streaming import add_fakes, add_reals
from pggan_fast.metrics import MetricSet, metric_names
from pggan_fast.networks import Generator
from pggan_fast.training import PreparedData, RunFolder, Stage, TrainConfig, UserError
from pggan_fast.utils.device import find_device
from pggan_fast.utils.distributed import Processes

BATCH = 32  # images at once


class MetricCallback:
    """Compares images of a generator with the data of a run, at the run's final resolution.

    Smaller images are enlarged, so that values of all stages compare. Latents, choice of images and metrics follow from
    the run's seed alone, so every time the same is measured, and torch's random generators stay where they are.
    """

    def __init__(self, run: RunFolder, processes: Processes = Processes()) -> None:  # noqa: B008 - frozen
        config = run.config
        self.seed, self.resolution = config.seed, config.resolution
        self.count = min(config.metric_images, run.data.count)
        self.processes = processes
        self._metrics = _metrics(config)
        reals = PreparedImages(run.data, resolution=self.resolution, seed=self.seed)
        self._labels = reals.labels() if config.labels else None
        add_reals(self._metrics, reals, self.count, batch_size=BATCH, processes=processes)

    def __call__(self, G: Generator, stage: Stage, alpha: float | Tensor) -> dict[str, float]:
        """Return the values of `G` at `stage`, by name; of several processes in the first one alone.

        Every process has the same weights and generates its part of the images, so all of them must call this.
        """
        fakes = GeneratedImages(
            G,
            seed=self.seed,
            resolution=self.resolution,
            stage_resolution=stage.resolution,
            alpha=alpha,
            labels=self._labels,
        )
        self._metrics.clear_fakes()
        add_fakes(self._metrics, fakes, self.count, batch_size=BATCH, processes=self.processes)
        return self._metrics.values() if self.processes.writes else {}


def check_metrics(config: TrainConfig) -> None:
    """Raise UserError, before a run is made, if its metrics do not exist or cannot measure its images."""
    if not config.metrics:
        return
    data = PreparedData(config.data)
    side = config.resolution or data.resolution
    with _metrics(config) as metrics:
        try:
            metrics.add_reals(torch.zeros(1, data.channels, side, side, dtype=torch.uint8))
        except ValueError as error:
            raise UserError(f"--metrics {config.metrics}: {error}") from error


def metric_callback_for(
    run: RunFolder,
    processes: Processes = Processes(),  # noqa: B008 - frozen
) -> MetricCallback | None:
    """Return the metric callback of the run's generator, for each process; None if its settings name no metrics."""
    return MetricCallback(run, processes) if run.config.metrics else None


def _metrics(config: TrainConfig) -> MetricSet:
    try:
        return MetricSet(metric_names(config.metrics), seed=config.seed, device=find_device(config.device))
    except ValueError as error:
        raise UserError(f"--metrics {config.metrics}: {error}") from error
