"""A dataset of Hugging Face `datasets`: from the hub, from files, saved to disk, or streaming."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pggan_fast.data.names import one_line
from pggan_fast.data.preprocessing import AnyImage, measure, read
from pggan_fast.data.sources.source import Item
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.optional import require


class HuggingFace:
    """A `datasets.Dataset` or `IterableDataset` with a column of images and, for classes, one of class labels.

    `name` is what errors and the manifest call it. The first column of each kind is taken. A row may name a file
    instead of holding its bytes; it is read only below one of `folders`, so that nobody's rows pull in other files.
    """

    def __init__(self, dataset: Any, name: str, *, folders: Sequence[Path] = ()) -> None:
        datasets = _library(name)
        features = dataset.features or {}
        images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
        labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        if not images:
            raise UserError(f"--images {name}: has no column of images (columns: {', '.join(features) or 'unknown'})")
        self.name = name
        self._folders = [os.path.realpath(folder) for folder in folders]
        self._image = images[0]
        self._label = labels[0] if labels else None
        self.classes = list(features[self._label].names) if labels else None
        self.count = len(dataset) if isinstance(dataset, datasets.Dataset) else None
        # Undecoded, so that the threads of prepare decode and a bad image spoils no other one.
        chosen = dataset.select_columns([self._image, *labels[:1]])
        self._rows = chosen.cast_column(self._image, datasets.Image(decode=False))
        fingerprint = dataset._fingerprint if self.count is not None else None
        self.known = fingerprint is not None
        self.metadata: dict[str, Any] = {"hugging face": name, "fingerprint": fingerprint, "column": self._image}

    @classmethod
    def open(cls, name: str, *, split: str, streaming: bool) -> HuggingFace:
        """Open a dataset by its name on the hub, or a folder: of files, or one that `save_to_disk` wrote."""
        datasets = _library(name)
        folder = Path(name.removeprefix("hf:"))
        try:
            if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
                dataset = datasets.load_from_disk(str(folder))
                dataset = dataset[split] if isinstance(dataset, datasets.DatasetDict) else dataset
                dataset = dataset.to_iterable_dataset() if streaming else dataset
            else:
                dataset = datasets.load_dataset(name.removeprefix("hf:"), split=split, streaming=streaming)
        except Exception as error:  # of the network, of the hub, of the dataset's own making
            raise UserError(f"--images {name}: cannot be loaded, split {split} ({one_line(error)})") from error
        return cls(dataset, name, folders=[folder] if folder.is_dir() else _downloaded(datasets, str(folder)))

    def items(self, start: int = 0) -> Iterator[Item]:
        for index, row in enumerate(self._rows.skip(start) if start else self._rows, start):
            stored = row[self._image] or {}
            label = row[self._label] if self._label else None
            measured = partial(self._measure, stored)
            yield Item(f"{self.name}[{index}]", label, partial(self._read, stored), measured)

    def _read(self, stored: dict[str, Any]) -> AnyImage:
        return read("", self._file(stored))

    def _measure(self, stored: dict[str, Any]) -> tuple[int, int]:
        return measure("", self._file(stored))

    def _file(self, stored: dict[str, Any]) -> io.BytesIO | Path:
        """Return the bytes in a row, or the file that it names. Raises ValueError for a file from somewhere else."""
        if stored.get("bytes") is not None:
            return io.BytesIO(stored["bytes"])
        path = stored.get("path")
        if path is None:
            raise ValueError("there is no image in this row")
        real = os.path.realpath(path)
        if not any(os.path.commonpath([real, folder]) == folder for folder in self._folders):
            raise ValueError("the row names a file outside of the dataset, which is not read")
        return Path(real)


def _downloaded(datasets: Any, name: str) -> list[Path]:
    """Return the folders that the files of the dataset `name` of the hub are downloaded to and unpacked in."""
    from huggingface_hub import constants

    hub = Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}"
    return [hub, Path(datasets.config.EXTRACTED_DATASETS_PATH)]


def _library(name: str) -> Any:
    return require("datasets", extra="datasets", what=f"--images {name}")
