"""Running out of memory, reported in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pggan_fast.utils.errors import UserError


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
