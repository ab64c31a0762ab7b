"""Helpers of the tests of drop-in acceleration."""

import copy

import pytest
import torch
from torch import Tensor, nn

from pggan_fast import ops
from pggan_fast.dropin import rewrite
from tests.dropin.progressive import EqualConv, UpBlock
from tests.tolerances import assert_accurate, rms

ORDERS = {"output": "output", "gradient": "first", "penalty": "second"}
"""Orders of derivatives, by how the names of `results` begin."""

X = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
# fp64 through at most 20 layers; what is compared is scaled to its own size.
EXACT = 1e-9
# fp32 through a few layers.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def block(**options) -> nn.Module:
    torch.manual_seed(1)
    return UpBlock(8, 8, lambda i, o: EqualConv(i, o, 3, padding=1, **options))


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the fused functions, as they get called."""
    called = []
    for name in ("equalized_conv2d", "bias_act", "minibatch_stddev", "upsample2x", "downsample2x"):
        original = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, _f=original, _n=name, **k: called.append(_n) or _f(*a, **k))
    return called


def called(model: nn.Module, *inputs: object) -> nn.Module:
    """The model after a call, which leaves random states as they are."""
    with torch.random.fork_rng():
        model(*inputs)
    return model


def double(value: object) -> object:
    """A tensor of floats in fp64, anything else as it is."""
    return value.double() if is_float(value) else value


def is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def tensors(outputs) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, Tensor)]


def results(model: nn.Module, inputs: tuple) -> dict[str, Tensor]:
    """Outputs, first gradients and the gradients of a penalty on the inputs' gradients."""
    arguments = [t.clone().requires_grad_() if is_float(t) else t for t in inputs]
    inputs = [t for t in arguments if is_float(t)]
    torch.manual_seed(3)
    outputs = tensors(model(*arguments))
    generator = torch.Generator().manual_seed(4)
    directions = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in outputs]
    loss = sum((t * direction.to(t.dtype)).sum() for t, direction in zip(outputs, directions, strict=True))
    parameters = dict(model.named_parameters())
    found = {f"output {i}": t for i, t in enumerate(outputs)}
    first = torch.autograd.grad(loss, [*inputs, *parameters.values()], create_graph=True, allow_unused=True)
    names = [*(f"input {i}" for i in range(len(inputs))), *parameters]
    found |= {f"gradient of {n}": g for n, g in zip(names, first, strict=True) if g is not None}
    penalty = sum(g.square().sum() for g in first[: len(inputs)] if g is not None)
    second = torch.autograd.grad(penalty, list(parameters.values()), allow_unused=True)
    return found | {f"penalty's of {n}": g for n, g in zip(parameters, second, strict=True) if g is not None}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()  # a gradient that is zero is there in both, one that is None in neither
    for name in expected:
        a, b = actual[name].detach(), expected[name].detach()
        assert torch.isfinite(b).all(), name
        assert (a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item()), name


def assert_as_accurate(fast: nn.Module, model: nn.Module, inputs: tuple) -> None:
    """In fp32, outputs and derivatives of `fast` are as near to the model's in fp64 as those of the model itself.

    Up to the table of tests/tolerances.py. Their state is what it was at the beginning, for each.
    """
    exact = results(copy.deepcopy(model).double(), tuple(map(double, inputs)))
    plain, actual = results(copy.deepcopy(model), inputs), results(fast, inputs)
    sizes = {kind: max(rms(t) for name, t in exact.items() if name.startswith(kind)) for kind in ORDERS}
    for name, expected in exact.items():
        kind = next(kind for kind in ORDERS if name.startswith(kind))
        found = [t.get(name, torch.zeros(expected.shape)).detach() for t in (actual, plain)]
        if rms(expected) < 1e-9 * sizes[kind]:  # nothing but rounding: a bias before a batch norm
            assert rms(found[0]) < 1e-4 * sizes[kind], name
        else:
            assert_accurate(name, *found, expected.detach(), order=ORDERS[kind], dtype=torch.float32)


def step_of_adam(net: nn.Module, optimizer: torch.optim.Optimizer, inputs: tuple) -> None:
    torch.manual_seed(5)
    sum(t.square().mean() for t in tensors(net(*inputs)) if is_float(t)).backward()
    optimizer.step()


def always_fuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images take the way that large ones would."""
    for name in ("FOLD_FROM", "BATCH_NORM_FROM", "INSTANCE_NORM_FROM"):
        monkeypatch.setattr(rewrite, name, 0)
