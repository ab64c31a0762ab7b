"""The interface of anything that holds images, for `prepare`."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from pggan_fast.data.preprocessing import AnyImage

# The system's answers that are about one file; every other one is about the place that holds it.
ABOUT_A_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


class SourceError(OSError):
    """The place that holds the images fails: a folder that is gone, a disk that cannot be read."""


@dataclass(frozen=True)
class Item:
    """One image, not read yet."""

    name: str  # where it is from, as dataset.json names it
    label: int | str | None  # index or name of its class
    load: Callable[[], AnyImage]  # called on a thread of its own
    measure: Callable[[], tuple[int, int]] | None = None  # (width, height), cheaply; None: only by loading


class Source(Protocol):
    """Images in a fixed order.

    `metadata` (JSON) tell whether a later `prepare` sees the same images; `classes` name the indices
    that items have for labels (None: items have names of classes); `count` is None if nobody knows it
    before the end. A source may also have `known` (False: `metadata` cannot tell whether the images are the same,
    some are read again to see; True if left out) and `left_out` (name -> reason of what is no item).
    """

    metadata: dict[str, Any]
    classes: list[str] | None
    count: int | None

    def items(self, start: int = 0) -> Iterator[Item]:
        """Yield the items from number `start` on."""
        ...


def is_of_the_source(error: BaseException) -> bool:
    """Return whether `error` says that the place fails, rather than that one file is no image."""
    if isinstance(error, SourceError):
        return True
    return isinstance(error, OSError) and error.errno is not None and error.errno not in ABOUT_A_FILE


def is_of_the_system(error: BaseException) -> bool:
    """Return whether `error` is an answer of the system about a file, rather than of a decoder about its bytes."""
    return isinstance(error, OSError) and error.errno is not None
