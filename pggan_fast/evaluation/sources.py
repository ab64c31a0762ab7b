"""Where the images that are judged come from: a generator, prepared data, or a folder of image files.

A source gives its images, in an order fixed by a seed, as `take(start, stop)`: uint8 [stop - start, C, H, W]. Nothing
else of them is kept in memory.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from pggan_fast.data.dataset import MANIFEST
from pggan_fast.data.preprocessing import fit, read
from pggan_fast.data.rows import ImageRows
from pggan_fast.networks import Generator
from pggan_fast.networks.resolutions import LOWEST, image_size
from pggan_fast.networks.sampling import generate, latents
from pggan_fast.training import PreparedData, UserError

READERS = 2  # threads that decode image files


class Source(Protocol):
    """`count` images (None: as many as one likes) of `channels` and of one `size`, height and width."""

    count: int | None
    channels: int
    size: tuple[int, int]

    def take(self, start: int, stop: int) -> np.ndarray: ...

    def facts(self) -> dict[str, Any]: ...


class GeneratedImages:
    """Image i is the one of seed + i, as the verb `generate` draws it, unless `labels` says otherwise.

    `labels` (int64 [N]) are those of the images one after the other, and again from the first; left out, the classes
    take turns. Images of a stage below `resolution` are enlarged by repetition, others averaged down.
    """

    count = None

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
        self._labels = np.arange(G.label_dim) if labels is None else labels
        self._labels_from = "the reals" if labels is not None else "all classes in turn" if G.label_dim else None

    def take(self, start: int, stop: int) -> np.ndarray:
        z = torch.cat([latents(self.G, 1, self.seed + i) for i in range(start, stop)])
        labels = None
        if self.G.label_dim:
            labels = torch.from_numpy(self._labels[np.arange(start, stop) % len(self._labels)]).to(z.device)
        images = generate(self.G, z, labels, resolution=self.stage_resolution, alpha=self.alpha)
        return resized(images.transpose(0, 3, 1, 2), self.size)

    def facts(self) -> dict[str, Any]:
        return {
            "kind": "generated",
            "first_seed": self.seed,
            "drawn_at": self.stage_resolution,
            "alpha": float(self.alpha),
            "labels_from": self._labels_from,
        }


class PreparedImages:
    """Images of prepared data, of one of its resolutions, shuffled by `seed`."""

    def __init__(self, data: PreparedData, *, resolution: int, seed: int) -> None:
        self.data = data
        self.count, self.channels = data.count, data.channels
        self.size = image_size(resolution, data.base)
        self._rows = ImageRows(data.images(resolution))
        self._order = shuffled(data.count, seed)

    def take(self, start: int, stop: int) -> np.ndarray:
        return self._rows.take(self._order[start:stop])

    def labels(self) -> np.ndarray | None:
        """Class indices int64 [count] in the order of the images; None for data without classes."""
        return self.data.labels[self._order] if self.data.classes else None

    def facts(self) -> dict[str, Any]:
        return {"kind": "prepared data", "path": str(self.data.path.absolute()), "count": self.count}


class ImageFiles:
    """The image files below a folder, centre-cropped and resized as `prepare` does, shuffled by `seed`.

    `size` None: the first file's. Files whose names do not end as an image's are left out. Raises UserError, which
    names `option`, for a folder without images, and for a file that cannot be read.
    """

    def __init__(self, folder: Path, option: str, *, size: tuple[int, int] | None, channels: int, seed: int) -> None:
        if not folder.is_dir():
            raise UserError(f"{option} {folder}: no such folder")
        known = Image.registered_extensions()
        self.folder, self.option, self.channels = folder, option, channels
        self.files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in known and file.is_file())
        if not self.files:
            raise UserError(f"{option} {folder}: holds no images")
        self.count = len(self.files)
        self.size = size or self._load(self.files[0]).size[::-1]
        self._order = shuffled(self.count, seed)
        self._readers = ThreadPoolExecutor(READERS)

    def take(self, start: int, stop: int) -> np.ndarray:
        return np.stack(list(self._readers.map(self._fitted, (self.files[i] for i in self._order[start:stop]))))

    def facts(self) -> dict[str, Any]:
        return {"kind": "image files", "path": str(self.folder.absolute()), "count": self.count}

    def _fitted(self, file: Path) -> np.ndarray:
        return fit(self._load(file), LOWEST, crop="center", channels=self.channels, base=self.size)

    def _load(self, file: Path) -> Image.Image:
        try:
            return read(file.name, file)
        except Exception as error:  # whatever a decoder raises, the file is what is wrong
            raise UserError(f"{self.option} {file}: cannot be read ({error})") from error


def folder_source(
    folder: Path,
    option: str,
    *,
    resolution: int | None = None,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    seed: int,
) -> PreparedImages | ImageFiles:
    """The images in `folder`: prepared data if it holds any, image files otherwise (color unless `channels` is 1).

    At `size`, or with `resolution` on the shorter side, or as large as they are.
    """
    if not (folder / MANIFEST).is_file():
        files = ImageFiles(folder, option, size=size, channels=channels or 3, seed=seed)
        if size is None and resolution is not None:
            scale = resolution / min(files.size)
            files.size = round(files.size[0] * scale), round(files.size[1] * scale)
        return files
    data = PreparedData(folder)
    resolution = min(size) if size else resolution or data.resolution
    if not (folder / f"images_{resolution}.npy").is_file():
        raise UserError(f"{option} {folder}: is not prepared at {resolution} px; see --resolution")
    return PreparedImages(data, resolution=resolution, seed=seed)


def shuffled(count: int, seed: int) -> np.ndarray:
    """0 to count - 1 in a random order, fixed by `seed`: int64 [count]."""
    return np.random.Generator(np.random.PCG64([seed, 1])).permutation(count)


def resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [N, C, h, w] repeated up or averaged down by a whole factor to [N, C, *size]."""
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
