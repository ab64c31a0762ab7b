"""The ops that are timed: inputs, providers and byte formula of each, as a `Case` per setting."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench import eager
from bench.timing import Case, Variant, assert_close
from pggan_fast import ops

Shape = tuple[int, int, int, int]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
PASSES = ("forward", "forward+backward")

ALPHA = 0.3
ROTATED_BYTES = 256 << 20
"""Inputs are rotated through as many sets as fit here, so that no variant finds them in a cache."""


@dataclass(frozen=True)
class Op:
    """One row of the benchmark. `inputs(shape, dtype, generator)` gives NCHW tensors; `moved(n, itemsize)`
    is the least number of bytes that (forward, backward) read and write for n elements at the large
    side, None where arithmetic is the limit."""

    name: str
    inputs: Callable[[Shape, torch.dtype, torch.Generator], list[Tensor]]
    eager: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    moved: Callable[[int, int], tuple[float, float]] | None = None
    passes: tuple[str, ...] = PASSES
    dtypes: tuple[str, ...] = tuple(DTYPES)


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


def uint8_inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)]


def conv_inputs(up: int) -> Callable[[Shape, torch.dtype, torch.Generator], list[Tensor]]:
    def inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
        n, c, h, w = shape
        x = normal((n, c, h // up, w // up), dtype, generator)
        return [x, normal((c, c, 3, 3), dtype, generator), normal((c,), dtype, generator)]

    return inputs


def he(weight: Tensor) -> float:
    return math.sqrt(2 / weight[0].numel())


OPS = (
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

BIAS_ACT = Op("bias_act", bias_act_inputs, eager.bias_act, lambda x, bias: ops.bias_act(x, bias))
SMALL_OPS = (BIAS_ACT, OPS[0], OPS[1])


def op_case(op: Op, shape: Shape, dtype: str, layout: str, passes: str, *, compiled: bool, copied: bool) -> Case:
    """The case of one op: eager and ours; torch.compile of eager and a copy of the moved bytes if asked."""
    memory_format, torch_dtype = LAYOUTS[layout], DTYPES[dtype]
    generator = torch.Generator().manual_seed(0)
    first = [place(t, memory_format) for t in op.inputs(shape, torch_dtype, generator)]
    gradient = None
    if passes != "forward":
        gradient = place(torch.randn(op.eager(*first).shape, generator=generator), memory_format)
        gradient = gradient.to(torch_dtype)
    sets = rotated(first, gradient)

    providers = {"eager": op.eager, "ours": op.ours}
    if compiled:
        torch.compiler.reset()
        providers["compile"] = torch.compile(op.eager, dynamic=False)
    variants = {name: variant(function, sets) for name, function in providers.items()}
    moved = None
    if op.moved and copied:
        elements = shape[0] * shape[1] * shape[2] * shape[3]
        forward, backward = op.moved(elements, torch_dtype.itemsize)
        moved = int(forward + (backward if gradient is not None else 0))
        variants["copy"] = copying(moved, torch_dtype, len(sets))

    def check() -> None:
        wide = [t.float() if t.is_floating_point() else t for t in first]
        expected = run(op.eager, wide, None if gradient is None else gradient.float())
        for name, function in providers.items():
            actual = run(function, first, gradient)
            for i, pair in enumerate(zip(actual, expected, strict=True)):
                assert_close(f"{op.name}, {name}, {'output' if i == 0 else f'gradient {i}'}", *pair, torch_dtype)

    labels = {
        "suite": op.name,
        "shape": "x".join(map(str, shape)),
        "dtype": dtype,
        "layout": layout,
        "pass": passes,
    }
    return Case(labels, variants, check, len(sets), moved)


def place(t: Tensor, memory_format: torch.memory_format) -> Tensor:
    return t.contiguous(memory_format=memory_format) if t.ndim == 4 else t


def rotated(inputs: list[Tensor], gradient: Tensor | None) -> list[tuple[list[Tensor], Tensor | None]]:
    """The inputs and the output's gradient, and copies of them elsewhere in memory."""
    tensors = [*inputs, *([] if gradient is None else [gradient])]
    size = sum(t.numel() * t.itemsize for t in tensors)
    count = min(max(ROTATED_BYTES // size, 4), 16)
    sets = []
    for _ in range(count):
        fresh = [t.clone() for t in inputs]
        if gradient is not None:
            fresh = [t.requires_grad_(True) for t in fresh]
        sets.append((fresh, None if gradient is None else gradient.clone()))
    return sets


def run(function: Callable[..., Tensor], inputs: list[Tensor], gradient: Tensor | None) -> list[Tensor]:
    """[output, *gradients of the inputs]."""
    if gradient is None:
        return [function(*inputs)]
    inputs = [t.detach().requires_grad_(True) for t in inputs]
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]


def variant(function: Callable[..., Tensor], sets: list[tuple[list[Tensor], Tensor | None]]) -> Variant:
    def forward(i: int) -> object:
        return function(*sets[i][0])

    def forward_backward(i: int) -> object:
        inputs, gradient = sets[i]
        return torch.autograd.grad(function(*inputs), inputs, gradient)

    return forward if sets[0][1] is None else forward_backward


def copying(moved: int, dtype: torch.dtype, sets: int) -> Variant:
    """A clone that reads half of `moved` bytes and writes as many."""
    sources = [torch.ones(moved // 2 // dtype.itemsize, dtype=dtype) for _ in range(sets)]
    return lambda i: sources[i].clone()
