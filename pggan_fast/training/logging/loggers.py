"""Loggers of a run: report.html, sample grids, TensorBoard's events and the trackers of --track."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from types import TracebackType
from typing import Any

import numpy as np

from pggan_fast.training.logging.report import Report
from pggan_fast.training.logging.trackers import TRACKERS, TensorBoard, Tracker
from pggan_fast.training.run_folder import RunFolder
from pggan_fast.utils.images import save_png

__all__ = ["Loggers", "TensorBoard"]


class Loggers:
    """Everything that follows `run` from `images` shown images on. Use as a context manager.

    Whatever one of them raises is a warning, once; training continues, and the logger is asked again next time, unless
    it could not even be opened. Of several processes one `writes`; to the others nothing happens here.
    """

    def __init__(self, run: RunFolder, images: int, *, writes: bool = True) -> None:
        self.run, self.writes = run, writes
        self._warned: set[str] = set()
        self._trackers: dict[str, Tracker] = {}
        requested = run.config.tensorboard
        tracked = run.config.trackers()
        if writes:
            if "tensorboard" in tracked or (find_spec("tensorboard") is not None if requested is None else requested):
                self._open("tensorboard", lambda: TensorBoard(run.path / "tensorboard", images))
            for name in tracked:
                if name in TRACKERS:
                    self._open(name, partial(TRACKERS[name], run))
        self._report = Report(run)

    def __enter__(self) -> Loggers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self.writes:
            self._try("report.html", lambda: self._report.write(running=False))
        for name, tracker in self._trackers.items():
            self._try(name, partial(tracker.close, failed=kind is not None))

    def tick(self, line: dict[str, Any]) -> None:
        """Take the values of a line of stats.jsonl, after it was written."""
        if self.writes:
            self._try("report.html", self._report.write)
        for name, tracker in self._trackers.items():
            self._try(name, partial(tracker.tick, line))

    def grid(self, images: int, image: np.ndarray) -> None:
        """Take a sample grid, uint8 [H, W, C]."""
        if self.writes:
            self._try("samples", lambda: save_png(self.run.samples / f"{images:09d}.png", image))
        for name, tracker in self._trackers.items():
            self._try(name, partial(tracker.grid, images, image))

    def _open(self, name: str, open_tracker: Callable[[], Tracker]) -> None:
        def opened() -> None:
            self._trackers[name] = open_tracker()

        self._try(name, opened)

    def _try(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit and cancellation too: a month of training does not end for a chart
            if name not in self._warned:
                self._warned.add(name)
                reason = _text_of(error) or type(error).__name__
                what = f"--track {name}" if name in TRACKERS else self.run.path / name
                print(f"warning: {what}: cannot be written ({reason}); training continues", flush=True)


def _text_of(error: BaseException) -> str:
    try:
        return " ".join(str(error).split())[:200]
    except Exception:  # somebody else's class, whose text fails too
        return ""
