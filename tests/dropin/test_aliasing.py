"""Code that writes over what it was given: it may do so after acceleration where it could before."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pggan_fast import accelerate, explain
from pggan_fast.dropin import blur
from pggan_fast.ops import small
from tests.dropin.helpers import EXACT, X, always_fuse, assert_same, called, results
from tests.dropin.progressive import EqualConv, PixelNorm


@pytest.fixture(autouse=True)
def no_thresholds(monkeypatch):
    always_fuse(monkeypatch)
    monkeypatch.setattr(blur, "CPU_FROM", 0)
    monkeypatch.setattr(small, "RESCALED", 0)


def plain() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.2))


def normalized() -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2), EqualConv(8, 8, 3, padding=1), nn.LeakyReLU(0.2), PixelNorm())


def smaller() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.AvgPool2d(2))


def pooled() -> nn.Module:
    return nn.Sequential(normalized(), nn.AvgPool2d(2))


def blurred() -> nn.Module:
    return nn.Sequential(normalized(), Blur())


class Blur(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, x.new_ones(3, 3).expand(8, 1, 3, 3), groups=8)


def set_channel(y: Tensor) -> Tensor:
    y[:, 0] = 0
    return y


def set_view(y: Tensor) -> Tensor:
    y.view(-1)[:3].zero_()
    return y


WAYS = {
    "add_": lambda y: y.add_(1),
    "iadd": lambda y: y.__iadd__(1),
    "clamp_": lambda y: y.clamp_(-0.5, 0.5),
    "relu_": nn.ReLU(inplace=True),
    "out": lambda y: torch.mul(y.detach(), 2, out=torch.empty_like(y)) + y,
    "channel": set_channel,
    "view": set_view,
}


class Inside(nn.Module):
    """Written over by the code that made it."""

    def __init__(self, body: nn.Module, way: str):
        super().__init__()
        self.body, self.way = body, way

    def forward(self, x: Tensor) -> Tensor:
        return WAYS[self.way](self.body(x))


class Outside(Inside):
    """Written over by code that cannot be analysed."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return WAYS[self.way](y) if x.isfinite().all() else y


@pytest.mark.parametrize("outer", [Inside, Outside])
@pytest.mark.parametrize("body", [plain, normalized, smaller, pooled, blurred])
@pytest.mark.parametrize("way", WAYS)
def test_what_was_computed_is_written_over(way, body, outer):
    torch.manual_seed(1)
    model = outer(body(), way).double()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    inputs = (X.double(),)
    assert_same(results(fast, inputs), results(model, inputs), EXACT)
    with torch.no_grad():
        torch.testing.assert_close(fast(*inputs), model(*inputs))


def test_what_a_convolution_read_is_written_over():
    """The upsampled copy is what autograd keeps; folded, it would keep x."""

    class Up(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.conv = EqualConv(8, 8, 3, padding=1)

        def forward(self, x):
            x = x * 1
            y = F.leaky_relu(self.conv(F.interpolate(x, scale_factor=2)), 0.2)
            return y, x.mul_(2)

    model = Up().double()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    assert_same(results(fast, (X.double(),)), results(model, (X.double(),)), EXACT)


def test_a_module_with_hooks_may_write_over_what_it_gets():
    torch.manual_seed(1)
    model = nn.Sequential(normalized(), Inside(nn.Identity(), "add_")).double()
    model[1].register_forward_hook(lambda module, inputs, output: None)
    fast = accelerate(model)
    assert explain(called(fast, X.double())).replaced
    assert_same(results(fast, (X.double(),)), results(model, (X.double(),)), EXACT)


# Clamps after a chain

CLAMPS = {
    "torch.clamp": lambda x: torch.clamp(x, -0.5, max=0.7),
    "torch.clip": lambda x: torch.clip(x, min=-0.5),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp_": lambda x: x.clamp_(-0.5, 0.7),
    "torch.clamp_": lambda x: torch.clamp_(x, max=0.5),
    "tensor bounds": lambda x: x.clamp(x.new_tensor(-0.5), x.new_tensor(0.5)) if x.isfinite().all() else x,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7),
    "hardtanh in place": lambda x: F.hardtanh(x, -0.5, 0.7, True),
    "relu6": lambda x: F.relu6(x, True),
    "Hardtanh": nn.Hardtanh(-0.5, 0.7),
    "Hardtanh in place": nn.Hardtanh(-0.5, 0.7, inplace=True),
    "ReLU6": nn.ReLU6(),
    "ReLU6 in place": nn.ReLU6(inplace=True),
}


class Clamped(nn.Module):
    """The chain of StyleGAN2: bias, leaky relu, gain, clamp; then what may follow."""

    def __init__(self, clamp: str, norm: bool):
        super().__init__()
        self.conv, self.bias = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Parameter(torch.full((1, 8, 1, 1), 0.1))
        self.clamp = CLAMPS[clamp]
        self.norm = PixelNorm() if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.clamp(F.leaky_relu(self.conv(x) + self.bias, 0.2) * 2**0.5))


@pytest.mark.parametrize("norm", [False, True], ids=["", "pixel norm"])
@pytest.mark.parametrize("clamp", CLAMPS)
def test_a_clamp_stays_after_the_fused_call(clamp, norm):
    torch.manual_seed(1)
    model = Clamped(clamp, norm).double()
    with torch.no_grad():  # pre-activations of exactly 0, where the kinds of clamp differ in their gradients
        model.conv.weight[0] = 0
        model.bias[0, 0] = 0
    fast = accelerate(copy.deepcopy(model), inplace=True)
    assert_same(results(fast, (X.double(),)), results(model, (X.double(),)), EXACT)
    what = [row.what for row in explain(fast).replaced]
    # Backward needs what a clamp in place writes over: there the chain stays as it is.
    in_place = clamp in ("clamp_", "torch.clamp_", "relu6") or "in place" in clamp
    chain = ["lrelu in place"] if in_place else ["conv + bias + lrelu + gain"]
    assert sorted(what) == [*chain, *(["pixel norm"] * norm)]


@torch.library.custom_op("pggan_fast_tests::shrink", mutates_args=["x"])
def shrink(x: Tensor, by: float) -> None:
    x.mul_(by)


@shrink.register_fake
def _(x: Tensor, by: float) -> None:
    pass


@torch._dynamo.allow_in_graph
def shrunk(x: Tensor) -> Tensor:
    return x.mul_(0.9)


WRITERS = {
    "method": lambda w: w.mul_(0.9),
    "remainder": lambda w: operator.imod(w, 0.5),
    "quotient": lambda w: operator.ifloordiv(w, 0.5),
    "slice": lambda w: operator.setitem(w, slice(2), 0),
    "data": lambda w: w.data.mul_(0.9),
    "detached": lambda w: w.detach().view(-1).mul_(0.9),
    "list": lambda w: torch._foreach_mul_([w], 0.9),
    "out": lambda w: torch.mul(w, 0.9, out=w),
    "several outs": lambda w: torch.max(w * 0, 0, out=(w[0], torch.zeros(w.shape[1:], dtype=torch.long))),
    "custom op": lambda w: shrink(w, 0.9),
    "its overload": lambda w: torch.ops.pggan_fast_tests.shrink.default(w, 0.9),
    "function of the user's": shrunk,
}


class Scaled(nn.Module):
    """A convolution that writes over its weight, or over what it was scaled to, before it takes the latter."""

    def __init__(self, writer: str, over: str):
        super().__init__()
        torch.manual_seed(1)
        self.weight, self.writer, self.over = nn.Parameter(torch.randn(8, 8, 3, 3)), writer, over

    def forward(self, x):
        weight = self.weight * 0.5
        with torch.no_grad():
            WRITERS[self.writer](self.weight if self.over == "weight" else weight)
        return F.leaky_relu(F.conv2d(F.interpolate(x, scale_factor=2), weight, padding=1), 0.2)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_weight_is_written_over_after_it_was_scaled(writer):
    """The fused call would read the weight unscaled, and later."""
    model = Scaled(writer, "weight").double()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    for _ in range(2):
        torch.testing.assert_close(fast(X.double()), model(X.double()), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_scaled_weight_is_written_over(writer):
    """The fused call would read what it was scaled from."""
    model = Scaled(writer, "scaled").double()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    assert_same(results(fast, (X.double(),)), results(model, (X.double(),)), EXACT)
