"""The ops that are timed: inputs, the baseline, ours, and what each must at least read and write."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.baseline import eager
from pggan_fast import ops

Shape = tuple[int, int, int, int]
ALPHA = 0.3

PASSES = ("forward", "forward+backward")
DOUBLE = "double backward"

# Of ops that are parts or relatives of those timed at every size.
TWO_SHAPES = ((4, 256, 64, 64), (2, 64, 256, 256))


@dataclass(frozen=True)
class Op:
    """One row of the benchmark. `inputs(shape, dtype, generator)` gives NCHW tensors; `moved(n, itemsize)`
    is the least number of bytes that (forward, backward) read and write for n elements at the large
    side, None where arithmetic is the limit. `shapes`: None for every size."""

    name: str
    inputs: Callable[[Shape, torch.dtype, torch.Generator], list[Tensor]]
    eager: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    moved: Callable[[int, int], tuple[float, float]] | None = None
    passes: tuple[str, ...] = PASSES
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    shapes: tuple[Shape, ...] | None = None


def normal(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).to(dtype)


def bias_act_inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    """x and bias with no sum near the activation's kink, where rounding would decide the gradient."""
    bias = normal((shape[1],), dtype, generator)
    x = torch.randn(shape, generator=generator)
    x += torch.sign(x + bias.float().view(1, -1, 1, 1)) * 0.05
    return [x.to(dtype), bias]


def fade_in_inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    n, c, h, w = shape
    return [
        normal((n, c, h // 2, w // 2), dtype, generator),
        normal(shape, dtype, generator),
    ]


def image_inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    return [normal(shape, dtype, generator)]


def low_inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    n, c, h, w = shape
    return [normal((n, c, h // 2, w // 2), dtype, generator)]


def uint8_inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)]


def conv_inputs(up: int, off_the_kink: bool = False) -> Callable[[Shape, torch.dtype, torch.Generator], list[Tensor]]:
    """x, weight and bias; `off_the_kink` with biases that hold every output on one side of an activation's kink."""

    def inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
        n, c, h, w = shape
        x = normal((n, c, h // up, w // up), dtype, generator)
        weight, bias = normal((c, c, 3, 3), dtype, generator), normal((c,), dtype, generator)
        return [x, weight, bias + 12 * bias.sign() if off_the_kink else bias]

    return inputs


def linear_inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    """The case of the discriminator's first dense layer, whose input is a map of this shape."""
    n, c, h, w = shape
    weight = normal((c, c * h * w), dtype, generator)
    return [normal((n, c * h * w), dtype, generator), weight, normal((c,), dtype, generator)]


def he(weight: Tensor) -> float:
    return math.sqrt(2 / weight[0].numel())


MAIN = (
    # forward reads x and writes y; backward reads dy and y and writes dx
    Op(
        "bias_act_pixel_norm",
        bias_act_inputs,
        eager.bias_act_pixel_norm,
        lambda x, bias: ops.bias_act(x, bias, pixel_norm=True),
        lambda n, size: (2 * n * size, 3 * n * size),
    ),
    # forward reads low and high and writes the blend; backward reads its gradient and writes both
    Op(
        "fade_in",
        fade_in_inputs,
        lambda low, high: eager.fade_in(low, high, ALPHA),
        lambda low, high: ops.fade_in(low, high, ALPHA),
        lambda n, size: (2.25 * n * size, 2.25 * n * size),
    ),
    Op(
        "fade_reals",
        image_inputs,
        lambda x: eager.fade_reals(x, ALPHA, x.dtype),
        lambda x: ops.fade_reals(x, ALPHA),
        lambda n, size: (2 * n * size, 2 * n * size),
    ),
    # as a training loop calls it: bytes in, floats out, no gradient
    Op(
        "fade_reals_uint8",
        uint8_inputs,
        lambda x: eager.fade_reals(x, ALPHA, torch.float32),
        lambda x: ops.fade_reals(x, ALPHA),
        lambda n, size: (5 * n, 0),
        passes=("forward",),
        dtypes=("fp32",),
    ),
    # forward reads x and writes it with one map more; backward reads both and writes dx
    Op(
        "minibatch_stddev",
        image_inputs,
        eager.minibatch_stddev,
        lambda x: ops.minibatch_stddev(x),
        lambda n, size: (2 * n * size, 3 * n * size),
    ),
    Op(
        "conv2d_up",
        conv_inputs(up=2),
        lambda x, weight, bias: eager.conv2d_up(x, weight, bias, he(weight)),
        lambda x, weight, bias: ops.equalized_conv2d(x, weight, bias, up=2),
    ),
    Op(
        "conv2d_down",
        conv_inputs(up=1),
        lambda x, weight, bias: eager.conv2d_down(x, weight, bias, he(weight)),
        lambda x, weight, bias: ops.equalized_conv2d(x, weight, bias, down=2),
    ),
)

BIAS_ACT = Op(
    "bias_act",
    bias_act_inputs,
    eager.bias_act,
    lambda x, bias: ops.bias_act(x, bias),
    lambda n, size: (2 * n * size, 3 * n * size),
    shapes=TWO_SHAPES,
)

OTHERS = (
    BIAS_ACT,
    Op(
        "pixel_norm",
        image_inputs,
        eager.pixel_norm,
        lambda x: ops.pixel_norm(x),
        lambda n, size: (2 * n * size, 3 * n * size),
        shapes=TWO_SHAPES,
    ),
    Op(
        "upsample2x",
        low_inputs,
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
        lambda x: ops.upsample2x(x),
        lambda n, size: (1.25 * n * size, 1.25 * n * size),
        shapes=TWO_SHAPES,
    ),
    Op(
        "downsample2x",
        image_inputs,
        lambda x: F.avg_pool2d(x, 2),
        lambda x: ops.downsample2x(x),
        lambda n, size: (1.25 * n * size, 1.25 * n * size),
        shapes=TWO_SHAPES,
    ),
    Op(
        "conv2d",
        conv_inputs(up=1),
        lambda x, weight, bias: F.conv2d(x, weight * he(weight), bias, padding=1),
        lambda x, weight, bias: ops.equalized_conv2d(x, weight, bias),
        shapes=TWO_SHAPES,
    ),
    # as G has it, with everything that follows the convolution
    Op(
        "conv2d_up_bias_act_pixel_norm",
        conv_inputs(up=2, off_the_kink=True),
        lambda x, weight, bias: eager.pixel_norm(F.leaky_relu(eager.conv2d_up(x, weight, bias, he(weight)), 0.2)),
        lambda x, weight, bias: ops.equalized_conv2d(x, weight, bias, up=2, act="lrelu", pixel_norm=True),
        passes=(*PASSES, DOUBLE),
        dtypes=("fp32",),
        shapes=TWO_SHAPES,
    ),
    Op(
        "linear",
        linear_inputs,
        lambda x, weight, bias: F.linear(x, weight * he(weight), bias),
        lambda x, weight, bias: ops.equalized_linear(x, weight, bias),
        shapes=((16, 512, 4, 4),),
    ),
)

SMALL = tuple(op for op in (*MAIN, *OTHERS) if "forward+backward" in op.passes)
