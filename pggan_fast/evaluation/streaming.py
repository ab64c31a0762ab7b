"""Images of a source through metrics, split over the processes that torchrun started, with the reals' features cached.

Batches are the same whatever the number of processes, and arrive at the first process in their order. There the values
are computed, so they do not depend on that number, to the last bit on equal devices.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pggan_fast.evaluation.sources import Digest, PreparedImages, Source
from pggan_fast.metrics import MetricSet
from pggan_fast.utils.atomic_write import atomic_write
from pggan_fast.utils.cache import cache_folder
from pggan_fast.utils.distributed import Processes
from pggan_fast.utils.progress_bar import bar_over

Rows = dict[str, dict[str, torch.Tensor]]


def add_reals(
    metrics: MetricSet, source: Source, count: int, *, batch_size: int, processes: Processes, text: str | None = None
) -> str:
    """Add the first `count` images of `source` as reals and return a digest of them (in the first process).

    Features of prepared data are kept in the cache folder: next time, metrics of features alone read no image.
    """
    file = _cache_file(metrics, source, count, batch_size) if metrics.feature_metrics() else None
    kept = processes.first(lambda: _read_cache(file, metrics, count))
    cached = processes.shared(kept is not None)
    if kept is not None:
        for name, rows in kept[0].items():
            metrics.feature_metrics()[name].add_real_rows(rows)
    if cached and not metrics.needs_images():
        return kept[1] if kept is not None else ""
    digest, collected = Digest(), {name: [] for name in metrics.feature_metrics()}
    look = None if cached else metrics.look
    for images, rows in _stream(source, count, batch_size, processes, look, text):
        digest.add(images)
        metrics.add_reals(images, rows)  # none of rows where the features have been added
        for name, found in rows.items():
            collected[name].append(found["features"])
    if file is not None and not cached and processes.writes:
        _write_cache(file, {name: torch.cat(parts) for name, parts in collected.items()}, digest.text())
    return digest.text()


def add_fakes(
    metrics: MetricSet, source: Source, count: int, *, batch_size: int, processes: Processes, text: str | None = None
) -> str:
    """Add the first `count` images of `source` as generated ones and return a digest of them (in the first process)."""
    digest = Digest()
    for images, rows in _stream(source, count, batch_size, processes, metrics.look, text):
        digest.add(images)
        metrics.add_fakes(images, rows)
    return digest.text()


def _stream(
    source: Source,
    count: int,
    batch_size: int,
    processes: Processes,
    look: Callable[[np.ndarray], Rows] | None,
    text: str | None,
) -> Iterator[tuple[np.ndarray, Rows]]:
    """Yield every batch of images with its features, in order, in the first process; nothing in the others.

    In each round every process takes one batch, of which it generates the images and looks at them.
    """
    rounds = range(0, count, batch_size * processes.count)
    for first in bar_over(rounds, f"{text}, in batches") if text else rounds:
        mine = None
        for rank in range(processes.count):
            start = first + rank * batch_size
            stop = min(start + batch_size, count)
            if start < stop and (rank == processes.rank or not source.random_access):
                images = source.take(start, stop)
                if rank == processes.rank:
                    mine = images, look(images) if look else {}
        yield from (part for part in processes.gathered(mine) if part is not None)


def _cache_file(metrics: MetricSet, source: Source, count: int, batch_size: int) -> Path | None:
    """Return the file of the reals' features; None for image files, whose contents nobody has hashed.

    Its name follows from the images, from their batches, whose size moves the last bits, and from the features that
    each network gives of a fixed image here, which tell apart networks, weights and devices.
    """
    if not isinstance(source, PreparedImages):
        return None
    key = {
        "data": source.data.metadata(),
        "size": source.size,
        "seed": source.seed,
        "count": count,
        "batch_size": batch_size,
        "networks": {name: metric.identity(source.channels) for name, metric in metrics.feature_metrics().items()},
    }
    name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=16).hexdigest()
    return cache_folder() / "features" / f"{name}.npz"


def _read_cache(file: Path | None, metrics: MetricSet, count: int) -> tuple[dict[str, torch.Tensor], str] | None:
    """Return (features [count, D] by metric, digest of the images), None where they are not kept or are damaged."""
    if file is None:
        return None
    try:
        with np.load(file, allow_pickle=False) as kept:
            rows = {name: torch.from_numpy(kept[name]) for name in metrics.feature_metrics()}
            digest = str(kept["digest"])
    except Exception:  # absent, cut short, another file: numpy and zipfile have many kinds of errors for that
        return None
    whole = all(found.dtype == torch.float32 and found.ndim == 2 and len(found) == count for found in rows.values())
    return (rows, digest) if whole else None


def _write_cache(file: Path, rows: dict[str, torch.Tensor], digest: str) -> None:
    """Keep the features; a folder that cannot be written to is said and changes nothing."""
    contents: dict[str, Any] = {name: found.numpy() for name, found in rows.items()}
    try:
        with atomic_write(file) as aside, open(aside, "wb") as opened:
            np.savez(opened, digest=np.array(digest), **contents)
    except OSError as error:
        print(f"features of the reals are not kept: {file}: {error.strerror or error}", flush=True)
