"""Everything that a forward depends on, wherever Python keeps it: an accelerated model follows a change.

Each kind is called, changed and called again, beside the unaccelerated deep copy.
"""

import copy
import functools
import os
import time
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pggan_fast.dropin.capture
from pggan_fast import accelerate, explain
from tests.dropin.helpers import X

CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # fp32, one convolution of 72 products
SETTINGS = types.SimpleNamespace(gain=1.0)
MODULE = types.ModuleType("settings")
TABLE = {"slope": 0.2}
ACTIVATION = F.relu


class Config:
    slope = 0.2


class Helper:
    def act(self, x):
        return F.relu(x)


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.act, self.part = F.relu, functools.partial(F.leaky_relu, negative_slope=0.2)
        self.helper, self.scale, self.names, self.depth = Helper(), 1.0, ["a"], 1
        self.listed = [nn.Parameter(torch.ones(1, 8, 1, 1))]
        self.register_buffer("shift", torch.zeros(8))

    def mine(self, x):
        return F.relu(x)


def change_global():
    global ACTIVATION
    ACTIVATION = torch.tanh


KINDS = {
    "module setting": (lambda m, x: F.relu(m.conv(x)) * MODULE.gain, lambda m: setattr(MODULE, "gain", 3.0)),
    "namespace": (lambda m, x: F.relu(m.conv(x)) * SETTINGS.gain, lambda m: setattr(SETTINGS, "gain", 3.0)),
    "class setting": (lambda m, x: F.leaky_relu(m.conv(x), Config.slope), lambda m: setattr(Config, "slope", 0.9)),
    "dict": (lambda m, x: F.leaky_relu(m.conv(x), TABLE["slope"]), lambda m: TABLE.update(slope=0.9)),
    "attribute function": (lambda m, x: m.act(m.conv(x)), lambda m: setattr(m, "act", torch.tanh)),
    "partial": (
        lambda m, x: m.part(m.conv(x)),
        lambda m: setattr(m, "part", functools.partial(F.leaky_relu, negative_slope=0.9)),
    ),
    "global function": (lambda m, x: ACTIVATION(m.conv(x)), lambda m: change_global()),
    "method of the class": (lambda m, x: m.mine(m.conv(x)), lambda m: setattr(Base, "mine", lambda s, x: -x)),
    "inherited method": (
        lambda m, x: m.mine(m.conv(x)),
        lambda m: setattr(type(m), "mine", lambda s, x: -x),
    ),
    "method of a helper": (lambda m, x: m.helper.act(m.conv(x)), lambda m: setattr(Helper, "act", lambda s, x: -x)),
    "environment": (
        lambda m, x: F.relu(m.conv(x)) * float(os.environ.get("PGGAN_FAST_TEST_GAIN", "1")),
        lambda m: os.environ.update(PGGAN_FAST_TEST_GAIN="5"),
    ),
    "getenv": (
        lambda m, x: F.relu(m.conv(x)) * float(os.getenv("PGGAN_FAST_TEST_GAIN", "1")),
        lambda m: os.environ.update(PGGAN_FAST_TEST_GAIN="5"),
    ),
    "list": (lambda m, x: F.relu(m.conv(x)) * len(m.names), lambda m: m.names.append("b")),
    "number": (lambda m, x: F.relu(m.conv(x)) * m.scale, lambda m: setattr(m, "scale", 2.0)),
    "loop": (
        lambda m, x: functools.reduce(lambda x, _: F.relu(m.conv(x)), range(m.depth), x),
        lambda m: setattr(m, "depth", 3),
    ),
    "data in place": (lambda m, x: F.relu(m.conv(x)), lambda m: m.conv.weight.data.mul_(2)),
    "data exchanged": (
        lambda m, x: F.relu(m.conv(x)),
        lambda m: setattr(m.conv.weight, "data", m.conv.weight.data * 2),
    ),
    "dtype": (lambda m, x: F.relu(m.conv(x.to(m.conv.weight.dtype))), lambda m: m.double()),
    "buffer": (lambda m, x: F.relu(m.conv(x)) + m.shift.view(1, -1, 1, 1), lambda m: m.shift.add_(1)),
    "parameter in a list": (lambda m, x: F.relu(m.conv(x)) * m.listed[0], lambda m: m.listed[0].data.mul_(2)),
    "requires_grad": (
        lambda m, x: F.relu(m.conv(x)) * (1 + m.conv.weight.requires_grad),
        lambda m: m.requires_grad_(False),
    ),
    "hook": (
        lambda m, x: F.relu(m.conv(x)),
        lambda m: m.conv.register_forward_hook(lambda module, inputs, output: output * 2),
    ),
    "pre-hook of the model": (
        lambda m, x: F.relu(m.conv(x)),
        lambda m: m.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,)),
    ),
    "type": (lambda m, x: F.relu(m.conv(x)) * (1 if isinstance(x, torch.Tensor) else 5), lambda m: None),
    "exact type": (lambda m, x: F.relu(m.conv(x + 1 if type(x) is torch.Tensor else x)), lambda m: None),
    "time": (lambda m, x: F.relu(m.conv(x)) * (1 if time.time() < 1e12 else 2), lambda m: None),
}


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    monkeypatch.setattr(MODULE, "gain", 1.0, raising=False)
    monkeypatch.setattr(SETTINGS, "gain", 1.0)
    monkeypatch.setattr(Config, "slope", 0.2)
    monkeypatch.setitem(TABLE, "slope", 0.2)
    monkeypatch.setitem(globals(), "ACTIVATION", F.relu)
    monkeypatch.setattr(Base, "mine", Base.mine)
    monkeypatch.setattr(Helper, "act", Helper.act)
    monkeypatch.setenv("PGGAN_FAST_TEST_GAIN", "1")


@pytest.mark.parametrize("kind", KINDS)
def test_changes_are_seen(kind):
    body, change = KINDS[kind]

    class Model(Base):
        def forward(self, x):
            return body(self, F.interpolate(x, scale_factor=2.0))

    model = Model()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    torch.testing.assert_close(fast(X), model(X), **CLOSE)
    for net in (model, fast):
        change(net)
    for _ in range(2):
        torch.testing.assert_close(fast(X), model(X), **CLOSE)
    assert explain(fast).replaced


class Added(nn.Module):
    def __init__(self, shape, dtype=torch.float32, conv=True):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False) if conv else nn.Identity()
        self.bias = nn.Parameter(torch.randn(shape, dtype=dtype))

    def forward(self, x):
        return F.leaky_relu(self.conv(x) + self.bias, 0.2)


@pytest.mark.parametrize("conv", [True, False], ids=["conv", "alone"])
@pytest.mark.parametrize(
    ("shape", "fused"),
    [
        ((1, 8, 1, 1), True),
        ((8, 1, 1), True),
        ((1, 1, 1, 1), False),
        ((), False),
        ((8, 8, 1, 1), False),
        ((1, 8, 16, 16), False),
        ((1, 16), False),
        ((2, 1, 8, 1, 1), False),
    ],
    ids=str,
)
def test_only_one_value_per_channel_is_a_bias(shape, fused, conv):
    model = Added(shape, conv=conv)
    fast = accelerate(copy.deepcopy(model), inplace=True)
    x = X[:1] if shape == (8, 8, 1, 1) else X
    y = fast(x)
    torch.testing.assert_close(y, model(x), **CLOSE)
    assert any("bias" in row.what for row in explain(fast).replaced) == fused


def test_dtypes_are_promoted_as_before():
    model = Added((1, 8, 1, 1), torch.float64)
    fast = accelerate(copy.deepcopy(model), inplace=True)
    y = fast(X)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, model(X), **CLOSE)


def test_parameters_in_a_plain_list_are_shared():
    class Listed(Base):
        def forward(self, x):
            return F.relu(self.conv(x)) * self.listed[0]

    model = Listed()
    fast = accelerate(model)
    assert fast.listed[0] is model.listed[0]


class Fading(Base):
    def __init__(self):
        super().__init__()
        self.layers, self.alpha = nn.ModuleList([nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)]), 0.0

    def forward(self, x):
        for layer in self.layers:
            x = F.leaky_relu(layer(F.interpolate(x, scale_factor=2.0)), 0.2)
        return x * self.alpha


def test_a_fade_keeps_its_fused_graphs():
    """40 values of alpha take a few graphs, and a network that has grown is fused again."""
    fast = accelerate(Fading(), inplace=True)
    model = copy.deepcopy(fast)
    for step in range(40):
        fast.alpha = model.alpha = step / 40
        torch.testing.assert_close(fast(X), model(X), **CLOSE)
    explanation = explain(fast)
    assert len(explanation.graphs) <= 4
    assert all(sum(row.status == "replaced" for row in graph.rows) == 2 for graph in explanation.graphs)
    fast.layers.append(nn.Conv2d(8, 8, 3, padding=1))
    fast(X)
    assert "layers.2" in {row.module for row in explain(fast).replaced}
    del fast.layers[2]
    assert "layers.2" in str(explain(fast))  # what has run has run


def test_a_network_that_never_settles_runs_as_the_original(monkeypatch):
    monkeypatch.setattr(pggan_fast.dropin.capture, "MOST_GRAPHS", 5)

    class Tagged(Base):
        def forward(self, x):
            return F.relu(self.conv(x)) * (2 if self.names[0] == "a" else len(self.names[0]))

    fast = accelerate(Tagged(), inplace=True)
    model = copy.deepcopy(fast)
    for step in range(12):
        fast.names[0] = model.names[0] = "b" * step
        torch.testing.assert_close(fast(X), model(X), **CLOSE)
    assert any("more than 5 graphs" in reason for reason in explain(fast).reasons)


class Noticed(Base):
    calls = 0

    def forward(self, x):
        Noticed.calls += 1
        self.seen = getattr(self, "seen", 0) + 1
        self.names.append("x")
        warnings.warn("each call", stacklevel=1)
        print("called")
        return F.relu(self.conv(x)) * self.seen


def test_side_effects_are_the_original_s(monkeypatch, capsys):
    monkeypatch.setattr(Noticed, "calls", 0)
    fast = accelerate(Noticed(), inplace=True)
    model = copy.deepcopy(fast)
    for net in (fast, model):
        Noticed.calls = 0
        net.outputs = []
        for count in (1, 2, 3):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                net.outputs.append(net(X))
            assert [str(w.message) for w in caught] == ["each call"]
            assert capsys.readouterr().out == "called\n"
            assert (Noticed.calls, net.seen, len(net.names)) == (count, count, count + 1)
    torch.testing.assert_close(fast.outputs, model.outputs, **CLOSE)


def test_example_inputs_leave_everything_as_it_was(monkeypatch):
    monkeypatch.setattr(Noticed, "calls", 7)
    model = nn.Sequential(Noticed(), nn.BatchNorm2d(8))
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast = accelerate(model, example_inputs=X, inplace=True)
    assert (Noticed.calls, len(fast[0].names)) == (7, 1) and "seen" not in vars(fast[0])
    torch.testing.assert_close(fast.state_dict(), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in fast.parameters())


def test_upsampling_and_mean_are_not_exchanged():
    model = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 1), nn.AvgPool2d(2), nn.LeakyReLU(0.2)).double()
    for size in (3, 16, 64):
        x = torch.randn(2, 8, size, size, dtype=torch.float64)
        torch.testing.assert_close(accelerate(model)(x), model(x))


def test_an_input_that_the_model_writes_over():
    class Writes(Base):
        def forward(self, x):
            x += self.listed[0]
            return F.leaky_relu(x, 0.2) + self.conv(x)

    model = Writes()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    a, b = X.clone(), X.clone()
    torch.testing.assert_close(fast(a), model(b), **CLOSE)
    assert torch.equal(a, b)


def test_an_activation_in_place_before_a_view():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 14 * 14, 1))
    fast = accelerate(model)
    torch.testing.assert_close(fast(X), model(X), **CLOSE)
    assert "rewriting failed" not in str(explain(fast))


def numbers():
    n = 0.0
    while True:
        n += 1
        yield n


class Generated(Base):
    """Scaled by the next number of a generator that it got."""

    def forward(self, x):
        return F.leaky_relu(self.conv(x), 0.2) * next(self.numbers)


class Cached(Base):
    """Made noisy by a function that keeps its results; the method keeps its own for each module."""

    def forward(self, x):
        return F.leaky_relu(self.conv(x) + self.noise(8) + noise(8), 0.2)

    @functools.lru_cache(4)  # noqa: B019
    def noise(self, channels):
        return torch.randn(channels, 1, 1)


@functools.cache
def noise(channels):
    return torch.randn(channels, 1, 1)


@pytest.mark.parametrize("cls", [Generated, Cached])
def test_what_python_keeps_from_call_to_call(cls):
    found = []
    for wrap in (lambda model: model, functools.partial(accelerate, inplace=True)):
        torch.manual_seed(2)
        noise.cache_clear()
        model = cls()
        model.numbers = numbers()
        model = wrap(model)
        found.append([model(X) for _ in range(3)])
        noise(8).mul_(2)
        found[-1] += [model(X), torch.get_rng_state()]
    torch.testing.assert_close(*found, **CLOSE)
