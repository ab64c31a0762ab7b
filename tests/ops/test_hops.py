"""How many functions lie between a public one and its kernel: Python's frames, as a profiler sees them."""

import sys

import pytest
import torch

from pggan_fast import _native, ops
from pggan_fast.ops.registry import TRITON_INTERPRETED

needs_triton = pytest.mark.skipif(not TRITON_INTERPRETED, reason="in Triton's interpreter: TRITON_INTERPRET=1")


def hops(function, name: str) -> int:
    """Return the depth of the first call of `name`, a function of Python or C, below the lambda, which counts as 1."""
    depth, found = 0, []

    def see(frame, event, argument):
        nonlocal depth
        if event == "call":
            depth += 1
            if frame.f_code.co_name == name:
                found.append(depth)
        elif event == "return":
            depth -= 1
        elif event == "c_call" and argument.__name__ == name:
            found.append(depth + 1)

    function()  # imports and caches
    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found[0]


def inputs() -> tuple[torch.Tensor, ...]:
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    return x, torch.randn(4, 4, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)


def test_native_bias_act_is_3_functions_of_python():
    """The dispatcher calls C++ from the third, where csrc has its own: 7 in all."""
    x, _, bias = inputs()
    assert hops(lambda: ops.bias_act(x, bias, impl="native"), "below_autograd") - 1 == 3


@needs_triton
def test_triton_bias_act_is_8_functions():
    """`launch` calls the kernel."""
    x, _, bias = inputs()
    assert hops(lambda: ops.bias_act(x, bias, impl="triton"), "launch") - 1 + 1 <= 8


@needs_triton
def test_triton_equalized_conv2d_is_9_functions():
    x, weight, bias = inputs()
    call = lambda: ops.equalized_conv2d(x, weight, bias, act="lrelu", impl="triton")  # noqa: E731
    assert hops(call, "launch") - 1 + 1 <= 9


def test_native_equalized_conv2d_is_9_functions():
    """aten's convolution is called by `convolution`, and the epilogue's op from beside it."""
    x, weight, bias = inputs()
    call = lambda: ops.equalized_conv2d(x, weight, bias, act="lrelu", impl="native")  # noqa: E731
    assert hops(call, "convolution") - 1 + 1 <= 9


@pytest.mark.skipif(not _native.cpu_available, reason=_native.cpu_reason)
def test_equalized_conv2d_on_a_cpu_is_7_functions():
    """The composite is called without the dispatcher."""
    x = torch.randn(2, 64, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.randn(64, 64, 3, 3, requires_grad=True), torch.randn(64, requires_grad=True)
    call = lambda: ops.equalized_conv2d(x, weight, bias, act="lrelu")  # noqa: E731
    assert hops(call, "convolution") - 1 + 1 <= 7
