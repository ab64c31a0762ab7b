"""Which ops run on small work; that their numbers are right is compared in every test of `implementation`'s "auto"."""

import pytest
import torch
from torch.autograd.function import BackwardCFunction

from pggan_fast import ops, use_impl

CALLS = {
    "bias_act": lambda x, weight, bias, **given: ops.bias_act(x, bias, **given),
    "upsample2x": lambda x, weight, bias, **given: ops.upsample2x(x, **given),
    "downsample2x": lambda x, weight, bias, **given: ops.downsample2x(x, **given),
    "equalized_conv2d": lambda x, weight, bias, **given: ops.equalized_conv2d(x, weight, bias, act="lrelu", **given),
    "conv2d_up": lambda x, weight, bias, **given: ops.equalized_conv2d(x, weight, bias, up=2, **given),
    "conv2d_down": lambda x, weight, bias, **given: ops.equalized_conv2d(x, weight, bias, down=2, **given),
    "equalized_linear": lambda x, weight, bias, **given: ops.equalized_linear(
        x.mean((2, 3)), weight[..., 0, 0], bias, **given
    ),
}


def inputs(n=4, c=8, size=4, dtype=torch.float32) -> list[torch.Tensor]:
    shapes = ((n, c, size, size), (c, c, 3, 3), (c,))
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def formulas_of_ours(y: torch.Tensor) -> set[str]:
    """Names of the autograd functions of Python in the graph of y."""
    found, nodes = set(), [y.grad_fn]
    while nodes:
        node = nodes.pop()
        if isinstance(node, BackwardCFunction):
            found.add(node.name())
        nodes += [n for n, _ in node.next_functions if n is not None]
    return found


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_small_work_runs_without_functions_of_python(call):
    assert formulas_of_ours(call(*inputs())) == set()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_implementation_of_a_name_is_taken(call):
    with use_impl("native"):
        assert formulas_of_ours(call(*inputs()))
    assert formulas_of_ours(call(*inputs(), impl="native"))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_large_work_runs_in_kernels(call):
    assert formulas_of_ours(call(*inputs(n=64, c=256, size=8)))


@pytest.mark.parametrize("rescaling", ["up", "down"])
@pytest.mark.parametrize("size, folded", [(4, False), (16, True)])
def test_a_weight_is_folded_where_pixels_repay_it(rescaling, size, folded, monkeypatch):
    calls = []
    fold = torch.ops.pggan_fast.fold_weight.default
    monkeypatch.setattr("pggan_fast.ops.fold._fold", lambda *given: calls.append(1) or fold(*given))
    x, weight, bias = inputs(n=4, c=128, size=size)
    y = ops.equalized_conv2d(x, weight, bias, act="lrelu", **{rescaling: 2})
    assert bool(calls) is folded
    with use_impl("reference"):
        expected = ops.equalized_conv2d(x, weight, bias, act="lrelu", **{rescaling: 2})
    torch.testing.assert_close(y, expected)


def test_zeros_of_a_second_derivative_pass_an_unfolded_convolution():
    """An optimizer sees zeros instead of None, and the numbers of the folded one."""
    x, weight, bias = inputs(n=2, c=128, size=4)
    found = []
    for impl in ("auto", "native"):
        y = ops.equalized_conv2d(x, weight, bias, down=2, act="lrelu", impl=impl)
        (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), (weight, bias)))
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_small_convolution_is_torchs_own():
    x, weight, _ = inputs()
    assert formulas_of_ours(ops.conv2d(x, weight, padding=1)) == set()
    assert formulas_of_ours(ops.conv2d(x.bfloat16(), weight, padding=1))
    with use_impl("native"):
        assert formulas_of_ours(ops.conv2d(x, weight, padding=1))
    x, weight, _ = inputs(n=64, c=256, size=8)
    assert formulas_of_ours(ops.conv2d(x, weight, padding=1))
