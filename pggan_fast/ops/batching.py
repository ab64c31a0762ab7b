"""Batching rules: how torch.func.vmap runs an op once for a whole batch, by folding the batch into the samples."""

from collections.abc import Callable

import torch
from torch import Tensor


def fold_into_samples(
    *samples: int,
    interleaved: Callable[..., bool] = lambda *args: False,
    sums: Callable[..., bool] = lambda *args: False,
) -> Callable:
    """Return the batching rule of an op whose arguments at the positions `samples` are [N, ...].

    Each becomes [B * N, ...], or [N * B, ...] where `interleaved(*args)`. Where another argument is batched, or where
    the op `sums(*args)` over the samples, it runs once for each of the batch instead.
    """

    def rule(call, info, in_dims, *args):
        others_batched = any(d is not None for i, d in enumerate(in_dims) if i not in samples)
        if others_batched or sums(*args):
            return _one_by_one(call, info.batch_size, in_dims, args)
        at = 1 if interleaved(*args) else 0
        folded = list(args)
        for i in samples:
            if args[i] is not None:
                folded[i] = _with_batch_at(at, args[i], in_dims[i], info.batch_size).flatten(0, 1)
        sizes = (-1, info.batch_size) if at else (info.batch_size, -1)
        results = call(*folded)
        if isinstance(results, Tensor):
            return _unfolded(results, sizes), at
        # What is no image stands empty for a result that was not asked for.
        out_dims = tuple(at if r.ndim > 1 else None for r in results)
        return tuple(_unfolded(r, sizes) if r.ndim > 1 else r for r in results), out_dims

    return rule


def _with_batch_at(at: int, t: Tensor, dim: int | None, batch_size: int) -> Tensor:
    if dim is not None:
        return t.movedim(dim, at)
    return t.unsqueeze(at).expand(*t.shape[:at], batch_size, *t.shape[at:])


def _unfolded(t: Tensor, sizes: tuple[int, int]) -> Tensor:
    batch_size = max(sizes)
    n = t.shape[0] // batch_size  # -1 would be ambiguous for empty tensors
    return t.unflatten(0, [n if size == -1 else size for size in sizes])


def _one_by_one(call: Callable, batch_size: int, in_dims: tuple, args: tuple):
    results = [
        call(*(a if d is None else a.select(d, b) for a, d in zip(args, in_dims, strict=True)))
        for b in range(batch_size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(column) for column in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)
