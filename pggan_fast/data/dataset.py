"""Prepared data on disk: one uint8 array per resolution, labels, and their manifest.

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

from pggan_fast.data.growing_array import GrowingArray, named
from pggan_fast.data.journal import JOURNAL, WORK, clear, content_digest, dataset_digest, read_entries
from pggan_fast.data.manifest import FORMAT, MANIFEST
from pggan_fast.data.names import one_line, printable
from pggan_fast.data.output import INSIDE, check_free, move_into_place, work_folder
from pggan_fast.data.prepared import PreparedData
from pggan_fast.networks.resolutions import LOWEST, SQUARE, image_size, resolutions_up_to
from pggan_fast.utils.atomic_write import ASIDE, atomic_write, write_json
from pggan_fast.utils.errors import UserError

__all__ = ["FORMAT", "MANIFEST", "DatasetWriter", "PreparedData", "check_free", "pyramid"]

FLUSH_SECONDS = 1.0  # of work that a killed process may lose


def pyramid(image: np.ndarray) -> dict[int, np.ndarray]:
    """Return the uint8 levels {r: [C, height, width]} of a uint8 image [C, H, W], by 2x2 means down to r = 4.

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


class DatasetWriter:
    """Write a prepared folder under a temporary name and move it into place in `commit`.

    Use as a context manager: whatever was not committed is removed. With `work`, a JSON description
    of what is being prepared, it is kept instead until `discard`, and a writer made later with the
    same `out` and `work` resumes: `taken` items of the source have been added or skipped already.
    `out` may exist if it is empty. Raises UserError if it is not, or cannot be written to.

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
        self._aside = work_folder(out, INSIDE if work is not None else f".{os.getpid()}{ASIDE}")
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
        self._digests: list[str] = []
        self._journal: TextIO | None = None
        self._arrays: dict[int, GrowingArray] = {}
        self._lock = self._locked()
        # Everything that what was written depends on.
        depends = {"work": work, "shape": [channels, *image_size(resolution, base)], "classes": classes}
        try:
            entries = self._earlier_entries(json.loads(json.dumps(depends)))
            shapes = {r: (channels, *image_size(r, base)) for r in resolutions_up_to(resolution)}
            for r, shape in shapes.items():
                self._arrays[r] = GrowingArray(self._aside / f"images_{r}.npy", shape)
            self._journal = self._resume_after(entries)
        except BaseException:
            self._close(quietly=True)
            raise

    def _locked(self) -> TextIO:
        """Make the folder that is written to and lock it. Raises UserError if that cannot be."""
        shown = f"--out {printable(str(self.out))}"
        try:
            if self._aside.is_symlink():
                raise UserError(f"{shown}: {self._aside} is a link, remove it")
            self._aside.mkdir(exist_ok=self._kept)
            lock = open(self._aside / "lock", "w")  # noqa: SIM115 - closed by _close
        except OSError as error:
            raise UserError(f"{shown}: cannot be written ({one_line(error)})") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise UserError(f"{shown}: another process is preparing it") from None
        except OSError:
            pass  # a file system without locks
        return lock

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._close(quietly=error is not None or not self._kept)
        if not self._kept:
            shutil.rmtree(self._aside, ignore_errors=True)

    def add(self, image: np.ndarray | dict[int, np.ndarray], label: int | str | None, name: str) -> None:
        """Add a uint8 image [channels, H, W] of the resolution, or its `pyramid`, its class and where it is from."""
        levels = image if isinstance(image, dict) else pyramid(image)
        for resolution, level in levels.items():
            self._arrays[resolution].append(level)
        self._note({"name": name, "label": label, "digest": content_digest(levels[self.resolution])})

    def skip(self, name: str, reason: str) -> None:
        """Note an item of the source that is left out."""
        self._note({"name": name, "skipped": reason})

    def written(self, index: int) -> np.ndarray:
        """Return the uint8 image number `index` of those that were added, at the resolution."""
        return self._arrays[self.resolution].item(index)

    def owns(self, error: UserError | OSError) -> bool:
        """Return whether `error` is the system's about a file that is written here."""
        return isinstance(error, OSError) and str(error.filename or "").startswith(str(self._aside))

    def start_anew(self) -> None:
        """Drop everything that was taken so far."""
        self._journal.close()
        self.labels, self.files, self.skipped, self._digests, self.taken = [], [], {}, [], 0
        self._journal = self._resume_after([])

    def discard(self) -> None:
        """Do not keep what was written."""
        self._kept = False

    def commit(self, **metadata: object) -> None:
        """Finish the files, put `metadata` into dataset.json too, and move the folder into place."""
        self._close(keep_lock=True)
        if self.classes is None:
            self.classes = _class_names(self.labels)
            index = {name: index for index, name in enumerate(self.classes)}
            self.labels = [index.get(name, 0) for name in self.labels]
        labels = np.array(self.labels, dtype=np.int64)
        with named(self._aside / "labels.npy"), open(self._aside / "labels.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(labels))
            file.write(labels.tobytes())
        counts = np.bincount(labels, minlength=len(self.classes)).tolist() if self.classes else []
        about = {
            "format": FORMAT,
            "resolution": self.resolution,
            "base": list(self.base),
            "channels": self.channels,
            "count": len(labels),
            "classes": self.classes,
        }
        manifest = {
            **about,
            "digest": dataset_digest({**about, "labels": labels.tolist()}, self._digests),
            "class_counts": dict(zip(self.classes, counts, strict=True)),
            "skipped": self.skipped,
            **metadata,
            "files": self.files,
        }
        write_json(self._aside / MANIFEST, manifest)
        for name in (JOURNAL, WORK, "lock"):
            (self._aside / name).unlink()
        move_into_place(self._aside, self.out, last=MANIFEST)
        self._lock.close()

    def _earlier_entries(self, depends: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what an earlier writer of the same work noted; remove the files of any other."""
        entries = read_entries(self._aside, depends) if self._kept else None
        if entries is None:
            clear(self._aside)
            write_json(self._aside / WORK, depends)
        return entries or []

    def _resume_after(self, entries: list[dict[str, Any]]) -> TextIO:
        """Take over the entries whose images are in every array (the process may have been killed at any point).

        Returns the journal, cut off there and opened for more.
        """
        whole = min(array.items_in_file() for array in self._arrays.values())
        path = self._aside / JOURNAL
        with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as self._journal:
            for entry in entries:
                if "label" in entry and len(self.labels) == whole:
                    break
                self._note(entry)
        for array in self._arrays.values():
            array.start_after(len(self.labels))
        return open(path, "a", encoding="utf-8")

    def _note(self, entry: dict[str, Any]) -> None:
        with named(self._aside / JOURNAL):
            self._journal.write(json.dumps(entry) + "\n")
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flush()
        self.taken += 1
        if "label" in entry:
            self.labels.append(entry["label"])
            self.files.append(entry["name"])
            self._digests.append(entry["digest"])
        else:
            self.skipped[entry["name"]] = entry["skipped"]

    def _flush(self) -> None:
        for array in self._arrays.values():
            array.flush()
        with named(self._aside / JOURNAL):
            self._journal.flush()
        self._flushed = time.monotonic()

    def _close(self, *, quietly: bool = False, keep_lock: bool = False) -> None:
        """Write what is left to the files and close them; `quietly`: an error that is on its way goes first."""
        closing = [array.close for array in self._arrays.values()]
        if self._journal is not None:
            closing.append(self._close_journal)
        for close in closing:
            try:
                close()
            except OSError:
                if not quietly:
                    raise
        if not keep_lock:
            self._lock.close()

    def _close_journal(self) -> None:
        with named(self._aside / JOURNAL):
            self._journal.close()


def _class_names(labels: list[str | None]) -> list[str]:
    """Return every name once, numbers by value and before words; none if there are fewer than two."""
    names = {name for name in labels if name is not None}
    if len(names) < 2:
        return []
    return sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
