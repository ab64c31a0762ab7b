"""Each pattern in the spellings and with the options that other people's code has, against that code, in fp64."""

import copy
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pggan_fast import accelerate, explain
from pggan_fast.dropin import fused, rewrite
from tests.dropin.helpers import EXACT, X, always_fuse, assert_same, called, calls, results
from tests.dropin.progressive import EqualConv, PixelNorm


@pytest.fixture(autouse=True)
def no_thresholds(monkeypatch):
    always_fuse(monkeypatch)


def assert_replaced(model: nn.Module, *what: str, x: Tensor = X) -> None:
    """That is replaced, no more, and outputs, gradients and a penalty's gradients are the original's."""
    torch.manual_seed(1)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    model = model.double()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    for _ in range(2):
        assert_same(results(fast, (x.double(),)), results(model, (x.double(),)), EXACT)
    assert_same(fast.state_dict(), model.state_dict(), EXACT)
    assert [row.what for row in explain(fast).replaced] == [*what]


GEOMETRIES = [
    {"stride": 2},
    {"stride": (1, 2), "padding": (0, 1)},
    {"padding": 0},
    {"padding": 2},
    {"padding": "same"},
    {"padding": "valid"},
    {"dilation": 2, "padding": 2},
    {"groups": 4},
    {"groups": 8, "stride": 2},
    {"bias": False},
    {"kernel_size": 4, "padding": 1},
    {"kernel_size": 4, "padding": "same"},
    {"kernel_size": (1, 5), "padding": (0, 2)},
    {"kernel_size": 1, "padding": 0},
    *({"padding_mode": mode, "padding": 2} for mode in ("reflect", "replicate", "circular")),
    {"padding_mode": "reflect", "padding": (1, 2), "stride": 2, "groups": 2},
    {"padding_mode": "circular", "padding": "same"},
    {"padding_mode": "replicate", "padding": "valid"},
    {"padding_mode": "reflect", "padding": "same", "kernel_size": (4, 3), "dilation": (1, 2)},
]


@pytest.mark.parametrize("after", ["lrelu", "relu", "pixel norm", "batch norm"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolutions(geometry, after):
    conv = nn.Conv2d(8, 8, **{"kernel_size": 3, "padding": 1, **geometry})
    layers = {
        "lrelu": [nn.LeakyReLU(0.3)],
        "relu": [nn.ReLU(inplace=True)],
        "pixel norm": [nn.LeakyReLU(0.2, inplace=True), PixelNorm()],
        "batch norm": [nn.BatchNorm2d(8).eval(), nn.LeakyReLU(0.2)],
    }
    # On a CPU a convolution with an activation is torch's own, as is one of a geometry that the ops do not know.
    norm = "conv + lrelu + pixel norm" if suits(geometry) else "pixel norm"
    names = {"pixel norm": [norm], "batch norm": ["batch norm into conv"]}
    assert_replaced(nn.Sequential(conv, *layers[after]), *names.get(after, []))


def suits(geometry: dict) -> bool:
    """Whether `equalized_conv2d` takes such a convolution."""
    if geometry.keys() & {"stride", "dilation", "groups"} or geometry == {"kernel_size": 4, "padding": "same"}:
        return False
    return isinstance(geometry.get("kernel_size", 3), int)


UNPADDED = [geometry for geometry in GEOMETRIES if "padding_mode" not in geometry]


@pytest.mark.parametrize("geometry", UNPADDED, ids=str)
def test_convolutions_between_rescalings(geometry):
    """Those that the folded convolution does not know are left as they are written."""
    conv = nn.Conv2d(8, 8, **{"kernel_size": 3, "padding": 1, **geometry})
    up, down = ("nearest upsampling + conv", "conv + 2x2 mean + relu") if suits(geometry) else (UP, DOWN)
    assert_replaced(nn.Sequential(nn.Upsample(scale_factor=2), conv), up)
    assert_replaced(nn.Sequential(conv, nn.AvgPool2d(2), nn.ReLU()), down)


UP, DOWN = "nearest upsampling", "2x2 mean"
SIZES = [(16, 16), (15, 16), (7, 5), (2, 3)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(size):
    x = torch.randn(3, 8, *size, generator=torch.Generator().manual_seed(0))
    conv = nn.Conv2d(8, 8, 3, padding=1)
    assert_replaced(nn.Sequential(nn.UpsamplingNearest2d(scale_factor=2), conv), "nearest upsampling + conv", x=x)
    assert_replaced(nn.Sequential(conv, nn.AvgPool2d(2), nn.LeakyReLU(0.2)), "conv + 2x2 mean + lrelu", x=x)


class Spelled(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.conv, self.function = nn.Conv2d(8, 8, 3, padding=1, bias=False), function
        self.bias = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x), self.bias)


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


NORMS = {
    "x / sqrt": lambda x: x / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-8),
    "x / methods": lambda x: x / x.pow(2).mean(1, keepdim=True).add(1e-8).sqrt(),
    "x / power": lambda x: x / (x.square().mean(dim=[1], keepdim=True) + 1e-8) ** 0.5,
    "x * rsqrt": lambda x: x * torch.rsqrt((x * x).mean(dim=1, keepdim=True) + 1e-8),
    "rsqrt * x": lambda x: (torch.square(x).mean(1, True) + 1e-8).rsqrt() * x,
    "x * power": lambda x: x * torch.pow(torch.mean(x**2, 1, keepdim=True) + 1e-8, -0.5),
    "torch.div": lambda x: torch.div(x, torch.sqrt(1e-8 + torch.mean(torch.pow(x, 2), 1, keepdim=True))),
    "x.div(y)": lambda x: x.div(x.mul(x).mean(1, keepdim=True).add(1e-8).pow(0.5)),
}
ACTS = {
    "function": lambda x, b: F.leaky_relu(x + b.view(1, -1, 1, 1), 0.2),
    "method": lambda x, b: F.leaky_relu(x.add(b.reshape(1, 8, 1, 1)), negative_slope=0.2),
    "from the left": lambda x, b: F.leaky_relu(torch.add(x, b.view(1, b.shape[0], 1, 1)), 0.2, inplace=True),
}


@pytest.mark.parametrize("norm", NORMS)
def test_spellings_of_pixel_norm(norm):
    assert_replaced(
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.LeakyReLU(0.2), Called(NORMS[norm])), "conv + lrelu + pixel norm"
    )


@pytest.mark.parametrize("act", ACTS)
def test_spellings_of_bias_and_activation(act):
    assert_replaced(Spelled(ACTS[act]), "conv + bias + lrelu")


@pytest.mark.parametrize("gain", [lambda y: y * math.sqrt(2), lambda y: 1.4 * y, lambda y: y / 0.7, lambda y: y.mul(2)])
def test_spellings_of_a_gain(gain):
    act = ACTS["function"]
    assert_replaced(Spelled(lambda x, b: gain(act(x, b))), "conv + bias + lrelu + gain")


def near_misses() -> dict:
    norm, act = NORMS["x / sqrt"], ACTS["function"]
    return {
        "a mean over another axis": lambda x, b: x / torch.sqrt(torch.mean(x**2, dim=2, keepdim=True) + 1e-8),
        "a mean over two axes": lambda x, b: x / torch.sqrt(torch.mean(x**2, dim=(1, 2), keepdim=True) + 1e-8),
        "a cube": lambda x, b: x / torch.sqrt(torch.mean(x**3, dim=1, keepdim=True).abs() + 1e-8),
        "a norm of another tensor": lambda x, b: (x * 2) / torch.sqrt(torch.mean(x**2, dim=1, keepdim=True) + 1e-8),
        "read in between": lambda x, b: norm(x) + x,
        "a bias for each row": lambda x, b: F.leaky_relu(x + b.repeat(2).view(1, 1, -1, 1), 0.2),
        "a negative gain": lambda x, b: act(x, b) * -2,
        "a negative slope": lambda x, b: F.leaky_relu(x + b.view(1, -1, 1, 1), -0.2),
        "a slope of a parameter": lambda x, b: F.prelu(x, b),
        "bilinear upsampling": lambda x, b: F.interpolate(x, scale_factor=2, mode="bilinear") * b.mean(),
        "a mean of 3x3": lambda x, b: F.avg_pool2d(x, 3) * b.mean(),
        "a mean that overlaps": lambda x, b: F.avg_pool2d(x, 2, stride=1) * b.mean(),
    }


@pytest.mark.parametrize("kind", near_misses())
def test_near_misses_compute_what_they_are(kind):
    torch.manual_seed(1)
    model = Spelled(near_misses()[kind]).double()
    nn.init.normal_(model.bias)
    fast = accelerate(copy.deepcopy(model), inplace=True)
    assert_same(results(fast, (X.double(),)), results(model, (X.double(),)), EXACT)


class Deviation(nn.Module):
    """The whole family: groups strided or consecutive, biased or not, of one or several maps."""

    def __init__(self, group: int, maps: int, strided: bool, correction: int):
        super().__init__()
        self.group, self.maps, self.strided, self.correction = group, maps, strided, correction

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        g, f = min(self.group, n), self.maps
        shape, axis = ((g, n // g, f, c // f, h, w), 0) if self.strided else ((n // g, g, f, c // f, h, w), 1)
        y = x.reshape(shape)
        y = torch.sqrt(y.var(axis, unbiased=bool(self.correction)) + 1e-8).mean([2, 3, 4])
        y = y.repeat(g, 1) if self.strided else y.unsqueeze(1).expand(n // g, g, f).reshape(n, f)
        return torch.cat([x, y.reshape(n, f, 1, 1).expand(n, f, h, w)], 1)


@pytest.mark.parametrize(
    ("group", "maps", "strided", "correction"), list(itertools.product([2, 4], [1, 2], [True, False], [0, 1]))
)
def test_minibatch_deviations(group, maps, strided, correction, monkeypatch):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(8, 8, 1), Deviation(group, maps, strided, correction)).double()
    x = torch.randn(8, 8, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fast = accelerate(copy.deepcopy(model), inplace=True)
    called = calls(monkeypatch)
    assert_same(results(fast, (x,)), results(model, (x,)), EXACT)
    assert called.count("minibatch_stddev") == 1


@pytest.mark.parametrize(("size", "replaced"), [(8, []), (16, ["lrelu in place"])])
def test_small_activations_stay(size, replaced, monkeypatch):
    """A network that has nothing else runs as it is from the second call on: guards cost more than in place saves."""
    monkeypatch.setattr(fused, "IN_PLACE_FROM", 4 * 8 * 16 * 16)
    x = torch.randn(4, 8, size, size)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.2), nn.Flatten())
    fast = called(accelerate(nn.Sequential(*model, nn.Linear(8 * size**2, 1))), x)
    assert [row.what for row in explain(fast).replaced] == replaced
    assert any("it is small" in row.what for row in explain(fast).left) == (not replaced)
    fast(x)
    assert [graph.runs for graph in explain(fast).graphs] == [2 if replaced else 1]


@pytest.mark.parametrize("more", [False, True])
def test_in_place_alone_does_not_pay_for_many_guards(more, monkeypatch):
    """An activation that pays in a small network stays in a large one, if nothing else is replaced in it."""
    monkeypatch.setattr(fused, "IN_PLACE_FROM", X.numel())
    layers = [nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.2), *(nn.Conv2d(8, 8, 1) for _ in range(12))]
    layers += [nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, padding=1)] if more else []
    model = nn.Sequential(*layers)
    fast = accelerate(model)
    for _ in range(2):
        torch.testing.assert_close(fast(X), model(X), rtol=1e-4, atol=1e-5)  # fp32, 14 convolutions
    replaced = {row.what for row in explain(fast).replaced}
    assert replaced == ({"lrelu in place", "nearest upsampling + conv"} if more else set())
    assert [graph.runs for graph in explain(fast).graphs] == [2 if more else 1]


def test_one_norm_after_another():
    """Where the second reads what the first became."""
    norms = [PixelNorm() for _ in range(3)]
    replaced = ["conv + pixel norm", "pixel norm", "pixel norm"]
    assert_replaced(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), *norms), *replaced)


@pytest.mark.parametrize(("channels", "replaced"), [(8, []), (86, ["equalized conv + lrelu"])])
def test_factors_of_small_weights_stay(channels, replaced, monkeypatch):
    """86 * 86 * 9 weights take longer to scale than an epilogue takes to call."""
    monkeypatch.setattr(rewrite, "SCALE_FROM", 1 << 16)
    monkeypatch.setattr(fused, "IN_PLACE_FROM", 1 << 17)
    model = nn.Sequential(EqualConv(channels, channels, 3, padding=1), nn.LeakyReLU(0.2))
    x = torch.randn(1, channels, 4, 4)
    fast = called(accelerate(model), x)
    assert [row.what for row in explain(fast).replaced] == replaced
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)  # fp32, one convolution


class Divided(nn.Module):
    """An activation over a number."""

    def __init__(self, number: float):
        super().__init__()
        self.conv, self.number = nn.Conv2d(8, 8, 3, padding=1), number

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x), 0.2) / self.number


def test_a_number_whose_reciprocal_is_infinite_still_divides():
    model = Divided(1e-310).double()
    nn.init.zeros_(model.conv.weight)
    nn.init.constant_(model.conv.bias, 1e-308)
    expected = model(X.double())
    assert expected.isfinite().all()
    assert torch.equal(accelerate(model)(X.double()), expected)
