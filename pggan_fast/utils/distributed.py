"""The processes of one training run: a single one, or one per device as torchrun starts them.

All of them hold the same networks, draw the same random numbers for the whole batch and decide
alike; each takes its own part of the batch. A run therefore resumes with any number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from pggan_fast.utils.errors import UserError

Value = TypeVar("Value")

BUCKET_BYTES = 32 << 20  # per reduction: fewer, larger ones use the network better, smaller ones overlap


@dataclass(frozen=True)
class Processes:
    """This process among `count`. Alone, everything here returns what it was given."""

    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Whether this is the one process that writes files and prints."""
        return self.rank == 0

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes; all of one dtype, on the device."""
        if self.count == 1:
            return
        reductions = []
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            reductions.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, reduction in reductions:
            reduction.wait()
            parts = flat.div_(self.count).split([tensor.numel() for tensor in bucket])
            torch._foreach_copy_(bucket, [part.view(tensor.shape) for part, tensor in zip(parts, bucket, strict=True)])

    def largest(self, *values: int) -> list[int]:
        """Each value's maximum over the processes: how they decide together. Does not touch the device."""
        if self.count == 1:
            return list(values)
        agreed = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        return agreed.tolist()

    def first(self, action: Callable[[], Value]) -> Value | None:
        """Return what `action` returns in the first process, where alone it runs; None in the others.

        The others wait for it. Raises its UserError in all of them.
        """
        result, error = None, None
        if self.writes:
            try:
                result = action()
            except (UserError, OSError) as raised:
                if self.count == 1:
                    raise
                error = str(raised)
        if (error := self.shared(error)) is not None:
            raise UserError(error)
        return result

    def shared(self, value: Value) -> Value:
        """The first process's value, in all of them."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gathered(self, value: Value) -> list[Value]:
        """Return every process's value, by rank, in the first process; nothing in the others."""
        if self.count == 1:
            return [value]
        values: list[Value] | None = [value] * self.count if self.writes else None
        dist.gather_object(value, values, dst=0)
        return values or []


def process_count() -> int:
    """How many processes torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def join() -> Iterator[Processes]:
    """The processes that torchrun started, connected, or this one alone. Only the first prints inside."""
    if process_count() == 1:
        yield Processes()
        return
    # torch imports this with the first optimizer. A group that exists by then outlives `destroy_process_group`, and its
    # threads abort the process at exit, now and then.
    import torch._dynamo  # noqa: F401

    # What the hosts decide goes over gloo, so that it does not wait for the GPUs.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    processes = Processes(dist.get_rank(), dist.get_world_size())
    try:
        with open(os.devnull, "w") as nowhere, ExitStack() as silence:
            if not processes.writes:
                silence.enter_context(redirect_stdout(nowhere))
                silence.enter_context(redirect_stderr(nowhere))
            yield processes
    finally:
        dist.destroy_process_group()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours, together at most BUCKET_BYTES unless one is larger by itself."""
    bucket, size = [], 0
    for tensor in tensors:
        if bucket and size + tensor.nbytes > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
