"""Standard streams that a run outlives: a closed terminal or pipe, a full disk behind them, text they cannot show."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class LastingStream:
    """`stream`, except that what cannot be written any more is dropped instead of raising."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text`; characters that the stream's encoding lacks are shown as escapes."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # ValueError: it was closed in Python
            self._give_up()
            return len(text)

    def flush(self) -> None:
        """Flush, if anybody is still there."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def _give_up(self) -> None:
        """Send what is buffered, and all that comes, nowhere: also what Python flushes as it ends."""
        try:
            number = self._stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
        except (OSError, ValueError, AttributeError):
            self._stream = open(os.devnull, "w")  # noqa: SIM115 - lives as long as the process

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let prints and error messages inside never raise; without standard streams they go nowhere."""
    before = sys.stdout, sys.stderr
    nowhere = None
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = nowhere = nowhere or open(os.devnull, "w")  # noqa: SIM115 - closed below
        if not isinstance(stream, LastingStream):
            stream = LastingStream(stream)
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
        if nowhere:
            nowhere.close()
