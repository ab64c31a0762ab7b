"""A torch Dataset of the user's own: samples are images, (image, label) pairs, or {"image", "label"} dicts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from pggan_fast.data.names import one_line, printable
from pggan_fast.data.preprocessing import AnyImage, from_array
from pggan_fast.data.sources.source import Item
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.memory import is_out_of_memory


class TorchDataset:
    """Images may be Pillow's, tensors or arrays, uint8 or floats in 0..1, [C, H, W] or [H, W, C]; labels whole numbers.

    Samples come through a torch DataLoader with `workers` processes (none for an IterableDataset, whose order
    would depend on them).
    """

    def __init__(self, dataset: Dataset, name: str, *, workers: int = 0) -> None:
        self.dataset = dataset
        self.name = name
        self.workers = workers
        try:
            self.count = None if isinstance(dataset, IterableDataset) else len(dataset)
        except Exception as error:  # whatever the user's code raises
            raise UserError(f"--images {name}: has no length ({one_line(error)})") from error
        names = getattr(dataset, "classes", None)
        self.classes = None if names is None else [str(each) for each in names]
        self.known = False  # nobody knows what the user's code reads
        self.metadata: dict[str, Any] = {"torch dataset": name, "count": self.count}

    @classmethod
    def open(cls, name: str, *, workers: int) -> TorchDataset:
        """Open torch:MODULE:NAME, a Dataset or what returns one, in a module that can be imported from here."""
        _, module, attribute = (*name.split(":"), "", "")[:3]
        if not module or not attribute:
            raise UserError(f"--images {name}: must be torch:MODULE:NAME")
        sys.path.insert(0, "")
        try:
            dataset = getattr(importlib.import_module(module), attribute)
        except Exception as error:  # whatever the module's own code raises
            raise UserError(f"--images {name}: cannot be imported ({one_line(error)})") from error
        finally:
            sys.path.remove("")
        if not isinstance(dataset, Dataset):
            try:
                dataset = dataset()
            except Exception as error:  # whatever the user's code raises
                raise UserError(f"--images {name}: cannot be called without arguments ({one_line(error)})") from error
        if not isinstance(dataset, Dataset):
            raise UserError(f"--images {name}: is a {type(dataset).__name__}, must be a torch.utils.data.Dataset")
        return cls(dataset, name, workers=workers)

    def items(self, start: int = 0) -> Iterator[Item]:
        if self.count is None:
            samples = islice(self.dataset, start, None)
        else:
            rest = _From(self.dataset, start)
            samples = DataLoader(rest, batch_size=None, num_workers=self.workers, collate_fn=_unchanged)
        for index, sample in enumerate(samples, start):
            where = f"--images {self.name}[{index}]"
            image, label = (sample, None) if isinstance(sample, _Caught) else _parts(sample, where)
            if label is not None:
                label = _index(label, where) if self.classes is not None else str(_index(label, where))
            yield Item(f"{self.name}[{index}]", label, partial(_image_of, image))


@dataclass
class _Caught:
    """An exception of one sample, which must not end the whole unless it is about the place of all samples."""

    reason: str
    number: int | None = None  # errno, where it is an answer of the system
    no_memory: bool = False


class _From(Dataset):
    """A map-style dataset, from number `start` on."""

    def __init__(self, dataset: Dataset, start: int) -> None:
        self.dataset = dataset
        self.start = start

    def __len__(self) -> int:
        return len(self.dataset) - self.start

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[self.start + index]
        except Exception as error:  # whatever the user's code raises, this sample is what is wrong
            number = error.errno if isinstance(error, OSError) else None
            return _Caught(f"{type(error).__name__}: {error}", number, is_out_of_memory(error))


def _unchanged(sample: Any) -> Any:
    return sample


def _parts(sample: Any, where: str) -> tuple[Any, Any]:
    """Return (image, label or None). Raises UserError, which begins with `where`, for other samples."""
    if isinstance(sample, dict):
        if "image" not in sample:
            raise UserError(
                f'{where}: has the keys {", ".join(map(str, sample))}, must have "image" and may have "label"'
            )
        return sample["image"], sample.get("label")
    if isinstance(sample, (tuple, list)):
        if not sample:
            raise UserError(f"{where}: is empty, must be an image or (image, label)")
        return sample[0], sample[1] if len(sample) > 1 else None
    return sample, None


def _index(label: Any, where: str) -> int:
    """Return a label as a number. Raises UserError, which begins with `where`, for anything but one whole number."""
    try:
        value = label.item() if isinstance(label, (torch.Tensor, np.ndarray, np.generic)) else label
        number = int(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        value = number = None
    if number is None or isinstance(value, str) or number != value:
        raise UserError(f"{where}: has the label {printable(str(label)):.60}, must be one whole number")
    return number


def _image_of(image: Any) -> AnyImage:
    if isinstance(image, _Caught):
        if image.no_memory:
            raise MemoryError(image.reason)
        raise OSError(image.number, image.reason) if image.number is not None else ValueError(image.reason)
    if isinstance(image, Image.Image):
        return image
    return from_array(image.numpy() if isinstance(image, torch.Tensor) else np.asarray(image))
