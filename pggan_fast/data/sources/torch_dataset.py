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

from pggan_fast.data.preprocessing import Picture, from_array
from pggan_fast.data.sources.source import Item
from pggan_fast.utils.errors import UserError


class TorchDataset:
    """Images may be Pillow's, tensors or arrays, uint8 or floats in 0..1, [C, H, W] or [H, W, C]; labels whole numbers.

    Samples come through a torch DataLoader with `workers` processes (none for an IterableDataset, whose order
    would depend on them).
    """

    def __init__(self, dataset: Dataset, name: str, *, workers: int = 0) -> None:
        self.dataset = dataset
        self.name = name
        self.workers = workers
        self.count = None if isinstance(dataset, IterableDataset) else len(dataset)
        names = getattr(dataset, "classes", None)
        self.classes = None if names is None else [str(each) for each in names]
        self.facts: dict[str, Any] = {"torch dataset": name, "count": self.count}

    @classmethod
    def open(cls, name: str, *, workers: int) -> TorchDataset:
        """torch:MODULE:NAME, a Dataset or something that returns one, in a module that can be imported from here."""
        _, module, attribute = (*name.split(":"), "", "")[:3]
        if not attribute:
            raise UserError(f"--images {name}: must be torch:MODULE:NAME")
        sys.path.insert(0, "")
        try:
            dataset = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"--images {name}: cannot be imported ({error})") from error
        finally:
            sys.path.remove("")
        dataset = dataset if isinstance(dataset, Dataset) else dataset()
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
            image, label = (sample, None) if isinstance(sample, _Caught) else _parts(sample)
            if label is not None:
                label = str(int(label)) if self.classes is None else int(label)
            yield Item(f"{self.name}[{index}]", label, partial(_picture, image))


@dataclass
class _Caught:
    """An exception of one sample, which must not end the whole."""

    reason: str


class _From(Dataset):
    """A map-style dataset from number `start` on."""

    def __init__(self, dataset: Dataset, start: int) -> None:
        self.dataset = dataset
        self.start = start

    def __len__(self) -> int:
        return len(self.dataset) - self.start

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[self.start + index]
        except Exception as error:  # whatever the user's code raises, this sample is what is wrong
            return _Caught(f"{type(error).__name__}: {error}")


def _unchanged(sample: Any) -> Any:
    return sample


def _parts(sample: Any) -> tuple[Any, Any]:
    """(image, label or None)."""
    if isinstance(sample, dict):
        return sample["image"], sample.get("label")
    if isinstance(sample, (tuple, list)):
        return sample[0], sample[1] if len(sample) > 1 else None
    return sample, None


def _picture(image: Any) -> Picture:
    if isinstance(image, _Caught):
        raise ValueError(image.reason)
    if isinstance(image, Image.Image):
        return image
    return from_array(image.numpy() if isinstance(image, torch.Tensor) else np.asarray(image))
