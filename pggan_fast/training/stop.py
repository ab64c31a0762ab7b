"""Leaving a loop cleanly when somebody presses Ctrl-C."""

from __future__ import annotations

import signal
from types import FrameType


class StopSignal:
    """True once Ctrl-C was pressed inside the `with`; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self._stopped = False

    def __bool__(self) -> bool:
        return self._stopped

    def __enter__(self) -> StopSignal:
        self._before = signal.signal(signal.SIGINT, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
