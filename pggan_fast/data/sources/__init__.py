"""Where `prepare` can take pictures from."""

from __future__ import annotations

from pathlib import Path

from pggan_fast.data.sources.array import Array
from pggan_fast.data.sources.files import Folder, Zip
from pggan_fast.data.sources.huggingface import HuggingFace
from pggan_fast.data.sources.source import Item, Source
from pggan_fast.data.sources.tfrecords import LEVEL, TfRecords
from pggan_fast.data.sources.torch_dataset import TorchDataset
from pggan_fast.utils.errors import UserError

__all__ = ["Array", "Folder", "HuggingFace", "Item", "Source", "TfRecords", "TorchDataset", "Zip", "open_source"]


def open_source(
    images: Path, *, resolution: int | None = None, split: str = "train", streaming: bool = False, workers: int = 0
) -> Source:
    """What `--images` names: a folder, a .zip, .npy or .tfrecords file, hf:NAME, or torch:MODULE:NAME."""
    name = str(images)
    if name.startswith("hf:"):
        return HuggingFace.open(name, split=split, streaming=streaming)
    if name.startswith("torch:"):
        return TorchDataset.open(name, workers=workers)
    if not images.exists():
        raise UserError(f"--images {images}: no such folder or file")
    if images.is_dir():
        is_records = any(LEVEL.fullmatch(file.name) for file in images.iterdir())
        return TfRecords(images, resolution) if is_records else Folder(images)
    kinds = {".zip": Zip, ".npy": Array, ".tfrecords": lambda path: TfRecords(path, resolution)}
    if images.suffix not in kinds:
        raise UserError(f"--images {images}: must be a folder, .zip, .npy, .tfrecords, hf:NAME or torch:MODULE:NAME")
    return kinds[images.suffix](images)
