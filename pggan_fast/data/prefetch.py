"""Batches read while the step before them is computed."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from pggan_fast.data.batches import Batches


class Prefetcher:
    """`batches`, with the next one being read by a thread: of the size and resolution of the last one.

    The state is that after the last batch returned. A failure to read is raised by the call that asks for the batch.
    """

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self._state = batches.state_dict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._asked = (0, 0)
        self._next: Future[tuple[Tensor, Tensor]] | None = None

    def next(self, batch_size: int, resolution: int) -> tuple[Tensor, Tensor]:
        """Return the next batch, as `Batches.next` does."""
        batch = self._taken() if self._asked == (batch_size, resolution) else None
        if batch is None:
            self._drop()
            batch = self._batches.next(batch_size, resolution)
        self._state = self._batches.state_dict()
        self._asked = (batch_size, resolution)
        self._next = self._pool.submit(self._batches.next, batch_size, resolution)
        return batch

    def state_dict(self) -> dict[str, int]:
        return dict(self._state)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._state = dict(state)
        self._drop()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _taken(self) -> tuple[Tensor, Tensor] | None:
        ahead, self._next = self._next, None
        return ahead.result() if ahead else None

    def _drop(self) -> None:
        """Drop the prefetched batch: go back to the last batch returned."""
        ahead, self._next = self._next, None
        if ahead:
            ahead.exception()  # waits; whatever it read or failed at is not what was requested
        self._batches.load_state_dict(self._state)
