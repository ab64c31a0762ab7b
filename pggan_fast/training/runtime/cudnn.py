"""How cuDNN chooses its algorithms while a run trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cudnn_settings(*, benchmark: bool) -> Iterator[None]:
    """Let cuDNN take deterministic algorithms alone, and restore its settings afterwards.

    With `benchmark` it times them at every new shape, so at every stage, and takes the fastest; which one that is may
    differ from process to process, and with it the last bits of a resumed run.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, benchmark
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
