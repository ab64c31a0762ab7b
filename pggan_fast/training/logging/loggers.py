"""Loggers of a run: report.html, sample grids and, if it is installed, TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pggan_fast.training.logging.report import Report
from pggan_fast.training.run_folder import RunFolder
from pggan_fast.utils.images import save_png


class Loggers:
    """Everything that follows `run` from `images` shown images on. Use as a context manager.

    Whatever one of them raises is a warning, once; training continues, and the logger is asked again next time.
    Of several processes one `writes`; to the others nothing happens here.
    """

    def __init__(self, run: RunFolder, images: int, *, writes: bool = True) -> None:
        self.run, self.writes = run, writes
        self._warned: set[str] = set()
        self._tensorboard: TensorBoard | None = None
        wanted = run.config.tensorboard
        if writes and (find_spec("tensorboard") is not None if wanted is None else wanted):
            self._try("tensorboard", lambda: self._open_tensorboard(images))
        self._report = Report(run)

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, *_: object) -> None:
        if self.writes:
            self._try("report.html", lambda: self._report.write(running=False))
        if self._tensorboard:
            self._try("tensorboard", self._tensorboard.close)

    def tick(self, line: dict[str, Any]) -> None:
        """Take the values of a line of stats.jsonl, after it was written."""
        if self.writes:
            self._try("report.html", self._report.write)
        if self._tensorboard:
            self._try("tensorboard", lambda: self._tensorboard.tick(line))

    def grid(self, images: int, image: np.ndarray) -> None:
        """Take a sample grid, uint8 [H, W, C]."""
        if self.writes:
            self._try("samples", lambda: save_png(self.run.samples / f"{images:09d}.png", image))
        if self._tensorboard:
            self._try("tensorboard", lambda: self._tensorboard.grid(images, image))

    def _open_tensorboard(self, images: int) -> None:
        self._tensorboard = TensorBoard(self.run.path / "tensorboard", images)

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a month of training does not end for a chart
            if name not in self._warned:
                self._warned.add(name)
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                print(f"warning: {self.run.path / name}: cannot be written ({reason}); training continues", flush=True)


class TensorBoard:
    """Scalars and sample grids over images shown. Whatever an earlier run wrote beyond `images` is dropped."""

    def __init__(self, folder: Path, images: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # an extra; whoever asks for it has seen that it is there

        self._writer = SummaryWriter(str(folder), purge_step=images + 1)

    def tick(self, line: dict[str, Any]) -> None:
        """Write every number of a line of stats.jsonl."""
        for name, value in line.items():
            if isinstance(value, (int, float)) and name != "images":
                self._writer.add_scalar(name, value, line["images"])
        self._writer.flush()

    def grid(self, images: int, image: np.ndarray) -> None:
        """Write a sample grid, uint8 [H, W, C]."""
        self._writer.add_image("samples", image, images, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()
