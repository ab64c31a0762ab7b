"""The command `evaluate`: images of a run, of weights or of a folder against those of another folder."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pggan_fast import __version__
from pggan_fast.data.manifest import is_prepared
from pggan_fast.data.names import some_of
from pggan_fast.data.preprocessing import quiet_decoders
from pggan_fast.evaluation.nearest import save_nearest
from pggan_fast.evaluation.sources import (
    GeneratedImages,
    PreparedImages,
    Source,
    TooFewImages,
    files_like,
    folder_source,
)
from pggan_fast.evaluation.streaming import add_fakes, add_reals
from pggan_fast.generation.images import HIGHEST_SEED, MOST_IMAGES
from pggan_fast.generation.trained import alpha_of, run_option, trained_generator, weights_option
from pggan_fast.metrics import METRICS, MetricSet, metric_names
from pggan_fast.metrics.features import STATISTICS
from pggan_fast.networks.resolutions import image_size
from pggan_fast.training import PreparedData, UserError
from pggan_fast.training.run_folder import read_config
from pggan_fast.utils.atomic_write import write_json
from pggan_fast.utils.device import find_device
from pggan_fast.utils.distributed import Processes
from pggan_fast.utils.memory import advice_when_out_of_memory
from pggan_fast.utils.options import check_options, option, to_json
from pggan_fast.utils.output_file import check_output_file

PAPERS_COUNT = 16_384
ADVICE = "--batch-size N below 64, --count N, a lower --resolution"


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of `pggan-fast evaluate`."""

    run: Path | None = run_option("what is compared")
    weights: Path | None = weights_option()
    images: Path | None = option(
        None, help="Images instead of a generator: a folder, a .zip or .npy file, or prepared data.", metavar="SOURCE"
    )
    reals: Path | None = option(
        None,
        help="Images to compare with: a folder, a .zip or .npy file, or prepared data (default: the data of --run).",
        metavar="SOURCE",
    )
    count: int | None = option(
        None,
        min=1,
        max=MOST_IMAGES,
        help=f"Number of images of each set (default: all that there are, at most {PAPERS_COUNT:,}).",
    )
    reals_count: int | None = option(
        None,
        min=2,
        max=MOST_IMAGES,
        help="Number of reals, for metrics of features: all of a dataset, for one (default: as --count).",
    )
    resolution: int | None = option(
        None,
        min=1,
        max=16384,
        help="Shorter side in pixels at which images are compared (default: that of the evaluated images; of files,"
        " with prepared --reals, the largest of theirs that enlarges none).",
    )
    seed: int = option(
        0, min=0, max=HIGHEST_SEED - 1, help="Seed of the choice of images, of the latents and of the metrics."
    )

    metrics: str = option(
        "swd,ms-ssim",
        help=f"Metrics, comma-separated: {', '.join(METRICS)}.",
        metavar="NAME,...",
        group="metrics and results",
    )
    inception_weights: Path | None = option(
        None,
        help="Weights of the Inception network for fid, kid, inception-score and precision-recall"
        " (default: torch's download cache).",
        metavar="FILE",
    )
    out: Path | None = option(
        None, help="JSON file for the results and the settings that repeat them. It must not exist.", metavar="FILE"
    )
    nearest: Path | None = option(
        None,
        help="PNG to write: generated images, each followed by the nearest of all reals. It must not exist.",
        metavar="FILE",
    )
    device: str = option("auto", help="Device to compute on: auto, cpu, cuda, cuda:N, xpu or mps.", metavar="NAME")
    batch_size: int = option(64, min=1, max=1 << 20, help="Number of images in work at once.")

    def __post_init__(self) -> None:
        if sum(path is not None for path in (self.run, self.weights, self.images)) != 1:
            raise UserError("--run, --weights or --images: exactly one of them must be given")
        if self.reals is None and self.run is None:
            raise UserError("--reals is missing: images to compare with, or prepared data")
        check_options(self)
        pixels = set(METRICS) - {"kid-lite0", *STATISTICS}
        named = [name.strip() for name in self.metrics.split(",")]
        if self.reals_count is not None and (unequal := [name for name in named if name in pixels]):
            raise UserError(
                f"--reals-count {self.reals_count}: {', '.join(unequal)} compare as many reals as images; leave it out"
            )
        if not self.metrics.strip(" ,"):
            raise UserError(f"--metrics: name at least one of: {', '.join(METRICS)}")
        try:
            metric_names(self.metrics)
        except ValueError as error:
            raise UserError(f"--metrics {self.metrics}: {error}") from error
        for path, name in ((self.out, "--out"), (self.nearest, "--nearest")):
            if path is not None:
                check_output_file(path, name)


def evaluate(config: EvaluateConfig, processes: Processes = Processes()) -> dict[str, Any]:  # noqa: B008 - frozen
    """Evaluate the images and return, and write if `out` is given, the results and how to repeat them.

    "results" holds the values, and follows from the other entries up to "machine". Raises UserError for what cannot be
    compared, before anything is computed.
    """
    with advice_when_out_of_memory(ADVICE), quiet_decoders():
        return _evaluate(config, processes)


def _evaluate(config: EvaluateConfig, processes: Processes) -> dict[str, Any]:
    started = time.monotonic()
    device = find_device(config.device)
    images, reals, generator = open_sources(config, device)
    count = _count(config, images, reals)
    while True:
        try:
            results, settings, digests = _measure(config, device, processes, images, reals, count)
            break
        except TooFewImages as error:  # files that cannot be read are known when they are
            count = error.count
            if config.reals_count is not None:
                raise UserError(f"--reals-count {config.reals_count}: only {count} images can be read") from error
            if config.count is not None:
                raise UserError(f"--count {config.count}: only {count} images can be read") from error
            print(f"starting anew with {count:,} images, the others cannot be read", flush=True)
    for option_name, source in (("--reals", reals), ("--images", images)):
        if left_out := getattr(source, "left_out", {}):
            reasons = some_of(f"{name}: {reason}" for name, reason in left_out.items())
            print(f"{option_name}: {len(left_out):,} left out ({reasons})")
    for name, value in results.items():
        print(f"{name:<24}{value:.6g}")
    report = {
        "results": results,
        "settings": to_json(replace(config, count=count, resolution=min(images.size))),
        "metrics": settings,
        "images": {**images.metadata(), **generator, "digest": digests["images"]},
        "reals": {**reals.metadata(), "digest": digests["reals"]},
        "versions": {"pggan_fast": __version__, "torch": torch.__version__, "numpy": np.__version__},
        "machine": {
            "device": str(device),
            "system": f"{platform.system()} {platform.machine()}",
            "threads": torch.get_num_threads(),
        },
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "seconds": round(time.monotonic() - started, 2),
    }
    if not processes.writes:
        return report
    if config.nearest is not None:
        kind = save_nearest(config.nearest, images, reals, count=count, device=device, batch_size=config.batch_size)
        print(f"written: {config.nearest}, nearest by {kind}")
    if config.out is not None:
        write_json(config.out, report)
        print(f"written: {config.out}")
    return report


def _measure(
    config: EvaluateConfig,
    device: torch.device,
    processes: Processes,
    images: Source,
    reals: Source,
    count: int,
) -> tuple[dict[str, float], dict[str, Any], dict[str, str]]:
    """Return the values, the metrics' settings, and a digest of each set, of `count` images and of the reals."""
    reals_count = config.reals_count or count
    try:
        metrics = MetricSet(
            metric_names(config.metrics), seed=config.seed, device=device, inception_weights=config.inception_weights
        )
        with metrics:
            digests = {}
            for name, source, add, number in (
                ("reals", reals, add_reals, reals_count),
                ("images", images, add_fakes, count),
            ):
                digests[name] = add(
                    metrics, source, number, batch_size=config.batch_size, processes=processes, text=name
                )
                print(f"{name}: {number:,} of {_text(source.size)} px, {source.metadata()['kind']}", flush=True)
            if not processes.writes:  # the values are the first process's
                return {}, {}, digests
            return metrics.values(), metrics.settings(), digests
    except UserError:  # of the images
        raise
    except ValueError as error:  # a size, a number of images or a library that a metric cannot do with or without
        raise UserError(f"--metrics {config.metrics}: {error}") from error


def open_sources(config: EvaluateConfig, device: torch.device) -> tuple[Source, Source, dict[str, Any]]:
    """Return the images that are evaluated, those they are compared with, and metadata of the generator.

    Raises UserError if they cannot be compared.
    """
    seed = config.seed
    if config.images is not None:
        if is_prepared(config.reals) and not is_prepared(config.images):
            images = files_like(config.images, PreparedData(config.reals), resolution=config.resolution, seed=seed)
        else:
            images = folder_source(config.images, "--images", resolution=config.resolution, seed=seed)
        reals = folder_source(config.reals, "--reals", size=images.size, channels=images.channels, seed=seed)
        metadata: dict[str, Any] = {}
    else:
        path, (G, made) = config.weights or config.run, trained_generator(config.run, config.weights)
        resolution = config.resolution or G.resolution
        _check_resolution(resolution, made["resolution"])
        reals = folder_source(
            config.reals or _data_of_run(config.run),
            "--reals",
            size=image_size(resolution, G.base),
            channels=G.options["image_channels"],
            seed=seed,
        )
        same_classes = G.label_dim and isinstance(reals, PreparedImages) and reals.data.classes == made["classes"]
        images = GeneratedImages(
            G.to(device, memory_format=torch.channels_last).eval(),
            seed=seed,
            resolution=resolution,
            stage_resolution=made["resolution"],
            alpha=alpha_of(made, device),
            labels=reals.labels() if same_classes else None,
        )
        metadata = {"path": str(path.absolute()), "images_shown": made["images"]}
    if images.channels != reals.channels:
        raise UserError(f"--reals: have {reals.channels} channels, the evaluated images {images.channels}")
    if images.size != reals.size:
        raise UserError(f"--reals: are {_text(reals.size)} px, the evaluated images {_text(images.size)}")
    return images, reals, metadata


def _count(config: EvaluateConfig, images: Source, reals: Source) -> int:
    """Return the number of images of each set. Raises UserError if more are asked for than there are."""
    if config.reals_count is not None and config.reals_count > (reals.count or 0):
        raise UserError(f"--reals-count {config.reals_count}: there are only {reals.count}")
    compared = (images, reals) if config.reals_count is None else (images,)
    there = [source.count for source in compared if source.count is not None]
    if config.count is None:
        return min([*there, PAPERS_COUNT])
    if not there:
        return config.count
    if config.count > min(there):
        raise UserError(f"--count {config.count}: there are only {min(there)} images to compare")
    return config.count


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _check_resolution(resolution: int, stage_resolution: int) -> None:
    larger, smaller = max(resolution, stage_resolution), min(resolution, stage_resolution)
    if larger % smaller:
        raise UserError(f"--resolution {resolution}: must be {stage_resolution} times or divided by a whole number")


def _data_of_run(run: Path) -> Path:
    """Return the prepared data that `run` names. Raises UserError if its config.json is damaged."""
    return read_config(run, "--run")[1].data
