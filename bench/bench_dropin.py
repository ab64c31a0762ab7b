"""Networks of other people's kinds, as they are and accelerated: forward, and forward with all gradients.

At the end each speed is printed beside that of docs/benchmarks.md.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import pggan_fast
from bench.harness.timing import Case
from tests.dropin import model_zoo as zoo
from tests.dropin import third_party

SECONDS = 0.7
SAMPLE = 0.01
"""Seconds: in use a small network runs again and again, so its code and its Python are in the caches."""
FLOOR = 1e-4
"""Allowed error of outputs in fp32 against the original in fp64, and twice what the original itself is off."""

EXACT = 1e-11
"""Allowed error in fp64: whoever computes another function or gradient is off by more."""

KINK = 1e-2
"""Allowed error of gradients in fp32, where a pre-activation within rounding of 0 takes the other slope.

Of 5.6 million in pro-gan-pth's generator 0 to 2 do, in eager PyTorch too: gradients of either are 1e-6 off without and
up to 8e-4 with.
"""

PASSES = ("eval forward", "train forward+backward")


def networks() -> dict[str, Callable[[], tuple[nn.Module, tuple]]]:
    """Wide enough that arithmetic and memory count, as in use; by name."""
    found = {name: lambda name=name: (zoo.network(name, wide=True), zoo.inputs_of(zoo.WIDE[name])) for name in zoo.WIDE}
    return found | {name: other.make for name, other in third_party.WIDE.items() if other.missing() is None}


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("name", networks())
def test_network(name: str, passes: str, timed, record) -> None:
    record(timed(network_case(name, passes), seconds=SECONDS))


def network_case(name: str, passes: str) -> Case:
    model, inputs = networks()[name]()
    model.train("train" in passes)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.eval()  # its masks are other ones in fp64
    variants = {"eager": model, "ours": pggan_fast.accelerate(model)}
    run = gradients if "backward" in passes else outputs

    def check() -> None:
        state = copy.deepcopy(model.state_dict())

        def fresh(net: nn.Module, inputs: tuple) -> list[Tensor]:
            net.load_state_dict(state)  # a forward pass moves spectral norm's vectors
            return run(net, inputs)

        doubled, wide = copy.deepcopy(model).double(), tree_map_only(Tensor, Tensor.double, inputs)
        exact = fresh(doubled, wide)
        rewritten = fresh(pggan_fast.accelerate(doubled), wide)
        theirs, ours = (fresh(net, inputs) for net in variants.values())
        floor = KINK if "backward" in passes else FLOOR
        for a, b, r, e in zip(ours, theirs, rewritten, exact, strict=True):
            assert error(r, e) <= EXACT, f"{name} in fp64: {error(r, e):.1e}"
            assert error(a, e) <= max(floor, 2 * error(b, e)), f"{name}: {error(a, e):.1e}, not {error(b, e):.1e}"

    labels = {
        "suite": "drop-in",
        "shape": name,
        "dtype": "fp32",
        "layout": "nchw",
        "pass": passes,
    }
    calls = {who: lambda _, net=net: run(net, inputs) for who, net in variants.items()}
    return Case(labels, calls, check, sample_seconds=SAMPLE)


def beside_documented(records: list[dict]) -> list[str]:
    """Lines of a table: times as fast as eager now and in docs/benchmarks.md, and the difference."""
    section = (Path(__file__).parents[1] / "docs/benchmarks.md").read_text().partition("\n## drop-in\n")[2]
    rows = [line.strip("| ").split(" | ") for line in section.partition("\n## ")[0].splitlines() if "|" in line]
    documented = {(row[0], passes): row[i + 1] for row in rows for i, passes in enumerate(PASSES) if len(row) == 3}
    lines = [f"{'network':30} {'pass':24} {'now':>6} {'docs':>6} {'change':>7}"]
    for record in records:
        case = record["shape"], record["pass"]
        now, then = record["speedups"]["ours"]["eager"]["median"], documented.get(case, "")
        change = f"{now - float(then):+7.2f}" if then else ""
        lines.append(f"{case[0]:30} {case[1]:24} {now:6.2f} {then:>6} {change}{'  below 0.97' if now < 0.97 else ''}")
    return lines


def error(actual: Tensor, exact: Tensor) -> float:
    """Norm of the error over norm."""
    return ((actual.double() - exact).norm() / exact.norm()).item()


def outputs(model: nn.Module, inputs: tuple) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return tensors(model(*inputs))


def gradients(model: nn.Module, inputs: tuple) -> list[Tensor]:
    torch.manual_seed(0)
    results = tensors(model(*inputs))
    directions = torch.Generator().manual_seed(1)
    loss = sum((t * torch.randn(t.shape, generator=directions)).sum() for t in results)
    parameters = [p for p in model.parameters() if p.requires_grad]
    # One vector: a bias before a batch norm has a gradient of nothing but rounding.
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.cat([g.flatten() for g in found if g is not None])]


def tensors(value: object) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, Tensor)]
