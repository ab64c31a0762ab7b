"""Accelerated networks compute what the original does: outputs, gradients, penalties, training steps, state."""

import copy

import pytest
import torch
from torch import Tensor, nn

import pggan_fast
from pggan_fast.dropin import fused
from tests.dropin.zoo import ZOO, inputs_of, network

# fp64 through at most 20 layers; what is compared is scaled to its own size.
EXACT = 1e-9


@pytest.fixture(autouse=True)
def no_thresholds(monkeypatch):
    """The networks are small: take the fused way where a large image would."""
    monkeypatch.setattr(fused, "FOLD_FROM", 0)
    monkeypatch.setattr(fused, "BATCH_NORM_FROM", 0)


def tensors(outputs) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, Tensor)]


def results(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Outputs, first gradients and the gradients of a penalty on the inputs' gradients."""
    inputs = [t.clone().requires_grad_() for t in inputs]
    torch.manual_seed(3)
    outputs = tensors(model(*inputs))
    generator = torch.Generator().manual_seed(4)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in outputs)
    parameters = dict(model.named_parameters())
    found = {f"output {i}": t for i, t in enumerate(outputs)}
    first = torch.autograd.grad(loss, [*inputs, *parameters.values()], create_graph=True, allow_unused=True)
    names = [*(f"input {i}" for i in range(len(inputs))), *parameters]
    found |= {f"gradient of {n}": g for n, g in zip(names, first, strict=True) if g is not None}
    penalty = sum(g.square().sum() for g in first[: len(inputs)] if g is not None)
    second = torch.autograd.grad(penalty, list(parameters.values()), allow_unused=True)
    return found | {f"penalty's of {n}": g for n, g in zip(parameters, second, strict=True) if g is not None}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name in actual.keys() | expected.keys():
        # An unused parameter has no gradient in one and zeros in the other.
        a, b = actual.get(name, torch.tensor(0.0)).detach(), expected.get(name, torch.tensor(0.0)).detach()
        assert torch.isfinite(b).all(), name
        assert (a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item()), name


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", ZOO)
def test_results(name, training):
    model = network(name).double().train(training)
    other = copy.deepcopy(model)
    fast = pggan_fast.accelerate(other, inplace=True)
    inputs = inputs_of(ZOO[name], torch.float64)
    for _ in range(2):  # the second call finds what the first traced, and buffers that it updated
        assert_same(results(fast, inputs), results(model, inputs), EXACT)
    assert_same(fast.state_dict(), model.state_dict(), EXACT)
    if ZOO[name].replaced:
        assert pggan_fast.explain(fast).replaced
    else:
        assert not pggan_fast.explain(fast).replaced


@pytest.mark.parametrize("name", ZOO)
def test_a_step_of_adam(name):
    """In fp64, where the gradients that are zero but for rounding stay below Adam's eps."""
    model = network(name).double()
    other = copy.deepcopy(model)
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-3, betas=(0.0, 0.99))  # made before
    fast = pggan_fast.accelerate(other, inplace=True)
    reference = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.0, 0.99))
    for net, stepper in ((fast, optimizer), (model, reference)):
        torch.manual_seed(5)
        loss = sum(t.square().mean() for t in tensors(net(*inputs_of(ZOO[name], torch.float64))))
        loss.backward()
        stepper.step()
    assert list(fast.state_dict()) == list(model.state_dict())
    assert_same(fast.state_dict(), model.state_dict(), EXACT)
