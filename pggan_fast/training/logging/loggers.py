"""Who is told what a run does: report.html and, if it is installed, TensorBoard."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pggan_fast.training.logging.report import Report
from pggan_fast.training.run_folder import RunFolder


class Observers:
    """Everything that follows `run` from `images` shown images on. Use as a context manager.

    Of several processes one `writes`; to the others nothing happens here.
    """

    def __init__(self, run: RunFolder, images: int, *, writes: bool = True) -> None:
        wanted = run.config.tensorboard
        wanted = writes and (find_spec("tensorboard") is not None if wanted is None else wanted)
        self._report = Report(run) if writes else None
        self._tensorboard = TensorBoard(run.path / "tensorboard", images) if wanted else None

    def __enter__(self) -> Observers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._report:
            self._report.write(running=False)
        if self._tensorboard:
            self._tensorboard.close()

    def tick(self, line: dict[str, Any]) -> None:
        """The values of a line of stats.jsonl, after it was written."""
        if self._report:
            self._report.write()
        if self._tensorboard:
            self._tensorboard.tick(line)

    def grid(self, images: int, picture: np.ndarray) -> None:
        """A sample grid, uint8 [H, W, C]."""
        if self._tensorboard:
            self._tensorboard.grid(images, picture)


class TensorBoard:
    """Scalars and sample grids over images shown. Whatever an earlier run wrote beyond `images` is dropped."""

    def __init__(self, folder: Path, images: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # an extra; whoever asks for it has seen that it is there

        self._writer = SummaryWriter(str(folder), purge_step=images + 1)

    def tick(self, line: dict[str, Any]) -> None:
        for name, value in line.items():
            if isinstance(value, (int, float)) and name != "images":
                self._writer.add_scalar(name, value, line["images"])
        self._writer.flush()

    def grid(self, images: int, picture: np.ndarray) -> None:
        self._writer.add_image("samples", picture, images, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()
