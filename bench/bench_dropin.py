"""Networks of other people's kinds, as they are and accelerated: forward, and forward with all gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import pggan_fast
from bench.timing import Case, assert_close
from tests.dropin import peers, zoo

SECONDS = 4.0
PASSES = ("eval forward", "train forward+backward")


def networks() -> dict[str, Callable[[], tuple[nn.Module, tuple]]]:
    """Wide enough that arithmetic and memory count, as in use; by name."""
    found = {name: lambda name=name: (zoo.network(name, wide=True), zoo.inputs_of(zoo.WIDE[name])) for name in zoo.WIDE}
    return found | {name: peer.make for name, peer in peers.WIDE.items() if peer.missing() is None}


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("name", networks())
def test_network(name: str, passes: str, timed, record) -> None:
    record(timed(network_case(name, passes), seconds=SECONDS))


def network_case(name: str, passes: str) -> Case:
    model, inputs = networks()[name]()
    model.train("train" in passes)
    variants = {"eager": model, "ours": pggan_fast.accelerate(model)}
    run = gradients if "backward" in passes else outputs

    def check() -> None:
        for pair in zip(run(variants["ours"], inputs), run(model, inputs), strict=True):
            assert_close(name, *pair, torch.float32)

    labels = {
        "suite": "drop-in",
        "shape": name,
        "dtype": "fp32",
        "layout": "nchw",
        "pass": passes,
    }
    return Case(labels, {who: lambda _, net=net: run(net, inputs) for who, net in variants.items()}, check)


def outputs(model: nn.Module, inputs: tuple) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return tensors(model(*inputs))


def gradients(model: nn.Module, inputs: tuple) -> list[Tensor]:
    torch.manual_seed(0)
    results = tensors(model(*inputs))
    directions = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, generator=directions)).sum() for t in results)
    wanted = [p for p in model.parameters() if p.requires_grad]
    # One vector: a bias before a batch norm has a gradient of nothing but rounding.
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [torch.cat([g.flatten() for g in found if g is not None])]


def tensors(value: object) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]
