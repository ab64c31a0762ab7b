"""conv2d_gradfix of several codebases: torch's convolutions, and a context in which weights get no gradient."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor


class _Gate(torch.autograd.Function):
    """(weight, module) -> weight; no gradient passes while the module's `weight_gradients_disabled` is set."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight, module):
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.module = inputs[1]

    @staticmethod
    def backward(ctx, gradient):
        return None if ctx.module.weight_gradients_disabled else gradient, None


def gated(weight: Tensor, module: ModuleType | None) -> Tensor:
    """The weight, whose gradients end here while `module`, a conv2d_gradfix, disables them."""
    if module is not None and weight.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _Gate.apply(weight, module)
    return weight


def conv2d_gradfix(module: ModuleType) -> dict[str, object]:
    """The contents of `module`, whose flag `weight_gradients_disabled` the functions read and write."""

    @contextmanager
    def no_weight_gradients(disable: bool = True) -> Iterator[None]:
        before = module.weight_gradients_disabled
        module.weight_gradients_disabled = before or bool(disable)
        try:
            yield
        finally:
            module.weight_gradients_disabled = before

    def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        return F.conv2d(input, gated(weight, module), bias, stride, padding, dilation, groups)

    def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        weight = gated(weight, module)
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)

    def _should_use_custom_op(input):
        """Asked by nobody here; code that takes theirs out of use writes over it."""
        return bool(module.enabled)

    return {
        "enabled": vars(module).get("enabled", True),
        "weight_gradients_disabled": False,
        "no_weight_gradients": no_weight_gradients,
        "conv2d": conv2d,
        "conv_transpose2d": conv_transpose2d,
        "_should_use_custom_op": _should_use_custom_op,
    }
