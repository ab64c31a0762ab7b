"""Experiment trackers of `train --track`, each through its own package and configured by its own environment variables.

Every tracker gets the settings, each line of stats.jsonl and each sample grid over images shown. A run that is resumed
continues its tracked run, which is found by the run's id.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from pggan_fast.training.run_folder import RunFolder
from pggan_fast.utils.images import rgb_array, to_pil
from pggan_fast.utils.options import to_json

PROJECT = "pggan-fast"


class Tracker(Protocol):
    """A consumer of what a run reports; whatever a method raises is a warning of `Loggers`."""

    def tick(self, line: dict[str, Any]) -> None:
        """Take the values of a line of stats.jsonl."""

    def grid(self, images: int, image: np.ndarray) -> None:
        """Take a sample grid, uint8 [H, W, C], after `images` shown images."""

    def close(self, *, failed: bool) -> None:
        """Send what is left and end the tracked run."""


class TensorBoard:
    """Event files in the run folder. Whatever an earlier process wrote beyond `images` is dropped."""

    def __init__(self, folder: Path, images: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # an extra; whoever asks for it has seen that it is there

        _wait_for_a_later_name(folder)
        self._writer = SummaryWriter(str(folder), purge_step=images + 1)

    def tick(self, line: dict[str, Any]) -> None:
        for name, value in numbers(line).items():
            self._writer.add_scalar(name, value, line["images"])
        self._writer.flush()

    def grid(self, images: int, image: np.ndarray) -> None:
        self._writer.add_image("samples", image, images, dataformats="HWC")

    def close(self, *, failed: bool = False) -> None:
        self._writer.close()


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait for the second after that in which the newest event file was made, if it is this one.

    TensorBoard reads the files in the order of their names, which tell seconds and then nothing that is in order: of
    two from one second it could take the later for the earlier, and drop the wrong values.
    """
    seconds = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*.*")]
    newest = max((int(text) for text in seconds if text.isascii() and text.isdecimal() and len(text) < 12), default=0)
    if newest == int(time.time()):
        time.sleep(max(0.0, newest + 1 - time.time()))


class Wandb:
    """Weights & Biases: online if WANDB_MODE or a login says so, otherwise offline in RUN/wandb for `wandb sync`."""

    def __init__(self, run: RunFolder) -> None:
        import wandb

        self._image = wandb.Image
        # Without a login, init would ask for one on a terminal and raise elsewhere.
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_name(run),
            id=run.id,
            resume="allow",
            dir=run.path,
            config=settings(run),
            mode=mode,
            settings=wandb.Settings(console="off"),  # standard output stays as the trainer set it up
        )
        # Not wandb's own step, which refuses the values between a checkpoint and a kill when they come again.
        self._run.define_metric("*", step_metric="images")

    def tick(self, line: dict[str, Any]) -> None:
        self._run.log({"images": line["images"], **numbers(line)})

    def grid(self, images: int, image: np.ndarray) -> None:
        self._run.log({"images": images, "samples": self._image(to_pil(image))})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """MLflow: the server of MLFLOW_TRACKING_URI, otherwise a database and artifacts in RUN/mlflow."""

    def __init__(self, run: RunFolder) -> None:
        from mlflow import MlflowClient  # not the fluent functions, which know one run per process and end it at exit
        from mlflow.entities import Metric, Param
        from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

        self._metric = Metric
        folder = (run.path / "mlflow").absolute()
        local = "MLFLOW_TRACKING_URI" not in os.environ
        if local:
            folder.mkdir(exist_ok=True)
        self._client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}" if local else None)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            artifacts = (folder / "artifacts").as_uri() if local else None
            experiment_id = self._client.create_experiment(name, artifact_location=artifacts)
        else:
            experiment_id = experiment.experiment_id
        found = self._client.search_runs([experiment_id], f"tags.pggan_fast_run = '{run.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.set_terminated(self._id, "RUNNING")
        else:
            tags = {"pggan_fast_run": run.id, MLFLOW_RUN_NAME: run_name(run)}
            self._id = self._client.create_run(experiment_id, tags=tags).info.run_id
            params = [Param(key, str(value)) for key, value in settings(run).items()]
            self._client.log_batch(self._id, params=params)

    def tick(self, line: dict[str, Any]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, line["images"]) for name, value in numbers(line).items()]
        self._client.log_batch(self._id, metrics)

    def grid(self, images: int, image: np.ndarray) -> None:
        self._client.log_image(self._id, to_pil(image), f"samples/{images:09d}.png")

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


class Trackio:
    """Trackio: local files (TRACKIO_DIR), or a Space with TRACKIO_SPACE_ID; `trackio show` displays them."""

    def __init__(self, run: RunFolder) -> None:
        import trackio

        self._image = trackio.Image
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{run_name(run)}-{run.id}",  # a name is all that trackio knows a run by
            space_id=os.environ.get("TRACKIO_SPACE_ID"),
            config=settings(run),
            resume="allow",
            embed=False,
        )

    def tick(self, line: dict[str, Any]) -> None:
        self._run.log(numbers(line), step=line["images"])

    def grid(self, images: int, image: np.ndarray) -> None:
        self._run.log({"samples": self._image(Image.fromarray(rgb_array(image)))}, step=images)

    def close(self, *, failed: bool) -> None:
        self._run.finish()


TRACKERS: dict[str, Callable[[RunFolder], Tracker]] = {"wandb": Wandb, "mlflow": MLflow, "trackio": Trackio}
"""Trackers by the name of their module and of their extra; `Loggers` opens TensorBoard itself."""


def run_name(run: RunFolder) -> str:
    """Return the name of the run's folder."""
    return run.path.absolute().name


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """Return every number of a line of stats.jsonl but `images`, which they are shown over."""
    return {name: value for name, value in line.items() if isinstance(value, (int, float)) and name != "images"}


def settings(run: RunFolder) -> dict[str, Any]:
    """Return the settings of a run and the size of its data as plain values."""
    data = {"data_images": run.data.count, "data_channels": run.data.channels, "data_classes": len(run.data.classes)}
    return {**{name: value for name, value in to_json(run.config).items() if value is not None}, **data}
