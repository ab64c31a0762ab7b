"""Triton kernels of training steps and ops, compiled by parallel processes into Triton's cache.

In one process the kernels of the op matrix alone compile for 39 minutes, and everything after this part would wait.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed

from bench.gpu_check import findings

SIZES = ((8, 4),) if findings.REHEARSAL else ((64, 32), (256, 8), (1024, 4))  # px, batch
KINDS = ("exact",) if findings.REHEARSAL else ("exact", "tf32", "bf16", "fp16")


def compile(part: findings.Part) -> None:  # noqa: A001 - the part's name
    """Run one step of each size, precision and implementation, a process each."""
    impls = ("auto",) if findings.REHEARSAL else ("auto", "triton")
    jobs = [(r, n, kind, impl) for r, n in SIZES for kind in KINDS for impl in impls]
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(max(1, min(12, (os.cpu_count() or 1) - 1)), mp_context=context) as pool:
        running = {pool.submit(one_step, *job): job for job in jobs}
        for done in as_completed(running):
            r, n, kind, impl = running[done]
            part.look(f"{r} px x {n} {kind} {impl}", done.result)


def one_step(resolution: int, batch: int, kind: str, impl: str) -> dict[str, float]:
    """Compute one training step of the paper's networks."""
    from bench.gpu_check.workload import images, networks
    from pggan_fast import use_impl
    from pggan_fast.training import TrainStep

    step = TrainStep(*networks(resolution), precision=findings.set_precision(kind))
    with use_impl(impl):
        scalars = step(images(batch, resolution).to(findings.DEVICE))
    return {"d_loss": scalars["d_loss"].item()}
