"""Prepared data on disk: one uint8 array per resolution, labels, and what they are.

A prepared folder holds `images_<r>.npy` [count, channels, r, r] for every power of two from 4 to
its resolution, `labels.npy` (int64, [count]) and `dataset.json`. The arrays are memory-mapped, so
a stage of training reads nothing but its own resolution.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np

from pggan_fast.training.errors import UserError
from pggan_fast.training.files import ASIDE, write_json

FORMAT = "pggan-fast dataset 1"
MANIFEST = "dataset.json"
LOWEST = 4


def resolutions_up_to(top: int) -> list[int]:
    """4, 8, ..., top."""
    return [2**level for level in range(2, top.bit_length())]


def pyramid(image: np.ndarray) -> dict[int, np.ndarray]:
    """uint8 levels {r: [C, r, r]} of a uint8 image [C, R, R], by 2x2 means down to 4 px.

    As the official exporter does it: the means stay in float from level to level, and every level
    is rounded half to even from there. Float32 holds these sums exactly up to 1024 px.
    """
    levels = {image.shape[-1]: image}
    mean = image.astype(np.float32)
    while mean.shape[-1] > LOWEST:
        rows = mean[:, 0::2] + mean[:, 1::2]
        mean = (rows[:, :, 0::2] + rows[:, :, 1::2]) * np.float32(0.25)
        levels[mean.shape[-1]] = np.rint(mean).astype(np.uint8)
    return levels


def check_free(out: Path) -> None:
    """Raises UserError unless `out` is absent or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: is there already and not empty; choose another folder")


class DatasetWriter:
    """Writes a prepared folder beside its final place and moves it there in `commit`.

    Use as a context manager: whatever was not committed is removed. `out` may exist if it is
    empty. Raises UserError if it is not.
    """

    def __init__(self, out: Path, *, resolution: int, channels: int, classes: list[str]) -> None:
        check_free(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        self.out = out
        self.resolution = resolution
        self.channels = channels
        self.classes = classes
        self.labels: list[int] = []
        self.files: list[str] = []
        self._aside = out.absolute().with_name(f".{out.name}.{os.getpid()}{ASIDE}")
        self._aside.mkdir()
        self._arrays = {
            r: _GrowingArray(self._aside / f"images_{r}.npy", (channels, r, r)) for r in resolutions_up_to(resolution)
        }

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for array in self._arrays.values():
            array.close()
        shutil.rmtree(self._aside, ignore_errors=True)

    def add(self, image: np.ndarray, label: int, name: str) -> None:
        """One uint8 image [channels, R, R], R the resolution, its class and where it is from."""
        for resolution, level in pyramid(image).items():
            self._arrays[resolution].append(level)
        self.labels.append(label)
        self.files.append(name)

    def commit(self, **facts: object) -> None:
        """Finish the files, put `facts` into dataset.json too, and move the folder into place."""
        for array in self._arrays.values():
            array.close()
        labels = np.array(self.labels, dtype=np.int64)
        np.save(self._aside / "labels.npy", labels)
        counts = np.bincount(labels, minlength=len(self.classes)).tolist() if self.classes else []
        manifest = {
            "format": FORMAT,
            "resolution": self.resolution,
            "channels": self.channels,
            "count": len(labels),
            "classes": self.classes,
            "class_counts": dict(zip(self.classes, counts, strict=True)),
            **facts,
            "files": self.files,
        }
        write_json(self._aside / MANIFEST, manifest)
        os.replace(self._aside, self.out)


class _GrowingArray:
    """A uint8 .npy file [count, *shape] whose count is written into its header at the end."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.count = 0
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._write_header()

    def append(self, item: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(item).tobytes())
        self.count += 1

    def close(self) -> None:
        if not self._file.closed:
            self._file.seek(0)
            self._write_header()
            self._file.close()

    def _write_header(self) -> None:
        # numpy pads the header for the first axis to grow, so its length does not depend on count.
        header = {"descr": "|u1", "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


class PreparedData:
    """A prepared folder, opened for reading: arrays are mapped, not read.

    Attributes: `resolution`, `channels`, `count`, `classes`, `labels` (int64 [count]).
    Raises UserError if `path` is missing, is no prepared folder, or lacks some of its files.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        hint = "make one with: pggan-fast prepare --images FOLDER --out DATA"
        if not self.path.is_dir():
            raise UserError(f"--data {path}: no such folder; {hint}")
        if not (self.path / MANIFEST).is_file():
            raise UserError(f"--data {path}: is no prepared folder (no {MANIFEST}); {hint}")
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                raise UserError(f"--data {path}: has format {manifest['format']!r}, not {FORMAT!r}")
            self.resolution: int = manifest["resolution"]
            self.channels: int = manifest["channels"]
            self.count: int = manifest["count"]
            self.classes: list[str] = manifest["classes"]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"--data {path}: {MANIFEST} is damaged ({error!r}); {hint}") from error
        self.labels = self._map("labels.npy", (self.count,), np.int64)
        self._images: dict[int, np.ndarray] = {}

    def images(self, resolution: int) -> np.ndarray:
        """The mapped uint8 array [count, channels, resolution, resolution]."""
        if resolution not in self._images:
            shape = (self.count, self.channels, resolution, resolution)
            self._images[resolution] = self._map(f"images_{resolution}.npy", shape, np.uint8)
        return self._images[resolution]

    def facts(self) -> dict[str, object]:
        """What a run has to find unchanged when it goes on."""
        return {"count": self.count, "channels": self.channels, "classes": self.classes}

    def _map(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        try:
            array = np.load(self.path / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"--data {self.path}: cannot read {name} ({error})") from error
        if array.shape != shape or array.dtype != dtype:
            raise UserError(
                f"--data {self.path}: {name} holds {array.dtype} {list(array.shape)},"
                f" {MANIFEST} says {np.dtype(dtype)} {list(shape)}"
            )
        return array
