"""Running out of memory, reported in one line."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pggan_fast.utils.errors import UserError
from pggan_fast.utils.memory_words import says_no_memory

TRAINING_ADVICE = "--micro-batch N below the batch size, --activation-checkpointing, --precision bf16"


GENERAL_ADVICE = "more memory for this process (ulimit -v, a container's limit), smaller networks"
BEGINNING = "out of memory ("


@contextmanager
def advice_when_out_of_memory(advice: str = TRAINING_ADVICE) -> Iterator[None]:
    """Turn the many kinds of that error into a UserError that names the settings to change, `advice`."""
    try:
        yield
    except Exception as error:
        line = describe_out_of_memory(error, advice)
        if line is None or line == str(error):
            raise
        raise UserError(line) from error


def describe_out_of_memory(error: BaseException, advice: str = GENERAL_ADVICE) -> str | None:
    """Return the line for a user, with `advice`, if memory ran out in `error` or in what led to it, else None."""
    if isinstance(error, UserError) and str(error).startswith(BEGINNING):
        return str(error)
    cause = next((link for link in chain_of(error) if is_out_of_memory(link)), None)
    if cause is None:
        return None
    reason = (str(cause).splitlines() or ["no memory is left"])[0][:160]
    return f"{BEGINNING}{reason}); continue with one or more of: {advice}"


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield `error`, what caused it, and so on: libraries and readers put errors of their own before the reason."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory has run out; allocators, threads and decoders have their own words for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM or (error.errno is None and "out of memory" in str(error))
    return isinstance(error, (RuntimeError, ImportError)) and says_no_memory(str(error))
