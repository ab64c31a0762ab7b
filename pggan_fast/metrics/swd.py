"""The paper's sliced Wasserstein distance between two sets of images (section 5 and its appendix).

Laplacian pyramid down to 16 px; 128 random 7x7 patches per image and level; each set normalised by its own mean and
standard deviation per channel; 4 x 128 random directions; the mean absolute difference of the sorted projections,
times 1000. One value per level, the finest first, and their average. Low is good; the paper uses 16,384 images of
each set, and with fewer the value that two samples of one distribution reach is higher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from pggan_fast.metrics.patches import PATCH, PER_IMAGE, PatchStore, Positions, cut_patches
from pggan_fast.metrics.pyramid import laplacian_pyramid, level_sizes
from pggan_fast.ops.wasserstein import wasserstein_1d

SCALE = 1000  # as the paper prints it
DIRECTIONS = 4 * 128  # the paper's 4 repeats of 128 are averaged, so they are one set of 512
WORKSPACE = 2**28  # bytes of projections; so many directions are taken in one pass over the patches
PIECE = 64  # images taken through the pyramid at once, if their values stay below ...
PIECE_VALUES = 2**22  # ... this many

Images = Tensor | np.ndarray


class SlicedWasserstein:
    """The distance between two sets of images, which come in batches.

    Batches are uint8 [N, C, H, W], of any N and any C: with one channel a patch has 49 values instead of 147, which
    gives on average what the image repeated in three channels gives. All images have one size, sides of 16 px or
    more that stay even while they are halved to 16 px.

    The result follows from the images and `seed` alone; their order, the batches and `device`, where the computing is
    done, change it by rounding errors only. Memory holds at most 256 MB of projections, 32 MB of patches per set and
    level, and what 64 images need. Further patches, 25 KB per image, channel and level, wait in temporary files, which
    `close`, or the end of a with block, removes.
    """

    def __init__(self, *, seed: int = 0, device: str | torch.device = "cpu") -> None:
        if seed < 0:
            raise ValueError(f"seed {seed}: must be 0 or more")
        self.seed = seed
        self.device = torch.device(device)
        self._shape: tuple[int, ...] | None = None
        self._sets = {name: _ImageSet(seed) for name in ("reals", "fakes")}

    def add_reals(self, images: Images) -> None:
        """Add a batch of real images, uint8 [N, C, H, W]. Raises ValueError if it is something else."""
        self._add("reals", images)

    def add_fakes(self, images: Images) -> None:
        """Add a batch of generated images, uint8 [N, C, H, W]. Raises ValueError if it is something else."""
        self._add("fakes", images)

    def clear_fakes(self) -> None:
        """Forget the generated images, to compare those of another generator with the same reals."""
        self._sets["fakes"].close()
        self._sets["fakes"] = _ImageSet(self.seed)

    def settings(self) -> dict[str, object]:
        """Return what the values depend on beside images and seed."""
        return {"patches": PER_IMAGE, "patch_size": PATCH, "directions": DIRECTIONS, "scale": SCALE}

    def values(self) -> dict[str, float]:
        """The distance x 1000 of each level, by its shorter side ("64", "32", "16"), and their "average".

        Raises ValueError unless there are as many reals as fakes, and at least one.
        """
        reals, fakes = self._sets["reals"], self._sets["fakes"]
        if reals.count != fakes.count or reals.count == 0:
            raise ValueError(
                f"{reals.count} real and {fakes.count} generated images: must be as many of each, and 1 or more"
            )
        random = np.random.Generator(np.random.PCG64([self.seed, 0]))
        values, space = {}, _workspace(reals.stores[0].count, self.device)
        for size, a, b in zip(level_sizes(*self._shape[1:]), reals.stores, fakes.stores, strict=True):
            directions = random_directions(random, PATCH**2 * self._shape[0], DIRECTIONS)
            values[str(min(size))] = SCALE * distance(a, b, directions.to(self.device), space)
        return {**values, "average": sum(values.values()) / len(values)}

    def close(self) -> None:
        """Remove the temporary files."""
        for images in self._sets.values():
            images.close()

    def __enter__(self) -> SlicedWasserstein:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @torch.no_grad()
    def _add(self, name: str, images: Images) -> None:
        dtype = str(images.dtype).removeprefix("torch.")
        if dtype != "uint8" or images.ndim != 4 or images.shape[1] == 0:
            raise ValueError(f"{name} {dtype} {list(images.shape)}: must be uint8 [N, C, H, W]")
        shape = tuple(images.shape[1:])
        if self._shape not in (None, shape):
            raise ValueError(f"{name} {list(shape)}: must be {list(self._shape)} as the images before")
        sizes = level_sizes(*shape[1:])
        self._shape = shape
        at_once = min(PIECE, max(1, PIECE_VALUES // math.prod(shape)))
        for start in range(0, len(images), at_once):
            piece = images[start : start + at_once]
            if isinstance(piece, np.ndarray):
                piece = torch.from_numpy(np.require(piece, requirements="CW"))  # mapped files may be read-only
            self._sets[name].add(piece, sizes, self.device)


class _ImageSet:
    """The patches of one set of images, a store for each level."""

    def __init__(self, seed: int) -> None:
        self.count = 0
        self.stores: list[PatchStore] = []
        self._positions = Positions(seed)

    def add(self, images: Tensor, sizes: list[tuple[int, int]], device: torch.device) -> None:
        if not self.stores:
            self.stores = [PatchStore(images.shape[1]) for _ in sizes]
        corners = self._positions.draw(images, sizes).to(device)
        for store, level, (y, x) in zip(self.stores, laplacian_pyramid(images.to(device)), corners, strict=True):
            store.append(cut_patches(level, y, x))
        self.count += len(images)

    def close(self) -> None:
        for store in self.stores:
            store.close()


def random_directions(random: np.random.Generator, size: int, count: int) -> Tensor:
    """float32 [size, count]: columns of length 1, uniform on the sphere."""
    directions = random.standard_normal((size, count))
    return torch.from_numpy((directions / np.linalg.norm(directions, axis=0)).astype(np.float32))


def _workspace(count: int, device: torch.device) -> Tensor:
    """Room for the projections of two sets of `count` patches along some directions: float32 [2, directions, count].

    Made once for all levels: on a CPU fresh memory costs about as much as what is computed in it.
    """
    return torch.empty(2, min(DIRECTIONS, max(1, WORKSPACE // (8 * count))), count, device=device)


def distance(a: PatchStore, b: PatchStore, directions: Tensor, space: Tensor | None = None) -> float:
    """The sliced Wasserstein distance of two stores of one count, normalised, along float32 directions [49*C, K].

    space: float32 [2, directions at once, count], overwritten; by default its own.
    """
    space = _workspace(a.count, directions.device) if space is None else space
    statistics = a.mean_std(), b.mean_std()
    total = 0.0
    for some in directions.split(space.shape[1], dim=1):
        x, y = space[:, : some.shape[1]]
        shift = project(b, some, *statistics[1], y) - project(a, some, *statistics[0], x)
        total += wasserstein_1d(x, y, shift).sum().item()
    return total / (a.count * directions.shape[1])


def project(patches: PatchStore, directions: Tensor, mean: Tensor, std: Tensor, out: Tensor) -> Tensor:
    """`(patch - mean) / std` along directions [49*C, K], as the difference of `out` [K, count] and the result [K].

    out is written; mean, std: [C]; both results are 0 where std is 0. float32. The directions are scaled in place of
    the patches, which are many more.
    """
    inverse = torch.where(std > 0, 1 / std, 0).float().repeat(PATCH**2).to(directions.device)
    scaled = directions * inverse[:, None]
    start = 0
    for chunk in patches.chunks():
        stop = start + len(chunk)
        torch.mm(scaled.t(), chunk.to(directions.device).t(), out=out[:, start:stop])
        start = stop
    return mean.float().repeat(PATCH**2).to(directions.device) @ scaled


def sliced_wasserstein(
    reals: Images | Iterable[Images],
    fakes: Images | Iterable[Images],
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """The distance between two sets: arrays uint8 [N, C, H, W], or iterables of such batches, of any size.

    Returns and raises what `SlicedWasserstein.values` and its `add_` methods do.
    """
    with SlicedWasserstein(seed=seed, device=device) as metric:
        for batch in _batches(reals):
            metric.add_reals(batch)
        for batch in _batches(fakes):
            metric.add_fakes(batch)
        return metric.values()


def sliced_wasserstein_of(
    generate: Callable[[int], Images],
    data: Images,
    *,
    count: int,
    batch_size: int = 64,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """The distance between `count` images that `generate` makes and as many of `data`.

    `generate(n)` gives the next n images, uint8 [n, C, H, W]. `data` is uint8 [M, C, H, W], a memory-mapped array for
    one; of more than `count` images a random choice, fixed by `seed`, is taken. Raises ValueError if there are fewer.
    """
    if not 1 <= count <= len(data):
        raise ValueError(f"count {count}: must be from 1 to {len(data)}, the number of real images")
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size}: must be 1 or more")
    chosen = np.sort(np.random.Generator(np.random.PCG64([seed, 1])).permutation(len(data))[:count])
    starts = range(0, count, batch_size)
    reals = (data[chosen[start : start + batch_size]] for start in starts)
    fakes = (generate(min(batch_size, count - start)) for start in starts)
    return sliced_wasserstein(reals, fakes, seed=seed, device=device)


def _batches(images: Images | Iterable[Images]) -> Iterator[Images]:
    return iter([images] if isinstance(images, (Tensor, np.ndarray)) else images)
