"""The StyleGAN family's ops in plain PyTorch, as its codebases compute them where their extensions do not compile.

Written from their definitions (Karras et al. 2020), with torch's functions alone: nothing of pggan_fast.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

FILTER = torch.tensor([1.0, 3.0, 3.0, 1.0])


def filter_4x4() -> Tensor:
    """[4, 4] of sum 1: a short filter is kept as its outer product."""
    f = torch.outer(FILTER, FILTER)
    return f / f.sum()


def upfirdn2d(
    x: Tensor, f: Tensor, up: int = 1, down: int = 1, padding: tuple[int, int] = (0, 0), gain: float = 1.0
) -> Tensor:
    """Put zeros behind each pixel, pad (before, after) on both axes, filter each channel, keep every down-th pixel."""
    n, c, h, w = x.shape
    if up > 1:
        x = F.pad(x.reshape(n, c, h, 1, w, 1), [0, up - 1, 0, 0, 0, up - 1]).reshape(n, c, h * up, w * up)
    x = F.pad(x, [*padding, *padding])
    taps = (f * gain).to(x.dtype).flip((0, 1))
    y = F.conv2d(x, taps[None, None].repeat(c, 1, 1, 1), groups=c)
    return y[:, :, ::down, ::down] if down > 1 else y


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "linear": (lambda x: x, 1.0),
    "relu": (F.relu, 2**0.5),
    "lrelu": (lambda x: F.leaky_relu(x, 0.2), 2**0.5),
    "tanh": (torch.tanh, 1.0),
    "sigmoid": (torch.sigmoid, 1.0),
    "elu": (F.elu, 1.0),
    "selu": (F.selu, 1.0),
    "softplus": (F.softplus, 1.0),
    "swish": (lambda x: torch.sigmoid(x) * x, 2**0.5),
}
"""Function and gain by name."""


def bias_act(x: Tensor, bias: Tensor, act: str = "lrelu", clamp: float | None = None) -> Tensor:
    """x [N, C, H, W], bias [C]."""
    function, gain = ACTIVATIONS[act]
    y = function(x + bias.reshape(1, -1, 1, 1))
    y = y * gain if gain != 1 else y
    return y if clamp is None else y.clamp(-clamp, clamp)


def modulated_conv2d(x: Tensor, weight: Tensor, styles: Tensor, *, fused: bool, noise: Tensor | None = None) -> Tensor:
    """x [N, C_in, H, W], weight [C_out, C_in, k, k], styles [N, C_in]; padded to the same size, demodulated.

    fused: with a weight for each sample and one grouped convolution, as in evaluation; else with one weight for all,
    x and the output scaled, as in training.
    """
    n, padding = len(x), weight.shape[-1] // 2
    own = weight[None] * styles.reshape(n, 1, -1, 1, 1)
    factors = (own.square().sum((2, 3, 4)) + 1e-8).rsqrt()  # [N, C_out]
    if not fused:
        y = F.conv2d(x * styles[:, :, None, None], weight, padding=padding)
        y = y * factors[:, :, None, None]
        return y if noise is None else y + noise
    own = (own * factors[:, :, None, None, None]).flatten(0, 1)
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), own, padding=padding, groups=n)
    y = y.reshape(n, -1, *y.shape[2:])
    return y if noise is None else y + noise
