"""The first moments of `pggan-fast`, before torch is imported, which takes seconds.

Does nothing where the package is imported by another program. Imports nothing but the standard library.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType

SPINS = 10_000  # about half a millisecond; libgomp's own default is thirty times that
USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count it
LONG_COMMANDS = ("train", "demo")

_asked = {"stop": False, "save": False}
_importing = True


def is_command_line() -> bool:
    """Return whether this process is `pggan-fast` or `python -m pggan_fast`."""
    program = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    if program in ("pggan-fast", "pggan-fast.exe"):
        return True
    original = sys.orig_argv
    # In `-m` the module's own name comes before any argument of the program.
    return program == "-m" and original[original.index("-m") + 1 : original.index("-m") + 2] == ["pggan_fast"]


def prepare() -> None:
    """Open what stands for closed standard streams, answer signals, and settle how long OpenMP's threads spin."""
    _open_standard_streams()
    sys.excepthook = _report_missing_memory
    arguments = (
        sys.argv[1:] if os.path.basename(sys.argv[0]) != "-m" else sys.orig_argv[sys.orig_argv.index("-m") + 2 :]
    )
    if arguments[:1] and arguments[0] in LONG_COMMANDS:
        if sys.platform.startswith("linux") and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
            os.environ["GOMP_SPINCOUNT"] = str(SPINS)  # libgomp reads it once, when torch is loaded
        _answer_signals()
    elif signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def imported() -> None:
    """Note that everything is imported: from here on a request to stop waits until a run can be saved.

    Commands without a run get Python's KeyboardInterrupt, for which somebody is ready now.
    """
    global _importing
    _importing = False
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def stop_is_asked() -> bool:
    """Return whether Ctrl-C, SIGTERM or SIGHUP came."""
    return _asked["stop"]


def take(request: str) -> bool:
    """Return whether "stop" or "save" was asked for, once."""
    asked, _asked[request] = _asked[request], False
    return asked


def _report_missing_memory(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Say in one line that torch cannot be loaded for want of memory, which nobody above can catch."""
    without_memory = isinstance(error, MemoryError) or any(
        reason in str(error) for reason in ("failed to map segment", "annot allocate memory", "std::bad_alloc")
    )
    if not (_importing and without_memory):
        sys.__excepthook__(kind, error, traceback)
        return
    print(
        f"pggan-fast: error: there is too little memory to load torch ({str(error) or 'MemoryError'})", file=sys.stderr
    )
    sys.stderr.flush()
    os._exit(USER_ERROR)


def _open_standard_streams() -> None:
    """Without this the next file that is opened, a checkpoint say, would get what is printed."""
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _answer_signals() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and (name == "SIGINT" or signal.getsignal(number) is not signal.SIG_IGN):
            signal.signal(number, _stop)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, _save)


def _stop(number: int, _frame: FrameType | None) -> None:
    if _importing:
        _leave(number, _frame)
    if _asked["stop"] and number == signal.SIGINT:
        raise KeyboardInterrupt
    _asked["stop"] = True


def _leave(_number: int, _frame: FrameType | None) -> None:
    """End the process: nothing is written yet, and an exception would end in a traceback through torch."""
    try:
        os.write(2, b"pggan-fast: interrupted\n")
    finally:
        os._exit(INTERRUPTED)


def _save(_number: int, _frame: FrameType | None) -> None:
    _asked["save"] = True
