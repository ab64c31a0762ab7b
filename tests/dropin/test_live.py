"""Control flow stays alive under acceleration, and what a trace would lose is left alone."""

import copy
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pggan_fast import accelerate, explain, restore
from tests.dropin.helpers import CLOSE, X, block, calls
from tests.dropin.progressive import EqualConv, PixelNorm

# Control flow stays alive


class Alive(nn.Module):
    """Everything that Python may change between two calls."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = EqualConv(8, 8, 3, padding=1), PixelNorm()
        self.depth, self.extra = 1, nn.ModuleList()

    def forward(self, x):
        for _ in range(self.depth):
            x = self.norm(F.leaky_relu(self.conv(x), SLOPE))
        for module in self.extra:
            x = module(x)
        x = x * 2 if "doubled" in KINDS else x
        return x * 2 if self.training else x


SLOPE, KINDS = 0.2, {"plain"}


def changes() -> dict:
    def slope(model):
        global SLOPE
        SLOPE = 0.7

    def exchange(model):
        torch.manual_seed(5)
        model.conv = EqualConv(8, 8, 3, padding=1)

    def weight(model):
        model.conv.weight = nn.Parameter(model.conv.weight.detach() * 3)

    def hook(model):
        model.conv.register_forward_hook(lambda module, inputs, output: output + 1)

    return {
        "training": lambda model: model.eval(),
        "depth": lambda model: setattr(model, "depth", 3),
        "list": lambda model: model.extra.append(nn.Tanh()),
        "global": slope,
        "global set": lambda model: KINDS.add("doubled"),
        "child": exchange,
        "parameter": weight,
        "scale": lambda model: setattr(model.conv, "scale", 0.5),
        "epsilon": lambda model: setattr(model.norm, "epsilon", 0.5),
        "hook": hook,
        "forward": lambda model: setattr(model.norm, "forward", lambda x: x * 3),
        "spectral norm": lambda model: nn.utils.parametrizations.spectral_norm(model.conv),
        "weight norm": lambda model: nn.utils.parametrizations.weight_norm(model.conv),
    }


@pytest.mark.parametrize("change", changes())
def test_changes_after_acceleration_count(change, monkeypatch):
    monkeypatch.setitem(globals(), "SLOPE", 0.2)
    monkeypatch.setitem(globals(), "KINDS", {"plain"})
    torch.manual_seed(6)
    model = Alive()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    torch.testing.assert_close(fast(X), model(X), **CLOSE)
    before = fast(X)
    for net in (fast, model):
        torch.manual_seed(7)
        changes()[change](net)
    torch.testing.assert_close(fast(X), model(X), **CLOSE)
    assert not torch.allclose(fast(X), before)


def test_an_attribute_that_always_changes_falls_back():
    class Fading(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.alpha = block(), 0.0

        def forward(self, x):
            return self.block(x) * self.alpha

    model = Fading()
    fast = accelerate(model, inplace=True)
    for i in range(40):
        fast.alpha = i / 40
        torch.testing.assert_close(fast(X), block()(X) * fast.alpha, **CLOSE)


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        return g


def difficult() -> dict:
    norm, act = PixelNorm(), nn.LeakyReLU(0.2)
    switch = [True]

    class Base(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(8)
            self.conv, self.norm, self.seen = EqualConv(8, 8, 3, padding=1), norm, []

        def body(self, x):
            return self.norm(act(self.conv(x)))

    class Noise(Base):
        def forward(self, x):
            return self.norm(F.leaky_relu(self.conv(x), 0.2)) + torch.randn(8, 1, 1)

    class Lottery(Base):
        def forward(self, x):
            return self.norm(F.leaky_relu(self.conv(x), 0.2)) * random.random()

    class NoGrad(Base):
        def forward(self, x):
            with torch.no_grad():
                return self.norm(F.leaky_relu(self.conv(x), 0.2))

    class Decorated(Base):
        @torch.no_grad()
        def forward(self, x):
            return self.norm(F.leaky_relu(self.conv(x), 0.2))

    class Straight(Base):
        def forward(self, x):
            return Step.apply(self.norm(F.leaky_relu(self.conv(x), 0.2)))

    class Mode(Base):
        def forward(self, x):
            y = self.norm(F.leaky_relu(self.conv(x), 0.2))
            return y if torch.is_grad_enabled() else y * 2

    class Sets(Base):
        def forward(self, x):
            self.features = self.norm(F.leaky_relu(self.conv(x), 0.2))
            return self.features

    class Appends(Base):
        def forward(self, x):
            self.seen.append(self.norm(F.leaky_relu(self.conv(x), 0.2)))
            return self.seen[-1]

    class Values(Base):
        def forward(self, x):
            y = self.norm(F.leaky_relu(self.conv(x), 0.2))
            return y if y.sum() > 0 else -y

    class Closure(Base):
        def forward(self, x):
            return self.norm(F.leaky_relu(self.conv(x), 0.2)) if switch[0] else x

    class Checkpointed(Base):
        def forward(self, x):
            part = lambda x: self.norm(F.leaky_relu(self.conv(x), 0.2))  # noqa: E731
            return torch.utils.checkpoint.checkpoint(part, x, use_reentrant=False)

    kinds = (Noise, Lottery, NoGrad, Decorated, Straight, Mode, Sets, Appends, Values, Closure, Checkpointed)
    return {kind.__name__: kind for kind in kinds}


@pytest.mark.parametrize("kind", difficult())
def test_nothing_is_lost(kind):
    model = difficult()[kind]()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            outputs = []
            for net in (fast, model):
                torch.manual_seed(9), random.seed(9)
                outputs += [net(X), net(X * 2)]
            for a, b in zip(outputs[:2], outputs[2:], strict=True):
                torch.testing.assert_close(a, b, **CLOSE)
                assert a.requires_grad == b.requires_grad


class Noisy(nn.Module):
    """Noise of the features' shape, as in style GANs, and a branch on Python's own random numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.weight = EqualConv(8, 8, 3, padding=1), nn.Parameter(torch.ones(()))

    def forward(self, x):
        n, _, h, w = x.shape
        x = F.leaky_relu(self.conv(x), 0.2) * (1 + random.random()) + np.random.rand()
        return x + self.weight * torch.randn(n, 1, h, w)


@pytest.mark.parametrize("inputs", [None, X], ids=["at the call", "with example inputs"])
def test_looking_at_a_model_draws_no_random_numbers(inputs):
    def seeded():
        torch.manual_seed(9), random.seed(9), np.random.seed(9)

    def drawn():
        return torch.rand(()).item(), random.random(), np.random.rand()

    model = Noisy()
    seeded()
    expected, after = (model(X), model(X)), drawn()
    seeded()
    fast = accelerate(model, example_inputs=inputs)
    explain(fast)
    for a, b in zip((fast(X), fast(X)), expected, strict=True):  # torch before 2.14 captures the convolution alone
        torch.testing.assert_close(a, b, **CLOSE)
    assert drawn() == after


class Changes(nn.Module):
    """Cannot be traced, and changes what a module after it computes."""

    def __init__(self, later: nn.Module):
        super().__init__()
        self.later = [later]

    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        self.later[0].scale = 0.1 * self.calls
        return x.add_(1)


def test_what_is_around_side_effects_and_random_numbers(monkeypatch):
    def make():
        torch.manual_seed(1)
        last = EqualConv(8, 8, 3, padding=1)
        first = [nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.2)]
        inner = nn.Sequential(Noisy(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
        return nn.Sequential(*first, Changes(last), inner, last, nn.LeakyReLU(0.2), PixelNorm()).double()

    model, fast = make(), accelerate(make(), inplace=True)
    called = calls(monkeypatch)
    for net in (fast, model):
        net.results = []
        for _ in range(3):
            torch.manual_seed(9), random.seed(9), np.random.seed(9)
            x = X.double().requires_grad_()
            y = net(x)
            net.results += [y, *torch.autograd.grad(y.square().sum(), [x, *net.parameters()])]
    torch.testing.assert_close(fast.results, model.results, rtol=1e-10, atol=1e-10)
    assert called and explain(fast).replaced
    assert list(fast.state_dict()) == list(model.state_dict())
    for net in (fast, model):
        net[3] = nn.Tanh()
        net[4].register_forward_hook(lambda module, inputs, output: output * 2)
    torch.testing.assert_close(fast(X.double()), model(X.double()))


def test_buffers_are_read_at_each_call():
    class Blurred(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.conv = nn.Conv2d(8, 8, 3, padding=1)
            self.register_buffer("kernel", torch.tensor([1.0, 2.0, 1.0]))

        def forward(self, x):
            kernel = self.kernel[:, None] * self.kernel[None]
            kernel = (kernel / kernel.sum()).expand(8, 1, 3, 3)
            return F.conv2d(F.leaky_relu(self.conv(x), 0.2), kernel, padding=1, groups=8)

    model = Blurred()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    torch.testing.assert_close(fast(X), model(X), **CLOSE)
    assert [row.what for row in explain(fast).replaced] == ["lrelu in place"]
    for net in (fast, model):
        net.kernel[0] += 3
    torch.testing.assert_close(fast(X), model(X), **CLOSE)
    for net in (fast, model):
        net.kernel = torch.tensor([0.0, 1.0, 5.0])
    torch.testing.assert_close(fast(X), model(X), **CLOSE)


def test_a_tensor_that_is_overwritten_later_is_read_first():
    class WritesTwice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            x = x * 1
            y = self.conv(x)
            x.add_(1)
            return F.leaky_relu(y, 0.2) + x

    torch.testing.assert_close(accelerate(WritesTwice())(X), WritesTwice()(X), **CLOSE)


def test_a_convolution_that_others_read_is_left_alone():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            y = self.conv(x)
            return F.relu(y), y

    fast = accelerate(Both())
    for a, b in zip(fast(X), Both()(X), strict=True):
        assert torch.equal(a, b)
    assert not explain(fast).replaced
    assert any("other readers" in row.what for row in explain(fast).left)


class Final(nn.Sequential):
    """A module whose forward refuses subclasses of Tensor."""

    def __init_subclass__(cls):
        raise TypeError("no subclasses, please")


def unusual() -> dict:
    """Models that are unlike others, and why they are left alone, if they are."""
    torch.manual_seed(1)
    layers = nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.2)
    replaced = nn.Sequential(*layers)
    replaced.forward = lambda x: layers[0](x) + 1

    class Keywords(nn.Sequential):
        def forward(self, *images, **options):
            return super().forward(images[0])

    return {
        "graph": (torch.fx.symbolic_trace(nn.Sequential(*layers)), "a compiled graph already"),
        "scripted": (torch.jit.script(nn.Sequential(*layers)), "a compiled graph already"),
        "instance": (replaced, None),
        "final": (Final(*layers), None),
        "keywords": (Keywords(*layers), None),
        "layer": (nn.Conv2d(8, 8, 3), None),
        "hooks": (nn.utils.spectral_norm(nn.Conv2d(8, 8, 3)), None),
        "parametrized": (nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3)), None),
    }


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("kind", unusual())
def test_unusual_models(kind):
    model, reason = unusual()[kind]
    model.eval()  # spectral norm changes nothing then
    expected, cls, attributes = model(X), type(model), set(vars(model))
    fast = accelerate(model, inplace=True)
    assert fast is model and type(fast) is cls
    for _ in range(2):
        torch.testing.assert_close(fast(X), expected, **CLOSE)
    rows = [row.what for row in explain(fast).left if row.module == ""]
    assert reason is None or reason in rows[0]
    assert set(vars(restore(fast))) == attributes
    assert torch.equal(fast(X), expected)


def test_a_model_that_cannot_be_copied_is_changed_in_place_only():
    model = block()
    model.lock = threading.Lock()
    with pytest.raises(TypeError, match="accelerate: model cannot be copied .*; inplace=True"):
        accelerate(model)
    accelerate(model, inplace=True)
    torch.testing.assert_close(model(X), block()(X), **CLOSE)
    assert explain(model).replaced
