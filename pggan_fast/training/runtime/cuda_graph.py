"""The training step as a CUDA graph: recorded once per stage, then started as a whole.

At 4 to 16 px the host needs longer to start a step's thousands of small kernels than the device to run
them. A recorded step leaves that out; whatever changes from step to step lives on the device: images,
alpha, learning rates, Adam's step count, the loss scale, what schedules change, the random generator's position.
The mean of gradients over processes is recorded with the rest, where NCCL takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from pggan_fast.training.penalties import Stats
from pggan_fast.training.step import TrainStep

WARM_UP = 2  # steps of a stage that run as usual: Adam's state and the libraries' work space must exist before


def recorded(step: TrainStep, device: torch.device, processes: int = 1) -> TrainStep | CUDAGraphStep:
    """Return the step as CUDA graphs on a CUDA device, else as it is; say where it cannot be recorded there."""
    if device.type != "cuda":
        return step
    if processes > 1 and "nccl" not in dist.get_backend():
        print(f"CUDA graphs are off: reductions by {dist.get_backend()} cannot be recorded, those by nccl can")
        return step
    return CUDAGraphStep(step, CudaRecorder())


class Recorder(Protocol):
    """How work on a device is recorded."""

    def warm_up(self, work: Callable[[], Stats]) -> Stats:
        """Run `work` under the conditions of a recording, without one."""

    def record(self, work: Callable[[], Stats]) -> tuple[Callable[[], None], Stats]:
        """Record `work` without running it; return a function that replays it, and the tensors of its results."""


class CudaRecorder:
    """CUDA graphs; warms up beside the default stream, which cannot be recorded."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()

    def warm_up(self, work: Callable[[], Stats]) -> Stats:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            results = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return results

    def record(self, work: Callable[[], Stats]) -> tuple[Callable[[], None], Stats]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = work()
        return graph.replay, results


class _Recording:
    """A step of one kind, run as usual WARM_UP times and then recorded."""

    def __init__(self, step: TrainStep, recorder: Recorder) -> None:
        self._step = step
        self._recorder = recorder
        self._warm_steps = 0
        self.failed = False
        self._replay: Callable[[], None] | None = None
        self._inputs: list[Tensor] = []
        self._results: Stats = {}

    def __call__(
        self, real: Tensor, labels: Tensor | None, alpha: float | Tensor, penalties: tuple[bool, ...]
    ) -> Stats:
        if self._warm_steps < WARM_UP or self.failed:
            self._warm_steps += 1
            return self._recorder.warm_up(lambda: self._step.run(real, labels, alpha=alpha, penalties=penalties))
        if self._replay is None:
            try:
                self._record(real, labels, alpha, penalties)
            except RuntimeError as error:
                # As of an operation that waits for the device, or too little memory for a graph's own.
                self.failed = True
                reason = str(error).partition("\n")[0]
                print(f"CUDA graphs are off: this step cannot be recorded ({reason})", flush=True)
                return self(real, labels, alpha, penalties)
        for kept, given in zip(self._inputs, _tensors(real, labels, alpha), strict=True):
            kept.copy_(given)
        self._replay()
        return self._results

    def _record(self, real: Tensor, labels: Tensor | None, alpha: float | Tensor, penalties: tuple[bool, ...]) -> None:
        real = real.contiguous(memory_format=torch.channels_last).clone()
        labels = None if labels is None else labels.clone()
        alpha = alpha.clone() if isinstance(alpha, Tensor) else alpha
        self._inputs = _tensors(real, labels, alpha)
        self._replay, self._results = self._recorder.record(
            lambda: self._step.run(real, labels, alpha=alpha, penalties=penalties)
        )


class CUDAGraphStep:
    """A TrainStep, called the same way, that records itself whenever shapes or the kind of alpha change.

    The first WARM_UP steps after a change run as usual. Steps with updates for penalties and steps without are recorded
    apart. The scalars returned are overwritten by the next call of the same kind.
    Adam's state may only be dropped where shapes or the kind of alpha change too, as stages do it.
    """

    def __init__(self, step: TrainStep, recorder: Recorder) -> None:
        self._step = step
        self._recorder = recorder
        self._stage: tuple | None = None
        self._failed = False  # at a recording: the rest of the run goes without
        self._recordings: dict[tuple[bool, ...], _Recording] = {}  # by `TrainStep.next_penalties`

    def __call__(self, real: Tensor, labels: Tensor | None = None, *, alpha: float | Tensor = 1.0) -> Stats:
        if self._failed:
            return self._step(real, labels, alpha=alpha)
        stage = real.shape, labels is None, None if isinstance(alpha, Tensor) else alpha
        if stage != self._stage:
            self._stage, self._recordings = stage, {}  # frees the old graphs' memory
        penalties = self._step.next_penalties()
        if penalties not in self._recordings:
            self._recordings[penalties] = _Recording(self._step, self._recorder)
        results = self._recordings[penalties](real, labels, alpha, penalties)
        if self._recordings[penalties].failed:
            self._failed, self._recordings = True, {}
        return results


def _tensors(*values: float | Tensor | None) -> list[Tensor]:
    return [value for value in values if isinstance(value, Tensor)]
