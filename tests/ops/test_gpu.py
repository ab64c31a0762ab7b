"""Features of a GPU alone: streams, several devices, graphs. `make gpu-check` runs them, `make test-kernels` the code.

Without a GPU the kernels run on the CPU, where a stream is none and a graph computes anew: tests/ops/gpu.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.ops.gpu import DEVICE, ON_GPU, captured, kernels_of
from tests.ops.op_calls import CALLS, FUSED_CALLS, Call, Make

OURS = [call for call in CALLS if call.has_gpu_kernel or call.op.startswith("equalized_conv2d")] + FUSED_CALLS


@pytest.fixture(params=["gpu_native", "gpu_triton"] if ON_GPU else ["cuda_on_cpu"])
def kernel(request) -> Iterator[Callable[[Call], Callable]]:
    """Return the op of a call, in one implementation's kernels."""
    is_triton = request.param == "gpu_triton"
    with kernels_of(request.param):
        yield lambda call: call.triton or pytest.skip("not a Triton kernel") if is_triton else call.overload


def arguments(call: Call, device: str = DEVICE) -> tuple:
    return tree_map_only(Tensor, lambda t: t.to(device), call.arguments(Make(torch.float32)))


def zeros(call: Call) -> tuple:
    return tree_map_only(Tensor, torch.zeros_like, arguments(call))


def fill(tensors: tuple, values: tuple) -> None:
    for t, value in zip(tensors, values, strict=True):
        if isinstance(t, Tensor):
            t.copy_(value)


def assert_same(results: object, expected: object) -> None:
    for result, e in zip(tree_leaves(results), tree_leaves(expected), strict=True):
        assert torch.equal(result.cpu(), e.cpu())


@contextmanager
def busy_stream() -> Iterator[None]:
    """Inside, another stream is the current one, and starts tens of milliseconds late."""
    if not ON_GPU:
        yield
        return
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        yield
    stream.synchronize()


@pytest.mark.parametrize("call", OURS, ids=str)
def test_ops_run_on_the_current_stream(kernel, call):
    """Ops read what is written on their stream, late: on another stream they would read the zeros before."""
    op, values, inputs = kernel(call), arguments(call), zeros(call)
    expected = op(*arguments(call))
    with busy_stream():
        fill(inputs, values)
        results = op(*inputs)
    assert_same(results, expected)


@pytest.mark.parametrize("call", OURS, ids=str)
def test_ops_run_on_the_device_of_their_tensors(kernel, call):
    if ON_GPU and torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    op, other = kernel(call), "cuda:1" if ON_GPU else "cpu"
    results = op(*arguments(call, other))
    assert {r.device for r in tree_leaves(results)} == {torch.device(other)}
    assert_same(results, op(*arguments(call)))


@pytest.mark.parametrize("call", OURS, ids=str)
def test_ops_are_captured_in_a_graph(kernel, call):
    """They wait for nothing, and read alpha where it will be: a replay computes with new values."""
    op, values, inputs = kernel(call), arguments(call), zeros(call)
    expected = op(*arguments(call))
    results, replay = captured(lambda: op(*inputs))
    fill(inputs, values)
    replay()
    assert_same(results, expected)
