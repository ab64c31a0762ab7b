"""What `prepare` needs of anything that holds pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from pggan_fast.data.preprocessing import Picture


@dataclass(frozen=True)
class Item:
    """One picture, not read yet."""

    name: str  # where it is from, as dataset.json names it
    label: int | str | None  # index or name of its class
    load: Callable[[], Picture]  # called on a thread of its own
    measure: Callable[[], tuple[int, int]] | None = None  # (width, height), cheaply; None: only by loading


class Source(Protocol):
    """Pictures in a fixed order.

    `facts` (JSON) tell whether a later `prepare` sees the same pictures; `classes` name the indices
    that items have for labels (None: items have names of classes); `count` is None if nobody knows it
    before the end.
    """

    facts: dict[str, Any]
    classes: list[str] | None
    count: int | None

    def items(self, start: int = 0) -> Iterator[Item]:
        """The items from number `start` on."""
        ...
