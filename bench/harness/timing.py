"""How things are timed: all variants of one case in one process, interleaved, over warm memory.

A round calls every variant once, each round starting with another one, each variant on another set of
inputs than the one before it used; what pytest-benchmark times and records is the round. Ratios are
taken within a round and their median reported, so a slow spell of the machine hits both sides.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

ROUNDS_AT_LEAST = 5
ROUNDS_AT_MOST = 60
WARM_UP = 0.05
SHORTEST_SAMPLE = 1e-3
"""Seconds of one sample, below which the clock and the loop would show."""

Variant = Callable[[int], object]
"""A call of one provider on the i-th set of inputs."""


@dataclass
class Case:
    """One thing to time: `variants` by provider name; `check` raises unless all agree.

    `labels` say what it is (suite, shape, dtype, layout, pass); `input_sets` is how many sets of inputs
    the variants rotate through; `moved_bytes` is what the work must at least read and write, by the
    byte formula of its suite, or None where memory is not the limit. A variant that takes less than
    `sample_seconds` is called several times per sample.
    """

    labels: dict[str, str]
    variants: dict[str, Variant]
    check: Callable[[], None]
    input_sets: int = 1
    moved_bytes: int | None = None
    device: str = "cpu"
    sample_seconds: float = SHORTEST_SAMPLE


def seconds_on_cpu(variant: Variant, inputs: int, repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        variant(inputs)
    return time.perf_counter() - begin


def seconds_on_gpu(variant: Variant, inputs: int, repeats: int) -> float:
    """Between two events of the current stream, so that what was launched before is not counted."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        variant(inputs)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def captured(case: Case) -> Case:
    """The case with every variant as CUDA graphs, one for each set of inputs: the device's time alone."""

    def graph_of(variant: Variant, i: int) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            variant(i)  # compiles and fills caches, which a capture cannot
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            variant(i)
        return graph

    def replaying(variant: Variant) -> Variant:
        graphs = [graph_of(variant, i) for i in range(case.input_sets)]
        return lambda i: graphs[i].replay()

    variants = {name: replaying(variant) for name, variant in case.variants.items()}
    labels = {**case.labels, "suite": f"{case.labels['suite']}, graphs"}
    return replace(case, labels=labels, variants=variants)


class Round:
    """Call every variant of a case once per call and keep the seconds of each."""

    def __init__(self, case: Case):
        self.case = case
        self.samples: dict[str, list[float]] = {name: [] for name in case.variants}
        self.repeats = 1
        self.count = 0
        self.seconds = seconds_on_gpu if case.device == "cuda" else seconds_on_cpu

    def warm_up(self) -> float:
        """Run for WARM_UP seconds, at least twice, and set the calls per sample. Seconds per round."""
        begin = time.perf_counter()
        while self.count < 2 or time.perf_counter() - begin < WARM_UP:
            self()
        fastest = min(samples[-1] for samples in self.samples.values())
        self.repeats = max(1, math.ceil(self.case.sample_seconds / fastest))
        per_round = sum(samples[-1] for samples in self.samples.values()) * self.repeats
        for samples in self.samples.values():
            samples.clear()
        self.count = 0
        return per_round

    def __call__(self) -> None:
        names = list(self.case.variants)
        start = self.count % len(names)
        for turn, name in enumerate(names[start:] + names[:start]):
            variant, inputs = self.case.variants[name], (self.count + turn) % self.case.input_sets
            with nvtx_range(self.case, name):
                taken = self.seconds(variant, inputs, self.repeats)
            self.samples[name].append(taken / self.repeats)
        self.count += 1


def nvtx_range(case: Case, variant: str) -> AbstractContextManager:
    """A range that names case and variant in NVIDIA's profilers."""
    if case.device != "cuda":
        return nullcontext()
    return torch.cuda.nvtx.range("/".join([*case.labels.values(), variant]))


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Inside, cuDNN computes fp32 in fp32: the gates' tolerances are for that, what is timed keeps torch's default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def measure(benchmark, case: Case, seconds: float) -> dict:
    """Gate the case, time it for about `seconds` under pytest-benchmark, return its record (JSON)."""
    with exact_convolutions():
        case.check()
    gc.collect()
    rounds = Round(case)
    per_round = rounds.warm_up()
    count = int(seconds / per_round)
    benchmark.pedantic(rounds, rounds=min(max(count, ROUNDS_AT_LEAST), ROUNDS_AT_MOST))
    record = {
        **case.labels,
        "rounds": rounds.count,
        "repeats": rounds.repeats,
        "moved_bytes": case.moved_bytes,
        "seconds": {name: spread(samples) for name, samples in rounds.samples.items()},
        "speedups": speedups(rounds.samples),
    }
    benchmark.extra_info.update(record)
    return record


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile, to four digits."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    values = statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)]
    return dict(zip(("median", "p20", "p80"), (float(f"{v:.4g}") for v in values), strict=True))


def speedups(samples: dict[str, list[float]]) -> dict[str, dict[str, dict[str, float]]]:
    """How many times as long another provider took as ours, round by round: [ours][other]."""
    return {
        ours: {
            other: spread([a / b for a, b in zip(samples[other], samples[ours], strict=True)])
            for other in samples
            if other != ours
        }
        for ours in samples
        if ours.startswith("ours")
    }


TOLERANCE = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (1e-2, 5e-2)}
"""Allowed error against the baseline in fp32, by dtype: (RMS over RMS, maximum over maximum).

fp32: sums in another order, of up to a million numbers that cancel (bias gradients). bf16: eager rounds to 8 bits after
every operation, so the baseline's own error is a few times 2**-9.
"""


def assert_close(name: str, actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """No figure for a wrong result: raise AssertionError unless `actual` is `expected` up to TOLERANCE."""
    assert actual.shape == expected.shape, f"{name}: shape {actual.shape}, not {expected.shape}"
    difference, expected = (actual.float() - expected.float()).abs(), expected.float()
    rms = rms_of(difference) / max(rms_of(expected), 1e-30)
    largest = difference.max().item() / max(expected.abs().max().item(), 1e-30)
    allowed_rms, allowed_largest = TOLERANCE[dtype]
    assert rms <= allowed_rms, f"{name}: RMS error {rms:.1e} above {allowed_rms:.0e}"
    assert largest <= allowed_largest, f"{name}: error {largest:.1e} above {allowed_largest:.0e}"


def rms_of(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
