"""Memory that stays with the process instead of going back to the kernel after every step, and what to do without."""

import ctypes
import platform

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
