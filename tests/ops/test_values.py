"""Every op, in every implementation, layout and dtype: results and gradients of both orders against fp64.

Memory is poisoned: an element that a kernel leaves unwritten is a NaN.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from pggan_fast import reference
from tests.ops.implementations import IMPLEMENTATIONS, Implementation
from tests.ops.samples import DTYPES, LAYOUTS, SAMPLES, Sample, laid_out
from tests.tolerances import assert_accurate, coarsest

# Every layout in fp32, every dtype in the two native layouts.
CASES = [(layout, torch.float32) for layout in LAYOUTS]
CASES += [(layout, dtype) for layout in ("contiguous", "channels_last") for dtype in DTYPES if dtype != torch.float32]

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.filterwarnings("ignore:minibatch_stddev. no group size"),
]


def derivatives(
    function: Callable, tensors: dict[str, Tensor], layout: str, directions: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The result y, its gradients d_* in the inputs, and dd_*, the gradients of those in dy and the inputs.

    Directions are those of dy and of the first gradients; missing ones are drawn and added.
    """
    random = torch.Generator().manual_seed(1)

    def direction(name: str, like: Tensor) -> Tensor:
        if name not in directions:
            directions[name] = torch.randn(like.shape, dtype=torch.float64, generator=random).to(like.dtype)
        return laid_out(directions[name].to(like.dtype), layout)

    leaves = {k: t.detach().requires_grad_(t.is_floating_point()) for k, t in tensors.items()}
    with_gradient = {k: t for k, t in leaves.items() if t.requires_grad}
    y = function(*(laid_out(t, layout) for t in leaves.values()))
    if not y.requires_grad:
        return {"y": y}
    dy = direction("y", y).requires_grad_()
    d = torch.autograd.grad(y, with_gradient.values(), dy, create_graph=True, materialize_grads=True)
    first = dict(zip(with_gradient, d, strict=True))
    # Gradients that are constant, such as the bias's of a linear op in x, have no gradients of their own.
    differentiable = {k: t for k, t in first.items() if t.requires_grad}
    again = {"dy": dy} | with_gradient
    dd = torch.autograd.grad(
        list(differentiable.values()),
        list(again.values()),
        [direction(k, t) for k, t in differentiable.items()],
        materialize_grads=True,
    )
    second = dict(zip(again, dd, strict=True))
    found = {"y": y, **{f"d_{k}": t for k, t in first.items()}, **{f"dd_{k}": t for k, t in second.items()}}
    return {k: t.detach() for k, t in found.items()}


@cache
def expected(sample: Sample, dtype: torch.dtype) -> tuple[dict, dict, dict]:
    """(directions, what plain PyTorch computes in this dtype, what it computes in fp64 from the same inputs)."""
    tensors, directions = sample.tensors(dtype), {}
    function = getattr(reference, sample.op)
    plain = derivatives(lambda *t: function(*t, **sample.options), tensors, "contiguous", directions)
    wide = {k: t.double() if t.is_floating_point() else t for k, t in tensors.items()}
    options = sample.options | ({"dtype": torch.float64} if sample.op == "fade_reals" else {})
    exact = derivatives(lambda *t: function(*t, **options), wide, "contiguous", dict(directions))
    return directions, plain, exact


def cases(implementation: Implementation, sample: Sample) -> list[tuple[str, torch.dtype]]:
    """All of CASES, or of a slow implementation the native layouts and, by turns, one other layout and two dtypes."""
    if not implementation.slow:
        return [case for case in CASES if case[1] in implementation.dtypes]
    turn = SAMPLES.index(sample)
    others = [c for c in CASES if c[1] != torch.float32 and c[1] in implementation.dtypes]
    return [*CASES[:2], CASES[2 + turn % (len(LAYOUTS) - 2)], others[turn % 2], others[3 - turn % 2]]


def assert_values_and_gradients(function: Callable, sample: Sample, layout: str, dtype: torch.dtype) -> None:
    """function: of the sample's tensors and options, under test."""
    directions, plain, exact = expected(sample, dtype)
    found = derivatives(lambda *t: function(*t, **sample.options), sample.tensors(dtype), layout, dict(directions))
    assert found.keys() == plain.keys()
    for name, actual in found.items():
        assert_accurate(
            f"{sample} {layout} {dtype} {name}",
            actual,
            plain[name],
            exact[name],
            order={"y": "output", "d": "first", "dd": "second"}[name.partition("_")[0]],
            dtype=coarsest(dtype, plain["y"].dtype, plain[name].dtype),
            condition=sample.condition,
        )


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_values_and_gradients(implementation, sample):
    function = implementation.function(sample.op)
    for layout, dtype in cases(implementation, sample):
        assert_values_and_gradients(function, sample, layout, dtype)


def _has_one_layout(sample: Sample) -> bool:
    """Whether a tensor of the first shape is either contiguous or channels_last, not both."""
    shape = next(iter(sample.shapes.values()))
    return len(shape) == 4 and shape[0] > 0 and min(shape[1:]) > 1


@pytest.mark.parametrize("sample", [s for s in SAMPLES if _has_one_layout(s)], ids=str)
def test_layout_is_kept(implementation, sample):
    """By the result and by the gradients: a layout lost on the way is a copy at the next convolution."""
    for layout, memory_format in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        tensors = [laid_out(t, layout) for t in sample.tensors(torch.float32).values()]
        inputs = [t.requires_grad_() for t in tensors if t.is_floating_point()]
        y = implementation.function(sample.op)(*tensors, **sample.options)
        assert y.is_contiguous(memory_format=memory_format), layout
        # Autograd lays out the gradients of plain PyTorch as it likes.
        if y.requires_grad and implementation is not IMPLEMENTATIONS["reference"]:
            gradients = torch.autograd.grad(y, inputs, laid_out(torch.ones_like(y), layout))
            for t, gradient in zip(inputs, gradients, strict=True):
                assert t.ndim < 4 or gradient.is_contiguous(memory_format=memory_format), layout
