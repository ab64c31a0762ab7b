"""The host's work for one launch that was planned and compiled before: Python's calls, counted.

    python -m tests.kernels.test_host_cost_compiled

prints the counts and, for the machine at hand, the median time.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton")
from triton.compiler.compiler import CompiledKernel  # noqa: E402

from bench.roofline.aot import assumed_gpu  # noqa: E402
from pggan_fast.kernels import bias_act, conv, conv_weight_gradient  # noqa: E402

TRITONS = triton.__path__[0]


def _images(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)


X, WEIGHT = _images(1, 16, 8, 8), _images(16, 16, 3, 3)
BIAS = torch.zeros(16)
LAUNCHES = {
    "convolution": partial(conv.convolve, X, WEIGHT, size=(8, 8), padding=1),
    "weight gradient": partial(conv_weight_gradient.weight_gradient, X, X, WEIGHT, padding=1),
    "bias_act": partial(bias_act.forward, X, BIAS, 1.0, "lrelu", 0.2, 1.0, True, 1e-8),
}


@contextmanager
def on_a_gpu_that_does_nothing() -> Iterator[mock.Mock]:
    """Inside, Triton compiles for capability 9.0 and launches into a mock, which is yielded."""
    run = mock.Mock()
    with (
        assumed_gpu(90),
        mock.patch.object(CompiledKernel, "_init_handles", lambda self: None),
        mock.patch.object(CompiledKernel, "run", property(lambda self: run)),
    ):
        yield run


def calls_of(launch: Callable) -> tuple[list[str], list[str]]:
    """Names of the Python functions called, ours and torch's, then Triton's; without those of the mock."""
    ours, tritons = [], []

    def see(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_filename != mock.__file__:
            # What this file puts in the place of Triton's counts as that; a binder is made by exec, without a file.
            is_tritons = code.co_filename.startswith((TRITONS, __file__)) or code.co_name == "dynamic_func"
            (tritons if is_tritons else ours).append(code.co_name)

    sys.setprofile(see)
    try:
        launch()
    finally:
        sys.setprofile(None)
    return ours, tritons


def seconds_of(launch: Callable, times: int = 1000) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        launch()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


# Launches of each, and Python functions called in them when this was written with some room: 9, 16 and 25, the mocked
# driver's two of each launch included.
@pytest.mark.parametrize(
    ("name", "launches", "most"), [("convolution", 1, 11), ("weight gradient", 2, 19), ("bias_act", 1, 28)]
)
def test_a_planned_launch_calls_few_functions(name, launches, most):
    """Counted and not timed, so that a busy machine changes nothing; docs/kernels.md says what they take."""
    with on_a_gpu_that_does_nothing() as run:
        LAUNCHES[name]()  # compiles and plans
        run.reset_mock()
        ours, tritons = calls_of(LAUNCHES[name])
    assert run.call_count == launches
    assert launches < len(ours) <= most, ours
    # Triton's own are 11 a launch in version 3.8.
    assert launches < len(tritons) <= 15 * launches, tritons


if __name__ == "__main__":
    with on_a_gpu_that_does_nothing() as run:
        for name, launch in LAUNCHES.items():
            launch()
            run.reset_mock()
            ours, tritons = calls_of(launch)
            print(name, run.call_count, len(ours), len(tritons), f"{1e6 * seconds_of(launch):.0f} us", ours, tritons)
