"""Where tests of what a GPU alone has run: on one, or where the CUDA kernels run on the CPU, on that harness.

The harness has no streams and no graphs: there a replay computes anew, so that the tests' own code runs.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from torch.utils._pytree import tree_leaves

from pggan_fast.ops import conv_halo_gradients, sign_bits
from pggan_fast.ops.dispatch import unavailable_reason
from tests.cuda_on_cpu.build import load
from tests.ops.devices import exact_convolutions
from tests.ops.implementations import cuda_kernels_on_cpu

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
if not ON_GPU and not {"PGGAN_FAST_TEST_KERNELS", "PGGAN_FAST_REHEARSE_GPU"} & set(os.environ):
    pytest.skip("no GPU, and no harness but in make test-kernels", allow_module_level=True)


def captured(function: Callable[[], object]) -> tuple[object, Callable[[], object]]:
    """Return the results' memory and what writes it: function's launches, in a graph."""
    if not ON_GPU:
        results = function()

        def compute_anew() -> None:
            for result, new in zip(tree_leaves(results), tree_leaves(function()), strict=True):
                result.copy_(new)

        return results, compute_anew
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return results, graph.replay


def warmed_up(function: Callable[[], object]) -> None:
    """Call a function on a stream of its own, as must be done before its launches are captured."""
    if not ON_GPU:
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def launched() -> Iterator[set[str]]:
    """Give a set that has the names of the launches inside once it is left: on the harness, which alone counts them."""
    names: set[str] = set()
    if ON_GPU:
        yield names
        return
    controls = load()
    controls.take_launches()
    yield names
    names.update(launch.name for launch in controls.take_launches())


@contextmanager
def native_kernels(smallest: int | None = None) -> Iterator[None]:
    """Inside, layers take the CUDA kernels as on a GPU; on the harness, halo tiles from `smallest` rows on."""
    with ExitStack() as stack:
        if ON_GPU:
            stack.enter_context(exact_convolutions())
        else:
            stack.enter_context(cuda_kernels_on_cpu())
            stack.enter_context(mock.patch.object(sign_bits, "has_gpu_kernels", lambda t: True))
            stack.enter_context(mock.patch.object(conv_halo_gradients, "_has_kernels", lambda x, more_memory: True))
            if smallest is not None:
                stack.enter_context(mock.patch.object(conv_halo_gradients, "SMALLEST", smallest))
        yield


def kernels_of(impl: str) -> AbstractContextManager:
    """Return what must be entered around calls of an implementation by name, or skip the test."""
    if ON_GPU and (reason := unavailable_reason(impl.removeprefix("gpu_"), "cuda")):
        pytest.skip(reason)
    return nullcontext() if ON_GPU else cuda_kernels_on_cpu()
