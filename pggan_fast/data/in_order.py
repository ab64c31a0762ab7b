"""Work on items in threads, with results in the items' order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from PIL import UnidentifiedImageError

from pggan_fast.data.names import one_line
from pggan_fast.data.sources import Item
from pggan_fast.data.sources.source import is_of_the_source, is_of_the_system
from pggan_fast.utils.memory import is_out_of_memory

AHEAD = 4  # items in work or waiting to be taken, per thread
MOST_LOST_IN_A_ROW = 20  # items that the system cannot read: beyond, it is their place that is gone


class TooSmall(Exception):
    """An image below the resolution."""


def in_order(
    function: Callable[[Item], Any], items: Iterable[Item], threads: int
) -> Iterator[tuple[Item, Any | Exception]]:
    """Yield (item, function(item) or the exception that it raised), computed on `threads` threads.

    Pillow and NumPy work outside of Python's lock, so that threads are enough. No more than `AHEAD` items per
    thread are read ahead of the one that is waited for. An error that is not about one item is raised: memory has
    run out, or the place that holds the items fails.
    """
    lost: list[tuple[Item, Exception]] = []  # not reported before another one shows that only they are lost
    for item, found in _computed(function, items, threads):
        if isinstance(found, Exception) and is_of_the_system(found):
            lost.append((item, found))
            if len(lost) > MOST_LOST_IN_A_ROW:
                raise lost[0][1]
            continue
        yield from lost
        lost = []
        yield item, found
    yield from lost


def reason_of(error: Exception) -> str:
    """Return why an item is left out, for the user."""
    if isinstance(error, TooSmall):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return f"cannot be read ({one_line(error)})"


def _computed(
    function: Callable[[Item], Any], items: Iterable[Item], threads: int
) -> Iterator[tuple[Item, Any | Exception]]:
    waiting: deque[tuple[Item, Future]] = deque()
    items = iter(items)
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            for item in islice(items, AHEAD * threads - len(waiting)):
                waiting.append((item, pool.submit(function, item)))
            if not waiting:
                return
            item, future = waiting.popleft()
            error = future.exception()
            if error is None:
                yield item, future.result()
            elif is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            elif is_of_the_source(error) or not isinstance(error, Exception):
                raise error
            else:
                yield item, error  # whatever a decoder raises, the item is what is wrong
    finally:
        pool.shutdown(cancel_futures=True)
