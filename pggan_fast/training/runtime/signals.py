"""Requests to a run from outside: Ctrl-C, signals, a time limit."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

from pggan_fast import _startup

MOST_RESERVED = 30.0  # seconds kept back for the first save, whose time is not known yet
FORWARDED_WITHIN = 2.0  # seconds in which torchrun repeats a Ctrl-C that the terminal has sent already


class SignalHandler:
    """Whether to save and whether to leave. Use as a context manager; signals reach the main thread alone.

    Ctrl-C, SIGTERM and SIGHUP (unless it is ignored, as nohup makes it) ask to save and leave, SIGUSR1 to save and go
    on; a second Ctrl-C interrupts at once. What came before, while the command line started, counts.
    `time_limit` (seconds from here) asks to leave early enough for what an iteration has taken so far.
    `forwarded`: another process passes the terminal's signals on, so that one Ctrl-C arrives twice.
    """

    def __init__(self, time_limit: float | None = None, *, forwarded: bool = False) -> None:
        self._stopped_at: float | None = None
        self._save = False
        self._forwarded = forwarded
        self._asked = time.monotonic()
        self._longest = 0.0
        self._end = None
        if time_limit is not None:
            self._end = self._asked + time_limit - min(MOST_RESERVED, time_limit / 10)

    def begin(self) -> None:
        """Note that the first iteration begins now."""
        self._asked = time.monotonic()

    def leave(self) -> bool:
        """Whether to save and leave now. Asked once per iteration, it learns how long those take."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._asked)
        self._asked = now
        return self._stopped_at is not None or (self._end is not None and now + 2 * self._longest >= self._end)

    def save(self) -> bool:
        """Whether to save now; asked again, no longer."""
        asked, self._save = self._save, False
        return asked

    def __enter__(self) -> SignalHandler:
        self._before = {}
        if threading.current_thread() is not threading.main_thread():
            return self
        handlers = {signal.SIGINT: self._stop, signal.SIGTERM: self._stop}
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            handlers[signal.SIGHUP] = self._stop
        if hasattr(signal, "SIGUSR1"):
            handlers[signal.SIGUSR1] = self._ask_to_save
        for number, handler in handlers.items():
            self._before[number] = signal.signal(number, handler)
        # After that, so that none is lost between the old handlers and these.
        self._save |= _startup.take("save")
        if _startup.take("stop") and self._stopped_at is None:
            self._stopped_at = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._stopped_at is None:
            self._stopped_at = now
        elif number == signal.SIGINT and not (self._forwarded and now - self._stopped_at < FORWARDED_WITHIN):
            raise KeyboardInterrupt

    def _ask_to_save(self, _number: int, _frame: FrameType | None) -> None:
        self._save = True
