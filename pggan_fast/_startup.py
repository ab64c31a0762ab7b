"""The first moments of `pggan-fast`, before torch is imported, which takes seconds.

Does nothing where the package is imported by another program. Imports nothing but the standard library and words.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from types import FrameType, TracebackType

from pggan_fast.utils.memory_words import says_no_memory

SPINS = 10_000  # about half a millisecond; libgomp's own default is thirty times that
USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count it
LONG_COMMANDS = ("train", "demo")
SPARE = 96 << 20  # bytes that must be left when everything is imported, for a command to come to its own error
NOT_FOR_MEMORY = 3  # how the child leaves whose import failed for another reason

_asked = {"stop": False, "save": False}
_importing = True
_is_child = False
_spare: mmap.mmap | None = None


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
    if _address_space_is_limited():
        _import_in_a_child_first()


def imported() -> None:
    """Note that everything is imported: from here on a request to stop waits until a run can be saved.

    Commands without a run get Python's KeyboardInterrupt, for which somebody is ready now.
    """
    global _importing
    if _is_child:
        os._exit(0)
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


def _address_space_is_limited() -> bool:
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return False
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    return any(limit != resource.RLIM_INFINITY for limit in limits)


def _import_in_a_child_first() -> None:
    """Leave with one line if torch cannot be loaded within the limit.

    C++ and OpenBLAS end the process for want of memory, which no exception tells, so a child tries it: it imports what
    this process would, up to `imported`.
    """
    global _is_child, _spare
    child = os.fork()
    if child == 0:
        _is_child = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        try:
            _spare = mmap.mmap(-1, SPARE)
        except OSError:
            os._exit(USER_ERROR)
        return
    left = os.waitpid(child, 0)[1]
    if os.waitstatus_to_exitcode(left) not in (0, NOT_FOR_MEMORY):
        _leave_without_torch("the process may not take more: ulimit -v")


def _leave_without_torch(reason: str) -> None:
    print(f"pggan-fast: error: there is too little memory to load torch ({reason})", file=sys.stderr)
    sys.stderr.flush()
    os._exit(USER_ERROR)


def _report_missing_memory(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Say in one line that memory ran out where nobody above can catch it: while torch is loaded, or at the end."""
    text = " ".join(str(error).split())[:160]
    without_memory = isinstance(error, MemoryError) or says_no_memory(str(error))
    if _is_child:
        os._exit(USER_ERROR if without_memory else NOT_FOR_MEMORY)
    if not without_memory:
        sys.__excepthook__(kind, error, traceback)
        return
    if _importing:
        _leave_without_torch(text or "MemoryError")
    print(f"pggan-fast: error: out of memory ({text or 'no memory is left'})", file=sys.stderr)
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
