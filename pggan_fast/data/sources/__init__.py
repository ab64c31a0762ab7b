"""Where `prepare` and `evaluate` take images from."""

from __future__ import annotations

from pathlib import Path

from pggan_fast.data.manifest import is_prepared
from pggan_fast.data.names import one_line, printable
from pggan_fast.data.sources.array import Array
from pggan_fast.data.sources.files import Folder, Zip
from pggan_fast.data.sources.huggingface import HuggingFace
from pggan_fast.data.sources.source import Item, Source, SourceError
from pggan_fast.data.sources.tfrecords import LEVEL, TfRecords
from pggan_fast.data.sources.torch_dataset import TorchDataset
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.program import program
from pggan_fast.utils.regular_file import irregular_kind

__all__ = [
    "Array",
    "Folder",
    "HuggingFace",
    "Item",
    "Source",
    "SourceError",
    "TfRecords",
    "TorchDataset",
    "Zip",
    "open_files",
    "open_source",
]


def open_source(
    images: Path, *, resolution: int | None = None, split: str = "train", streaming: bool = False, workers: int = 0
) -> Source:
    """Open what `--images` names: a folder, a .zip, .npy or .tfrecords file, hf:NAME, or torch:MODULE:NAME."""
    name = str(images)
    if name.startswith("hf:"):
        return HuggingFace.open(name, split=split, streaming=streaming)
    if name.startswith("torch:"):
        return TorchDataset.open(name, workers=workers)
    kind = _kind(images, "--images")
    if kind == ".tfrecords":
        return TfRecords(images, resolution)
    if kind not in FILES:
        raise UserError(
            f"--images {printable(name)}: must be a folder, .zip, .npy, .tfrecords, hf:NAME or torch:MODULE:NAME"
        )
    return FILES[kind](images)


def open_files(images: Path, option: str) -> Folder | Zip | Array:
    """Open a folder, a .zip or a .npy file, whose images can be read in any order."""
    kind = _kind(images, option)
    if kind not in FILES:
        hint = f"; prepare it first: {program()} prepare" if kind == ".tfrecords" else ""
        raise UserError(f"{option} {printable(str(images))}: must be a folder, .zip, .npy or prepared data{hint}")
    return FILES[kind](images, option=option)


FILES = {"folder": Folder, ".zip": Zip, ".npy": Array}


def _kind(images: Path, option: str) -> str:
    """Return "folder", ".tfrecords" for one of those too, or what the file's name ends in."""
    shown = f"{option} {printable(str(images))}"
    try:
        if not images.exists():
            raise UserError(f"{shown}: no such folder or file")
        if not images.is_dir():
            if kind := irregular_kind(images):
                raise UserError(f"{shown}: is {kind}, must be a folder or file")
            return images.suffix.lower()
        if is_prepared(images):
            raise UserError(f"{shown}: is prepared data already; train on it with --data")
        return ".tfrecords" if any(LEVEL.fullmatch(file.name) for file in images.iterdir()) else "folder"
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        if isinstance(error, UserError):
            raise
        raise UserError(f"{shown}: cannot be read ({one_line(error)})") from error
