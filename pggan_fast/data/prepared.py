"""Prepared data, opened for reading; `dataset.py` says what lies in the folder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from pggan_fast.data.manifest import FORMAT, MANIFEST, checked, is_prepared, read_json
from pggan_fast.data.names import one_line, printable
from pggan_fast.data.npy import map_npy
from pggan_fast.data.rows import ImageRows
from pggan_fast.networks.resolutions import SQUARE, image_size, resolutions_up_to
from pggan_fast.utils.errors import UserError
from pggan_fast.utils.program import program

SAMPLED_BYTES = 1 << 22  # of each resolution, for the fingerprint
LEAST_SAMPLED = 4  # images


class PreparedData:
    """A prepared folder, opened for reading: arrays are mapped, not read.

    Attributes: `resolution`, `base` (height and width at resolution 4), `channels`, `count`, `classes`,
    `labels` (int64 [count]), `digest` (of all images and labels; None in folders that older versions wrote).
    Raises UserError if `path` is missing, is no prepared folder, or lacks some of its files.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._shown = f"--data {printable(str(path))}"
        hint = f"make one with: {program()} prepare --images FOLDER --out DATA"
        if not self.path.is_dir():
            raise UserError(f"{self._shown}: no such folder; {hint}")
        if not (self.path / MANIFEST).is_file():
            raise UserError(f"{self._shown}: is no prepared folder (no {MANIFEST}); {hint}")
        if not is_prepared(self.path):
            raise UserError(f"{self._shown}: is no prepared folder ({MANIFEST} is damaged or another tool's); {hint}")
        try:
            raw = read_json(self.path / MANIFEST)
            if isinstance(raw, dict) and raw.get("format", FORMAT) != FORMAT:
                raise UserError(f"{self._shown}: has format {raw['format']!r}, not {FORMAT!r}")
            manifest = checked(raw)
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self._shown}: {MANIFEST} is damaged ({one_line(error)}); {hint}") from error
        self.resolution: int = manifest["resolution"]
        self.base: tuple[int, int] = tuple(manifest["base"])
        self.channels: int = manifest["channels"]
        self.count: int = manifest["count"]
        self.classes: list[str] = manifest["classes"]
        self.digest: str | None = manifest["digest"]
        self.labels = np.array(self._map("labels.npy", (self.count,), np.int64))  # a copy outlives the file
        self._images: dict[int, np.ndarray] = {}

    def images(self, resolution: int) -> np.ndarray:
        """Return the mapped uint8 array [count, channels, height, width] at `resolution`, the shorter side."""
        if resolution not in self._images:
            shape = (self.count, self.channels, *image_size(resolution, self.base))
            self._images[resolution] = self._map(f"images_{resolution}.npy", shape, np.uint8)
        return self._images[resolution]

    def metadata(self) -> dict[str, object]:
        """Return what a run has to find unchanged when it resumes."""
        return {
            "count": self.count,
            "channels": self.channels,
            "base": list(self.base),
            "classes": self.classes,
            "digest": self.digest,
            "fingerprint": self._fingerprint(),
        }

    def _fingerprint(self) -> dict[str, str]:
        """Return a hash of the labels and of evenly spaced images of every array that is there.

        The digest is what `prepare` wrote; this is what lies there now, whoever wrote it.
        """
        found = {"labels": _hash(np.ascontiguousarray(self.labels))}
        for resolution in resolutions_up_to(self.resolution):
            if self.count and (self.path / f"images_{resolution}.npy").is_file():
                images = self.images(resolution)
                number = min(self.count, max(LEAST_SAMPLED, SAMPLED_BYTES // images[0].nbytes))
                places = np.linspace(0, self.count - 1, number).round().astype(np.int64)
                found[str(resolution)] = _hash(ImageRows(images).take(places))
        return found

    def _map(self, name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        try:
            array = map_npy(self.path / name)
        except (OSError, ValueError) as error:
            raise UserError(f"{self._shown}: cannot read {name} ({one_line(error)})") from error
        if array.shape != shape or array.dtype != dtype:
            raise UserError(
                f"{self._shown}: {name} holds {array.dtype} {list(array.shape)},"
                f" {MANIFEST} says {np.dtype(dtype)} {list(shape)}"
            )
        return array


def changed(kept: object, found: dict[str, object]) -> str | None:
    """Return how the `metadata` that a run has kept differ from those that are `found`, None if they do not.

    Runs and data of older versions kept less; what one of the two does not know is not compared. Raises ValueError
    unless `kept` are metadata.
    """
    if not isinstance(kept, dict):
        raise ValueError(f"its data are a {type(kept).__name__}")
    kept = {"base": list(SQUARE), **kept}
    for name, value in found.items():
        if name not in kept and name not in ("digest", "fingerprint"):
            raise ValueError(f"its data have no {name}")
        before = kept.get(name)
        if name == "fingerprint" and isinstance(value, dict) and isinstance(before, dict):
            both = value.keys() & before.keys()
            different = [each for each in value if each in both and value[each] != before[each]]
            if sizes := [each for each in different if each != "labels"]:
                return f"other images of the same count, at {', '.join(sizes)} px"
            if different:
                return "other labels of the same count"
        elif value != before and not (name in ("digest", "fingerprint") and None in (value, before)):
            return f"{name} is {value}, was {before}"
    return None


def _hash(array: np.ndarray) -> str:
    return hashlib.blake2b(array.data if array.size else b"", digest_size=16).hexdigest()
