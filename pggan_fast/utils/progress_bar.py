"""A progress bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


LINE_SECONDS = 30.0


def on_terminal() -> bool:
    return sys.stderr.isatty()


def bar_over(items: Iterable[Item], text: str, total: int | None = None, done: int = 0) -> Iterator[Item]:
    """Iterate over `items` behind a bar; without a terminal a line every half minute.

    `total`: how many there are where `items` do not know; `done` of them were dealt with before.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    if on_terminal():
        yield from tqdm(items, desc=text, total=total, initial=done, leave=False, **terminal_size())
        return
    said = time.monotonic()
    for count, item in enumerate(items, done + 1):
        yield item
        if time.monotonic() - said >= LINE_SECONDS:
            said = time.monotonic()
            print(f"{text}: {count:,}" + (f" of {total:,}" if total else ""), flush=True)


def terminal_size() -> dict[str, int]:
    """For tqdm, which draws nothing on a terminal that does not know its size (in a container)."""
    if not on_terminal() or os.get_terminal_size(sys.stderr.fileno()).columns:
        return {}
    return {"ncols": 100, "nrows": 24}


def duration(seconds: float) -> str:
    """14:05 or 2:14:05, with days where there are some."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02d}:{seconds:02d}" if days or hours else f"{minutes}:{seconds:02d}"
    return f"{days}d {clock}" if days else clock
