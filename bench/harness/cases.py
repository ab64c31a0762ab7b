"""A `Case` for an op in one setting: inputs, providers and passes; the ops themselves are in table.py."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.harness.table import DOUBLE, Op, Shape
from bench.harness.timing import Case, Variant, assert_close
from pggan_fast import use_impl
from pggan_fast.ops.dispatch import unavailable_reason

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}

ROTATED_BYTES = 256 << 20
"""Inputs are rotated through as many sets as fit here, so that no variant finds them in a cache."""


def op_case(
    op: Op, shape: Shape, dtype: str, layout: str, passes: str, *, compiled: bool, copied: bool, device: str = "cpu"
) -> Case:
    """The case of one op: eager and ours; torch.compile of eager and a copy of the moved bytes if asked.

    On a GPU "ours" takes what it chooses there, and "ours_triton" Triton's kernels.
    """
    memory_format, torch_dtype = LAYOUTS[layout], DTYPES[dtype]
    generator = torch.Generator().manual_seed(0)
    first = [place(t, memory_format, device) for t in op.inputs(shape, torch_dtype, generator)]
    gradient = None
    if passes != "forward":
        gradient = place(torch.randn(op.eager(*first).shape, generator=generator), memory_format, device)
        gradient = gradient.to(torch_dtype)
    sets = rotated(first, gradient)

    providers = {"eager": op.eager, "ours": op.ours}
    if device == "cuda" and unavailable_reason("triton", device) is None:
        providers["ours_triton"] = in_triton(op.ours)
    if compiled:
        torch.compiler.reset()
        providers["compile"] = torch.compile(op.eager, dynamic=False)
    variants = {name: variant(function, sets, passes) for name, function in providers.items()}
    moved = None
    if op.moved and copied and passes != DOUBLE:
        elements = shape[0] * shape[1] * shape[2] * shape[3]
        forward, backward = op.moved(elements, torch_dtype.itemsize)
        moved = int(forward + (backward if gradient is not None else 0))
        variants["copy"] = copying(moved, torch_dtype, len(sets), device)

    def check() -> None:
        wide = [t.float() if t.is_floating_point() else t for t in first]
        expected = run(op.eager, wide, None if gradient is None else gradient.float(), passes)
        for name, function in providers.items():
            actual = run(function, first, gradient, passes)
            for i, pair in enumerate(zip(actual, expected, strict=True)):
                assert_close(f"{op.name}, {name}, {'output' if i == 0 else f'gradient {i}'}", *pair, torch_dtype)

    labels = {
        "suite": op.name,
        "shape": "x".join(map(str, shape)),
        "dtype": dtype,
        "layout": layout,
        "pass": passes,
    }
    return Case(labels, variants, check, len(sets), moved, device)


def place(t: Tensor, memory_format: torch.memory_format, device: str) -> Tensor:
    t = t.to(device)
    return t.contiguous(memory_format=memory_format) if t.ndim == 4 else t


def in_triton(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*inputs: Tensor) -> Tensor:
        with use_impl("triton"):
            return function(*inputs)

    return call


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


def differentiated(
    function: Callable[..., Tensor], inputs: list[Tensor], gradient: Tensor | None, passes: str
) -> list[Tensor]:
    """[output, *gradients of the inputs]; of the double backward the gradients of half the first ones' squares."""
    output = function(*inputs)
    if gradient is None:
        return [output]
    if passes != DOUBLE:
        return [output, *torch.autograd.grad(output, inputs, gradient)]
    first = torch.autograd.grad(output, inputs, gradient, create_graph=True)
    directions = [g.detach() for g in first]
    return [output, *torch.autograd.grad(first, inputs, directions, materialize_grads=True)]


def run(function: Callable[..., Tensor], inputs: list[Tensor], gradient: Tensor | None, passes: str) -> list[Tensor]:
    if gradient is not None:
        inputs = [t.detach().requires_grad_(True) for t in inputs]
    return [t.detach() for t in differentiated(function, inputs, gradient, passes)]


def variant(function: Callable[..., Tensor], sets: list[tuple[list[Tensor], Tensor | None]], passes: str) -> Variant:
    return lambda i: differentiated(function, *sets[i], passes)


def copying(moved: int, dtype: torch.dtype, sets: int, device: str) -> Variant:
    """A clone that reads half of `moved` bytes and writes as many."""
    sources = [torch.ones(moved // 2 // dtype.itemsize, dtype=dtype, device=device) for _ in range(sets)]
    return lambda i: sources[i].clone()
