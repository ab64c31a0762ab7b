"""Findings: one JSON line each, on the disk before the next is looked for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

REHEARSAL = "PGGAN_FAST_REHEARSE_GPU" in os.environ
DEVICE = "cpu" if REHEARSAL else "cuda"
OUT = "PGGAN_FAST_GPU_CHECK_OUT"


def record(out: Path, part: str, what: str, **values: Any) -> None:
    """Append a finding of `part` about `what` to results.jsonl and print it."""
    line = json.dumps({"part": part, "what": what, **values}, default=str)
    with open(out / "results.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line, flush=True)


def read(out: Path) -> list[dict[str, Any]]:
    """Return the findings on the disk, without a last line that was cut off."""
    path = out / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class Part:
    """The findings of one part: `look(what, work)` records what `work()` returns, or the error that it raises."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.out = Path(os.environ[OUT])
        self.failed = 0

    def look(self, what: str, work: Callable[[], dict[str, Any] | None]) -> None:
        begin = time.monotonic()
        try:
            values = work() or {}
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is a finding too
            self.failed += 1
            text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            record(self.out, self.name, what, failed=text, seconds=round(time.monotonic() - begin, 1))
            if "CUDA error" in text:  # sticky: nothing after it in this process can be right
                raise
        else:
            record(self.out, self.name, what, **values, seconds=round(time.monotonic() - begin, 1))


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def milliseconds(work: Callable[[], object], seconds: float = 0.5, least: int = 3) -> float:
    """Return the median time of `work()` between two events, after two calls to warm up."""
    work()
    work()
    synchronize()
    if DEVICE == "cpu":
        begin = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - begin)
    times: list[float] = []
    end_at = time.monotonic() + seconds
    while len(times) < least or time.monotonic() < end_at:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def set_precision(kind: str) -> str:
    """Set cuDNN for "exact", "tf32", "bf16" or "fp16" and return the precision that TrainStep takes.

    By the old switch: torch 2.11 raises when it is read after the newer `fp32_precision` was set.
    """
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    torch.backends.cudnn.deterministic = kind == "exact"
    return kind if kind in ("bf16", "fp16") else "fp32"
