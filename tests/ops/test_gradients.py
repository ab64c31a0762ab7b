"""torch.autograd.gradcheck and gradgradcheck, which know derivatives as differences of results alone, in fp64.

Of the public functions through every layout, and of the ops themselves: those also give r, and have gradients in it.
"""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from tests.ops.implementations import IMPLEMENTATIONS
from tests.ops.op_calls import CALLS, Make
from tests.ops.samples import LAYOUTS, SAMPLES, Sample, laid_out
from tests.tolerances import GRADCHECK

pytestmark = pytest.mark.filterwarnings("ignore:minibatch_stddev. no group size")


def _is_checkable(sample: Sample) -> bool:
    """Whether its tensors are fp64 and not too many numbers to perturb; alpha is fp32 and stays constant."""
    size = sum(t.numel() for t in sample.tensors(torch.float64).values())
    return 0 < size < 3000 and not set(sample.pinned) - {"alpha"} and not sample.options.get("dtype")


CHECKABLE = [s for s in SAMPLES if _is_checkable(s)]
# Gradients whose own gradients are the last.
NO_THIRD_DERIVATIVE = ("activation_backward", "attention_backward", "bias_act_backward", "minibatch_stddev_backward")
# Every sample in the two native layouts, one of each op in the others.
CASES = [(sample, layout) for sample in CHECKABLE for layout in ("contiguous", "channels_last")]
FIRST = {s.op: s for s in reversed(CHECKABLE)}.values()
CASES += [(sample, layout) for sample in FIRST for layout in LAYOUTS if layout not in ("contiguous", "channels_last")]


# Triton's implementations share the formulas of the native ones, and are slow in the interpreter.
@pytest.mark.parametrize("implementation", [name for name in IMPLEMENTATIONS if name != "triton"], indirect=True)
@pytest.mark.parametrize(("sample", "layout"), CASES, ids=str)
def test_public_functions(implementation, sample, layout):
    function = implementation.function(sample.op)
    tensors = sample.tensors(torch.float64)
    leaves = [t.requires_grad_() for t in tensors.values() if t.dtype == torch.float64]

    def of_leaves(*leaves: Tensor) -> Tensor:
        given = iter(leaves)
        every = [next(given) if t.dtype == torch.float64 else t for t in tensors.values()]
        return function(*(laid_out(t, layout) for t in every), **sample.options)

    assert gradcheck(of_leaves, leaves, fast_mode=True, **GRADCHECK)
    assert gradgradcheck(of_leaves, leaves, fast_mode=True, **GRADCHECK)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("call", [c for c in CALLS if c.differentiable and c.label != "uint8"], ids=str)
def test_ops(call, layout):
    arguments = call.arguments(Make(torch.float64, layout))
    inputs = [a.requires_grad_() for a in arguments if isinstance(a, Tensor) and a.dtype == torch.float64]

    def of_inputs(*inputs: Tensor):
        given = iter(inputs)
        every = [next(given) if isinstance(a, Tensor) and a.dtype == torch.float64 else a for a in arguments]
        results = call.overload(*every)
        results = results if isinstance(results, tuple) else (results,)
        # Empty results stand for what was not asked for.
        return tuple(r for r in results if r.numel())

    assert gradcheck(of_inputs, inputs, fast_mode=True, **GRADCHECK)
    if call.op not in NO_THIRD_DERIVATIVE:
        assert gradgradcheck(of_inputs, inputs, fast_mode=True, **GRADCHECK)


@pytest.mark.parametrize("call", [c for c in CALLS if c.op in NO_THIRD_DERIVATIVE], ids=str)
def test_a_third_derivative_is_refused(call):
    """A constant incoming gradient does not make it zero."""
    arguments = call.arguments(Make(torch.float64, requires_grad=True))
    inputs = [a for a in arguments if isinstance(a, Tensor)]
    results = call.overload(*arguments)
    result = results[0] if isinstance(results, tuple) else results
    gradients = torch.autograd.grad(result.sum(), inputs, create_graph=True, allow_unused=True)
    with pytest.raises(NotImplementedError, match="not of third"):
        torch.autograd.grad(sum(g.square().sum() for g in gradients if g is not None), inputs)


@pytest.mark.parametrize("op", ["bias_act", "equalized_conv2d", "equalized_linear"])
def test_an_undefined_gradient_is_none(implementation, op):
    """A later function may give no gradient at all, which autograd passes on as None."""

    class Dead(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, dy):
            return None

    sample = next(s for s in SAMPLES if s.op == op)
    inputs = [t.requires_grad_() for t in sample.tensors(torch.float64).values()]
    y = implementation.function(op)(*inputs, **sample.options)
    assert not any(
        t is not None and t.any() for t in torch.autograd.grad(Dead.apply(y).sum(), inputs, allow_unused=True)
    )
