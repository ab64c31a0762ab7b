"""Where evaluated images come from: a generator, prepared data, or image files.

A source gives its images, in an order fixed by a seed, as `take(start, stop)`: uint8 [stop - start, C, H, W]. Nothing
else of them is kept in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from pggan_fast.data.in_order import in_order, reason_of
from pggan_fast.data.manifest import is_prepared
from pggan_fast.data.names import one_line, printable, some_of
from pggan_fast.data.preprocessing import fit, size_of
from pggan_fast.data.rows import ImageRows
from pggan_fast.data.sources import Item, SourceError, open_files
from pggan_fast.networks import Generator
from pggan_fast.networks.resolutions import LOWEST, image_size, resolutions_up_to
from pggan_fast.networks.sampling import generate, latents
from pggan_fast.training import PreparedData, UserError

READERS = 2  # threads that decode image files


class Source(Protocol):
    """`count` images (None: as many as one likes) of `channels` and of one `size`, height and width."""

    count: int | None
    channels: int
    size: tuple[int, int]
    random_access: bool  # whether `take` may begin anywhere

    def take(self, start: int, stop: int) -> np.ndarray: ...

    def metadata(self) -> dict[str, Any]: ...


class GeneratedImages:
    """Image i is the one of seed + i, as the command `generate` makes it, unless `labels` says otherwise.

    `labels` (int64 [N]) are those of the images one after the other, and again from the first; left out, the class is
    the seed modulo their number. Images of a stage below `resolution` are enlarged by repetition, others averaged down.
    """

    count = None
    random_access = True

    def __init__(
        self,
        G: Generator,
        *,
        seed: int,
        resolution: int,
        stage_resolution: int,
        alpha: float | torch.Tensor = 1.0,
        labels: np.ndarray | None = None,
    ) -> None:
        self.G, self.seed = G, seed
        self.channels: int = G.options["image_channels"]
        self.size = image_size(resolution, G.base)
        self.stage_resolution, self.alpha = stage_resolution, alpha
        self._labels = labels
        self._labels_from = "the reals" if labels is not None else "the seeds" if G.label_dim else None

    def take(self, start: int, stop: int) -> np.ndarray:
        z = torch.cat([latents(self.G, 1, self.seed + i) for i in range(start, stop)])
        labels = None
        if self.G.label_dim:
            indices = np.arange(start, stop)
            if self._labels is None:  # by seed, as `generate` has it
                labels = torch.from_numpy((self.seed + indices) % self.G.label_dim).to(z.device)
            else:
                labels = torch.from_numpy(self._labels[indices % len(self._labels)]).to(z.device)
        images = generate(self.G, z, labels, resolution=self.stage_resolution, alpha=self.alpha)
        return resized(images.transpose(0, 3, 1, 2), self.size)

    def metadata(self) -> dict[str, Any]:
        return {
            "kind": "generated",
            "first_seed": self.seed,
            "drawn_at": self.stage_resolution,
            "alpha": float(self.alpha),
            "labels_from": self._labels_from,
        }


class PreparedImages:
    """Images of prepared data, of one of its resolutions, shuffled by `seed`."""

    random_access = True

    def __init__(self, data: PreparedData, *, resolution: int, seed: int) -> None:
        self.data, self.seed = data, seed
        self.count, self.channels = data.count, data.channels
        self.size = image_size(resolution, data.base)
        self._rows = ImageRows(data.images(resolution))
        self._order = shuffled(data.count, seed)

    def take(self, start: int, stop: int) -> np.ndarray:
        return self._rows.take(self._order[start:stop])

    def labels(self) -> np.ndarray | None:
        """Return class indices int64 [count] in the order of the images; None for data without classes."""
        return self.data.labels[self._order] if self.data.classes else None

    def metadata(self) -> dict[str, Any]:
        return {"kind": "prepared data", "path": str(self.data.path.absolute()), "count": self.count}


class TooFewImages(Exception):
    """Fewer images than were asked for can be read: `count`."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.count = count


class ImageFiles:
    """Images of a folder, a .zip or a .npy file, centre-cropped and resized as `prepare` does, shuffled by `seed`.

    They are read as `prepare` reads them, and what it leaves out is left out. `size` None: the first image's. Raises
    UserError, which names `option`, if no image can be read or their place fails.
    """

    random_access = False  # which files can be read is known when those before have been tried

    def __init__(self, place: Path, option: str, *, size: tuple[int, int] | None, channels: int, seed: int) -> None:
        self.source = open_files(place, option)
        self.place, self.option, self.channels = place, option, channels
        self.left_out: dict[str, str] = dict(getattr(self.source, "left_out", {}))
        self._keys = [self.source.names[i] for i in shuffled(self.source.count, seed)]
        self._good: list[Any] = []  # keys of images that could be read, in this order
        self._tried = 0
        self.size = size or self._first_size()
        self.count = self.source.count

    def take(self, start: int, stop: int) -> np.ndarray:
        """Return images number `start` to `stop` of those that can be read. Raises TooFewImages if they end before."""
        images = [image for image in self._read_again(self._good[start:stop]) if image is not None]
        while len(images) < stop - start:
            keys = self._keys[self._tried : self._tried + stop - start - len(images)]
            if not keys:
                raise TooFewImages(len(self._good))
            for key, image in zip(keys, self._read(keys), strict=True):
                self._tried += 1
                if image is not None:
                    self._good.append(key)
                    images.append(image)
        return np.stack(images)

    def metadata(self) -> dict[str, Any]:
        found = {"kind": "image files", "path": printable(str(self.place.absolute())), "count": self.count}
        return {**found, "left_out": self.left_out} if self.left_out else found

    def _read_again(self, keys: list[Any]) -> Iterator[np.ndarray | None]:
        return self._read(keys) if keys else iter(())

    def _read(self, keys: list[Any]) -> Iterator[np.ndarray | None]:
        """Yield the fitted image of every key, None where there is none; the reason goes into `left_out`."""

        def fitted(item: Item) -> np.ndarray:
            return fit(item.load(), LOWEST, crop="center", channels=self.channels, base=self.size)

        yield from self._results(fitted, keys)

    def _first_size(self) -> tuple[int, int]:
        """Return (height, width) of the first image that can be read."""

        def size(item: Item) -> tuple[int, int]:
            return size_of(item.load())

        for key in self.source.names:
            for found in self._results(size, [key]):
                if found is not None:
                    return found[1], found[0]
        raise self.nothing_read()

    def nothing_read(self) -> UserError:
        reasons = some_of(f"{name}: {reason}" for name, reason in self.left_out.items())
        return UserError(f"{self.option} {printable(str(self.place))}: none of its images can be read ({reasons})")

    def _results(self, function: Callable[[Item], Any], keys: list[Any]) -> Iterator[Any]:
        try:
            for item, found in in_order(function, (self.source.item(key) for key in keys), READERS):
                if isinstance(found, Exception):
                    self.left_out[item.name] = reason_of(found)
                    found = None
                yield found
        except OSError as error:
            told = isinstance(error, SourceError)
            shown = f"{self.option} {printable(str(self.place))}"
            raise UserError(str(error) if told else f"{shown}: cannot be read on ({one_line(error)})") from error


def folder_source(
    folder: Path,
    option: str,
    *,
    resolution: int | None = None,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    seed: int,
) -> PreparedImages | ImageFiles:
    """Return the images in `folder`: prepared data if it holds any, else image files (RGB unless `channels` is 1).

    They come at `size`, or with `resolution` on the shorter side, or as large as they are. A .zip and a .npy file
    are as good as a folder.
    """
    if not is_prepared(folder):
        files = ImageFiles(folder, option, size=size, channels=channels or 3, seed=seed)
        if size is None and resolution is not None:
            scale = resolution / min(files.size)
            files.size = round(files.size[0] * scale), round(files.size[1] * scale)
        return files
    data = PreparedData(folder)
    resolution = min(size) if size else resolution or data.resolution
    if resolution not in (there := prepared_resolutions(data)):
        sizes = ", ".join(map(str, there))
        raise UserError(f"{option} {folder}: is not prepared at {resolution} px; --resolution must be one of {sizes}")
    return PreparedImages(data, resolution=resolution, seed=seed)


def files_like(place: Path, data: PreparedData, *, resolution: int | None, seed: int) -> ImageFiles:
    """Return the image files of `place` with the shape and channels of `data`, to be compared with them.

    They come with `resolution` on the shorter side, or at the largest of the data's sizes that does not enlarge the
    first of them.
    """
    files = ImageFiles(place, "--images", size=None, channels=data.channels, seed=seed)
    if resolution is None:
        within = [r for r in prepared_resolutions(data) if np.all(np.less_equal(image_size(r, data.base), files.size))]
        if not within:
            raise UserError(
                f"--images {place}: the first is {files.size[0]}x{files.size[1]} px, smaller than all of --reals"
                f" {data.path}; choose one of their sizes with --resolution"
            )
        resolution = within[-1]
    files.size = image_size(resolution, data.base)
    return files


def prepared_resolutions(data: PreparedData) -> list[int]:
    """Return the resolutions that `data` hold images of, the lowest first."""
    return [r for r in resolutions_up_to(data.resolution) if (data.path / f"images_{r}.npy").is_file()]


def shuffled(count: int, seed: int) -> np.ndarray:
    """Return 0 to count - 1 in a random order, fixed by `seed`: int64 [count]."""
    return np.random.Generator(np.random.PCG64([seed, 1])).permutation(count)


def resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return uint8 [N, C, h, w] repeated up or averaged down by a whole factor to [N, C, *size]."""
    factor = size[0] // images.shape[2]
    if factor:
        return images.repeat(factor, axis=2).repeat(factor, axis=3)
    means = F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(images)).float(), size)
    return means.round().byte().numpy()


class Digest:
    """A hash of a stream of images, which tells whether two results are about the same ones."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, images: np.ndarray) -> None:
        self._hash.update(np.ascontiguousarray(images).data)

    def text(self) -> str:
        return self._hash.hexdigest()
