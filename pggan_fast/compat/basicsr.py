"""`basicsr.ops.*` of BasicSR: GFPGAN, CodeFormer and Real-ESRGAN stand on it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pggan_fast.compat import rosinality


def fused_leaky_relu(input: Tensor, bias: Tensor | None, negative_slope: float = 0.2, scale: float = 2**0.5) -> Tensor:
    return rosinality.fused_leaky_relu(input, bias, negative_slope, scale)


class FusedLeakyReLU(nn.Module):
    """Bias, leaky ReLU and a scale. State: `bias` [channel]."""

    def __init__(self, channel: int, negative_slope: float = 0.2, scale: float = 2**0.5) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channel))
        self.negative_slope, self.scale = negative_slope, scale

    def forward(self, input: Tensor) -> Tensor:
        return fused_leaky_relu(input, self.bias, self.negative_slope, self.scale)


def upfirdn2d(input: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: Sequence[int] = (0, 0)) -> Tensor:
    """pad: (before, after) on both axes; whatever follows is not read, as there."""
    return rosinality.filtered(input, kernel, up, down, (pad[0], pad[1], pad[0], pad[1]))


def _activations(module) -> dict[str, object]:
    return {**rosinality.ACTIVATIONS, "FusedLeakyReLU": FusedLeakyReLU, "fused_leaky_relu": fused_leaky_relu}


def _filters(module) -> dict[str, object]:
    return {**rosinality.FILTERS, "upfirdn2d": upfirdn2d}


MODULES = {
    "basicsr.ops.fused_act": _activations,
    "basicsr.ops.fused_act.fused_act": _activations,
    "basicsr.ops.upfirdn2d": _filters,
    "basicsr.ops.upfirdn2d.upfirdn2d": _filters,
}
"""{module: a function of the module to what it holds}. Each package there takes its names from the module inside."""
