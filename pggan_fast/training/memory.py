"""Memory that stays with the process instead of going back to the kernel after every step, and what to do without."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pggan_fast.training.errors import UserError

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3

GIBIBYTE = 1 << 30
OLDER_LIMIT = 1 << 25  # the most that glibc before 2.35 takes as an mmap threshold


def keep_freed_memory(threshold: int = GIBIBYTE) -> bool:
    """Raise malloc's mmap and trim thresholds to `threshold` bytes; True where that was possible.

    By default glibc hands blocks from 32 MB up back to the kernel when they are freed and gets
    fresh, zeroed pages for the next one. On large activations those page faults cost several
    times the arithmetic.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    kept = libc.mallopt(M_MMAP_THRESHOLD, threshold) or libc.mallopt(M_MMAP_THRESHOLD, OLDER_LIMIT)
    return bool(kept and libc.mallopt(M_TRIM_THRESHOLD, threshold))


@contextmanager
def advice_when_out_of_memory() -> Iterator[None]:
    """Turns the many forms of that error into a UserError that names the settings to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _advice(error) from error
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # torch's allocator for the CPU has no class for it
            raise
        raise _advice(error) from error


def _advice(error: BaseException) -> UserError:
    reason = (str(error).splitlines() or ["no memory is left"])[0]
    return UserError(
        f"out of memory ({reason}); go on with one or more of: --micro-batch N below the batch size,"
        " --activation-checkpointing, --precision bf16"
    )
