"""conv2d_gradfix of several codebases: torch's convolutions, and a context in which weights get no gradient."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor


class _Gate(torch.autograd.Function):
    """(weight, module) -> weight; no gradient passes while the module's `weight_gradients_disabled` is set."""

    @staticmethod
    def forward(ctx, weight, module):
        ctx.module = module
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, gradient):
        return None if ctx.module.weight_gradients_disabled else gradient, None


def conv2d_gradfix(module: ModuleType) -> dict[str, object]:
    """The contents of `module`, whose flag `weight_gradients_disabled` the functions read and write."""

    def gated(weight: Tensor) -> Tensor:
        if weight.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _Gate.apply(weight, module)
        return weight

    @contextmanager
    def no_weight_gradients(disable: bool = True) -> Iterator[None]:
        before = module.weight_gradients_disabled
        module.weight_gradients_disabled = before or bool(disable)
        try:
            yield
        finally:
            module.weight_gradients_disabled = before

    def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        return F.conv2d(input, gated(weight), bias, stride, padding, dilation, groups)

    def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        return F.conv_transpose2d(input, gated(weight), bias, stride, padding, output_padding, groups, dilation)

    return {
        "enabled": vars(module).get("enabled", True),
        "weight_gradients_disabled": False,
        "no_weight_gradients": no_weight_gradients,
        "conv2d": conv2d,
        "conv_transpose2d": conv_transpose2d,
    }
