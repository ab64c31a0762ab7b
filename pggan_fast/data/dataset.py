"""Prepared data on disk: one uint8 array per resolution, labels, and what they are.

A prepared folder holds `images_<r>.npy` [count, channels, height, width] for every power of two r from
4 to its resolution, `labels.npy` (int64, [count]) and `dataset.json`. r is the shorter side: images
whose smallest level, the base, is 4x6 are 8x12 at r = 8. The arrays are memory-mapped, so a stage of
training reads nothing but its own resolution.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from pggan_fast.networks.resolutions import LOWEST, SQUARE, image_size, resolutions_up_to
from pggan_fast.utils.atomic_write import ASIDE, atomic_write, write_json
from pggan_fast.utils.errors import UserError

FORMAT = "pggan-fast dataset 1"
MANIFEST = "dataset.json"
JOURNAL = "journal.jsonl"
FLUSH_SECONDS = 1.0  # of work that a killed process may lose


def pyramid(image: np.ndarray) -> dict[int, np.ndarray]:
    """uint8 levels {r: [C, height, width]} of a uint8 image [C, H, W], by 2x2 means down to r = 4.

    As the official exporter does it: the means stay in float from level to level, and every level
    is rounded half to even from there. Float32 holds these sums exactly up to 1024 px.
    """
    levels = {min(image.shape[1:]): image}
    mean = image.astype(np.float32)
    while min(mean.shape[1:]) > LOWEST:
        rows = mean[:, 0::2] + mean[:, 1::2]
        mean = (rows[:, :, 0::2] + rows[:, :, 1::2]) * np.float32(0.25)
        levels[min(mean.shape[1:])] = np.rint(mean).astype(np.uint8)
    return levels


def check_free(out: Path) -> None:
    """Raises UserError unless `out` is absent or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: is there already and not empty; choose another folder")


class DatasetWriter:
    """Writes a prepared folder beside its final place and moves it there in `commit`.

    Use as a context manager: whatever was not committed is removed. With `work`, a JSON description
    of what is being prepared, it is kept instead until `discard`, and a writer made later with the
    same `out` and `work` goes on: `taken` items of the source have been added or skipped already.
    `out` may exist if it is empty. Raises UserError if it is not.

    `classes` name the labels 0, 1, ...; None: labels are names, and the classes are those that occur, in
    order (none at all if there are fewer than two).

    Attributes: `labels`, `files` and `skipped` (name -> reason) of the items taken so far.
    """

    def __init__(
        self,
        out: Path,
        *,
        resolution: int,
        channels: int,
        classes: list[str] | None,
        base: tuple[int, int] = SQUARE,
        work: dict[str, Any] | None = None,
    ) -> None:
        check_free(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        self.out = out
        self.resolution = resolution
        self.channels = channels
        self.classes = classes
        self.base = base
        self.labels: list[int | str | None] = []
        self.files: list[str] = []
        self.skipped: dict[str, str] = {}
        self.taken = 0
        self._flushed = time.monotonic()
        self._kept = work is not None
        self._aside = out.absolute().with_name(f".{out.name}.{'partial' if work else f'{os.getpid()}{ASIDE}'}")
        self._aside.mkdir(exist_ok=self._kept)
        self._lock = open(self._aside / "lock", "w")  # noqa: SIM115 - closed by __exit__
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--out {out}: another process is preparing it") from None
        # Everything that what was written depends on.
        facts = {"work": work, "shape": [channels, *image_size(resolution, base)], "classes": classes}
        entries = self._entries_of_before(facts)
        shapes = {r: (channels, *image_size(r, base)) for r in resolutions_up_to(resolution)}
        self._arrays = {r: _GrowingArray(self._aside / f"images_{r}.npy", shape) for r, shape in shapes.items()}
        self._journal = self._go_on_after(entries)

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        if not self._kept:
            shutil.rmtree(self._aside, ignore_errors=True)

    def add(self, image: np.ndarray | dict[int, np.ndarray], label: int | str | None, name: str) -> None:
        """One uint8 image [channels, H, W] of the resolution, or its `pyramid`, its class and where it is from."""
        levels = image if isinstance(image, dict) else pyramid(image)
        for resolution, level in levels.items():
            self._arrays[resolution].append(level)
        self._note({"name": name, "label": label})

    def skip(self, name: str, reason: str) -> None:
        """An item of the source that is left out."""
        self._note({"name": name, "skipped": reason})

    def discard(self) -> None:
        """Keep nothing of what was written."""
        self._kept = False

    def commit(self, **facts: object) -> None:
        """Finish the files, put `facts` into dataset.json too, and move the folder into place."""
        self._close()
        if self.classes is None:
            self.classes = _class_names(self.labels)
            index = {name: index for index, name in enumerate(self.classes)}
            self.labels = [index.get(name, 0) for name in self.labels]
        labels = np.array(self.labels, dtype=np.int64)
        np.save(self._aside / "labels.npy", labels)
        counts = np.bincount(labels, minlength=len(self.classes)).tolist() if self.classes else []
        manifest = {
            "format": FORMAT,
            "resolution": self.resolution,
            "base": list(self.base),
            "channels": self.channels,
            "count": len(labels),
            "classes": self.classes,
            "class_counts": dict(zip(self.classes, counts, strict=True)),
            "skipped": self.skipped,
            **facts,
            "files": self.files,
        }
        write_json(self._aside / MANIFEST, manifest)
        for name in (JOURNAL, "work.json", "lock"):
            (self._aside / name).unlink()
        os.replace(self._aside, self.out)

    def _entries_of_before(self, facts: dict[str, Any]) -> list[dict[str, Any]]:
        """What an earlier writer with the same `facts` noted. What one with others left is removed."""
        work, journal = self._aside / "work.json", self._aside / JOURNAL
        if not (work.exists() and json.loads(work.read_text(encoding="utf-8")) == facts):
            for left in self._aside.glob("*.*"):
                left.unlink()
            write_json(work, facts)
        lines = journal.read_text(encoding="utf-8").splitlines(keepends=True) if journal.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _go_on_after(self, entries: list[dict[str, Any]]) -> TextIO:
        """Take over the entries whose images are in every array (the process may have been killed at any point).

        Returns the journal, cut off there and opened for more.
        """
        whole = min(array.items_in_file() for array in self._arrays.values())
        with atomic_write(self._aside / JOURNAL) as aside, open(aside, "w", encoding="utf-8") as self._journal:
            for entry in entries:
                if "label" in entry and len(self.labels) == whole:
                    break
                self._note(entry)
        for array in self._arrays.values():
            array.start_after(len(self.labels))
        return open(self._aside / JOURNAL, "a", encoding="utf-8")

    def _note(self, entry: dict[str, Any]) -> None:
        self._journal.write(json.dumps(entry) + "\n")
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            for file in (*self._arrays.values(), self._journal):
                file.flush()
            self._flushed = time.monotonic()
        self.taken += 1
        if "label" in entry:
            self.labels.append(entry["label"])
            self.files.append(entry["name"])
        else:
            self.skipped[entry["name"]] = entry["skipped"]

    def _close(self) -> None:
        for array in self._arrays.values():
            array.close()
        self._journal.close()
        self._lock.close()


def _class_names(labels: list[str | None]) -> list[str]:
    """Each once, numbers by value and before words."""
    names = {name for name in labels if name is not None}
    if len(names) < 2:
        return []
    return sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))


class _GrowingArray:
    """A uint8 .npy file [count, *shape] whose count is written into its header at the end."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.count = 0
        self._file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115 - closed by close()
        self._size = os.fstat(self._file.fileno()).st_size
        self._write_header()
        self._header = self._file.tell()

    def items_in_file(self) -> int:
        """How many whole items an earlier process has left."""
        return max(0, self._size - self._header) // int(np.prod(self.shape))

    def start_after(self, count: int) -> None:
        """Keep the first `count` items and append from there."""
        self.count = count
        self._file.truncate(self._header + count * int(np.prod(self.shape)))
        self._file.seek(0, os.SEEK_END)

    def append(self, item: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(item).tobytes())
        self.count += 1

    def flush(self) -> None:
        self._file.flush()

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

    Attributes: `resolution`, `base` (height and width at resolution 4), `channels`, `count`, `classes`,
    `labels` (int64 [count]).
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
            self.base: tuple[int, int] = tuple(manifest.get("base", SQUARE))
            self.channels: int = manifest["channels"]
            self.count: int = manifest["count"]
            self.classes: list[str] = manifest["classes"]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"--data {path}: {MANIFEST} is damaged ({error!r}); {hint}") from error
        self.labels = np.array(self._map("labels.npy", (self.count,), np.int64))  # a copy outlives the file
        self._images: dict[int, np.ndarray] = {}

    def images(self, resolution: int) -> np.ndarray:
        """The mapped uint8 array [count, channels, height, width] at `resolution`, the shorter side."""
        if resolution not in self._images:
            shape = (self.count, self.channels, *image_size(resolution, self.base))
            self._images[resolution] = self._map(f"images_{resolution}.npy", shape, np.uint8)
        return self._images[resolution]

    def facts(self) -> dict[str, object]:
        """What a run has to find unchanged when it goes on."""
        return {"count": self.count, "channels": self.channels, "base": list(self.base), "classes": self.classes}

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
