"""An op on another device, for tests that make their tensors on the CPU and look at the results there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class Moved(torch.autograd.Function):
    """(x, device) -> x there, in a buffer of the same strides and offset; differentiable to any order."""

    @staticmethod
    def forward(ctx, x, device):
        ctx.device = x.device
        span = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1 if x.numel() else 0
        buffer = torch.empty(x.storage_offset() + span, dtype=x.dtype, device=device)
        return buffer.as_strided(x.shape, x.stride(), x.storage_offset()).copy_(x)

    @staticmethod
    def backward(ctx, gradient):
        return Moved.apply(gradient, ctx.device), None


def on_device(function: Callable[[str], Callable], device: str) -> Callable[[str], Callable]:
    """`function` of an op's name, whose ops take tensors of the CPU, run on `device`, and give tensors of the CPU."""

    def named(op: str) -> Callable:
        inner = function(op)

        def call(*args, **kwargs):
            args, kwargs = tree_map_only(Tensor, lambda t: Moved.apply(t, device), (args, kwargs))
            return tree_map_only(Tensor, lambda t: Moved.apply(t, "cpu"), inner(*args, **kwargs))

        return call

    return named


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Inside, cuDNN computes fp32 in fp32, not in TF32 as by default, and gives the same bits every time.

    By the switch that torch 2.11 still reads. Tolerances are those of fp32, and gradcheck compares two runs bitwise.
    """
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before
