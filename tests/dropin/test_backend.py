"""torch.compile(backend="pggan_fast"): found by name, the same patterns, the same numbers."""

import shutil

import pytest
import torch
import torch._inductor.compile_fx
import torch.nn.functional as F
from torch import nn

from pggan_fast.dropin import backend, fused
from pggan_fast.dropin.rewrite import Rewriter
from tests.dropin.helpers import always_fuse, block
from tests.dropin.progressive import consecutive_deviation
from tests.tolerances import COMPILED

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="Inductor needs a compiler"
)
X = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def replaced(monkeypatch) -> list[str]:
    """Collect the replacements in the graphs that the backend gets."""
    seen, run = [], Rewriter.run
    monkeypatch.setattr(Rewriter, "run", lambda self: [seen.append(what) or (at, what) for at, what in run(self)])
    return seen


@pytest.fixture
def quick(monkeypatch) -> None:
    """In place of Inductor, whose compiler takes a minute, the graphs run as they are after AOT autograd."""
    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx", lambda graph, inputs, **_: aot_eager(graph, inputs))


def gradients(function, *tensors: torch.Tensor) -> list[torch.Tensor]:
    y = function(X)
    # Not the sum of squares, which pixel norm makes constant: its gradients would be rounding errors alone.
    return [y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), tensors)]


def test_it_is_found_by_name():
    assert torch._dynamo.lookup_backend("pggan_fast") is backend.pggan_fast


def test_a_model(replaced):
    model = block()
    compiled = torch.compile(model, backend="pggan_fast", fullgraph=True)
    parameters = list(model.parameters())
    torch.testing.assert_close(gradients(compiled, *parameters), gradients(model, *parameters), **COMPILED)
    assert replaced[:2] == [
        "nearest upsampling + equalized conv + lrelu + pixel norm",
        "equalized conv + lrelu + pixel norm",
    ]


def test_functions(replaced, quick, monkeypatch):
    """No module at all; the deviation's shape is known to the graph; branches are Dynamo's business."""
    always_fuse(monkeypatch)
    weight, bias = nn.Parameter(torch.randn(8, 8, 3, 3) / 8), nn.Parameter(torch.randn(8))

    def discriminator(x):
        x = F.conv2d(x, weight * 0.3, padding=1) + bias.view(1, -1, 1, 1)
        x = F.avg_pool2d(F.leaky_relu(x, 0.2), 2) if x.shape[0] > 1 else x
        x = F.relu(F.avg_pool2d(F.conv2d(x, weight, bias, padding=1), 2), inplace=True)
        return consecutive_deviation(x)

    compiled = torch.compile(discriminator, backend="pggan_fast", dynamic=False)
    expected = gradients(discriminator, weight, bias)
    torch.testing.assert_close(gradients(compiled, weight, bias), expected, **COMPILED)
    assert replaced == ["equalized conv + bias + lrelu", "conv + 2x2 mean + relu", "minibatch stddev"]


def test_a_gradient_penalty_inside(replaced, quick):
    """Run the example of docs/drop-in.md."""
    model = nn.Sequential(block(), nn.Flatten(), nn.Linear(8 * 32 * 32, 1))
    images = X.clone().requires_grad_()

    def penalty(images):
        (gradient,) = torch.autograd.grad(model(images).sum(), images, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    def run(function):
        return torch.autograd.grad(function(images), list(model[0].parameters()))

    compiled = torch.compile(penalty, backend="pggan_fast")
    patches = {"trace_autograd_ops": True} if hasattr(torch._dynamo.config, "trace_autograd_ops") else {}
    with torch._dynamo.config.patch(**patches):
        torch.testing.assert_close(run(compiled), run(penalty), **COMPILED)
    assert replaced


def test_what_it_does_not_know_goes_to_inductor(monkeypatch):
    monkeypatch.setattr(fused, "convolution", None)
    function = torch.compile(lambda x: torch.sin(x) * 2, backend="pggan_fast")
    torch.testing.assert_close(function(X), torch.sin(X) * 2)
