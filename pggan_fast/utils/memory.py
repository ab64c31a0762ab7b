"""Running out of memory, reported in one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pggan_fast.utils.errors import UserError

# Errors that have no class of their own, from torch's allocator, C++, threads and decoders.
WORDS = (
    "can't allocate memory",
    "bad_alloc",
    "can't start new thread",
    "out of memory",
    "Cannot allocate memory",
    "Unable to allocate",
)
TRAINING_ADVICE = "--micro-batch N below the batch size, --activation-checkpointing, --precision bf16"


@contextmanager
def advice_when_out_of_memory(advice: str = TRAINING_ADVICE) -> Iterator[None]:
    """Turn the many kinds of that error into a UserError that names the settings to change, `advice`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["no memory is left"])[0]
        raise UserError(f"out of memory ({reason}); continue with one or more of: {advice}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory has run out; allocators, threads and decoders have their own words for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or (error.errno is None and "out of memory" in str(error))
    return isinstance(error, (RuntimeError, ImportError)) and any(words in str(error) for words in WORDS)
