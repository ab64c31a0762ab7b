"""Blurs: convolutions of each channel with one constant filter, against the model as it is."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pggan_fast import accelerate, explain
from pggan_fast.dropin import blur
from tests.dropin.helpers import EXACT, assert_same, called, results

C = 3
X = torch.randn(2, C, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Blurred(nn.Module):
    """A function of x times a parameter and of a filter, squared so that second derivatives are not zero."""

    def __init__(self, function, *size: int, trained: bool = False):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        filter = torch.randn(size, generator=generator, dtype=torch.float64)
        self.factor = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.function, self.filter = function, nn.Parameter(filter) if trained else nn.Buffer(filter)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.factor, self.filter).square()


class Linear(Blurred):
    """The function alone."""

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.filter)


def each(f: Tensor) -> Tensor:
    return f.expand(C, 1, *f.shape)


def up(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def single_planes(x: Tensor, f: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return F.conv2d(x.view(n * c, 1, h, w), f[None, None].flip((2, 3)), padding=1).view(n, c, h - 1, w - 1)


FILTERED = {
    "padding of numbers": (lambda x, f: F.conv2d(x, each(f), padding=1, groups=C), (3, 3)),
    "padding of each axis": (lambda x, f: F.conv2d(x, each(f), padding=(2, 0), groups=C), (4, 4)),
    "padding to the same size": (lambda x, f: F.conv2d(x, each(f), padding="same", groups=C), (3, 4)),
    "no padding": (lambda x, f: F.conv2d(x, each(f), padding="valid", groups=C), (1, 4)),
    "stride": (lambda x, f: F.conv2d(x, each(f), stride=2, padding=1, groups=C), (4, 4)),
    "stride of one axis": (lambda x, f: F.conv2d(x, each(f), stride=(2, 1), groups=C), (3, 2)),
    "repeated": (lambda x, f: F.conv2d(x, f[None, None].repeat(C, 1, 1, 1).contiguous(), groups=C), (5, 5)),
    "repeated images": (lambda x, f: F.conv2d(x, f[None, None].repeat_interleave(C, dim=0), groups=C), (3, 3)),
    "zeros around": (lambda x, f: F.conv2d(F.pad(x, (1, 2, 0, 1)), each(f), padding=1, groups=C), (4, 4)),
    "zeros at the sides": (lambda x, f: F.conv2d(nn.ZeroPad2d((2, 1, 0, 0))(x), each(f), groups=C), (2, 4)),
    "single planes": (single_planes, (4, 4)),
    "transposed": (lambda x, f: F.conv_transpose2d(x, each(f), stride=2, groups=C), (4, 4)),
    "transposed and cropped": (
        lambda x, f: F.conv_transpose2d(x, each(f), None, (2, 3), (3, 1), (1, 2), C),
        (3, 5),
    ),
    "then a stride": (
        lambda x, f: F.conv2d(F.conv2d(x, each(f), padding=2, groups=C), x[:2, :, :3, :3].detach(), stride=2),
        (4, 4),
    ),
}
UPSAMPLED = {
    "upsampled": (lambda x, f: F.conv2d(up(x), each(f), padding=1, groups=C), (3, 3)),
    "upsampled, zeros around": (lambda x, f: F.conv2d(F.pad(up(x), (2, 1, 1, 2)), each(f), groups=C), (3, 3)),
    "repeated pixels": (
        lambda x, f: F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), each(f), padding=(0, 1), groups=C),
        (3, 3),
    ),
}


def compare(model: nn.Module, x: Tensor = X) -> list[str]:
    """Return what was replaced in a model, after comparing its results with those of a copy that was left alone."""
    expected = results(copy.deepcopy(model), (x,))
    fast = accelerate(model)
    assert_same(results(fast, (x,)), expected, EXACT)
    return [row.what for row in explain(fast).replaced]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's word on its own speed
@pytest.mark.parametrize("name", FILTERED)
def test_blurs(name, monkeypatch):
    monkeypatch.setattr(blur, "is_on_cpu", lambda node: False)
    function, size = FILTERED[name]
    assert "blur" in compare(Blurred(function, *size))


@pytest.mark.parametrize("name", UPSAMPLED)
def test_blurs_of_upsampled_images(name, monkeypatch):
    monkeypatch.setattr(blur, "CPU_FROM", 0)
    function, size = UPSAMPLED[name]
    assert compare(Blurred(function, *size)) == ["nearest upsampling + blur"]


@pytest.mark.parametrize("name", sorted({*FILTERED, *UPSAMPLED} - {"then a stride"}))
def test_a_gradient_alone_has_a_graph_that_leads_nowhere(name, monkeypatch):
    """A convolution with a constant has such a graph too: the penalty of a blur alone runs and gives None."""
    monkeypatch.setattr(blur, "is_on_cpu", lambda node: False)
    function, size = {**FILTERED, **UPSAMPLED}[name]
    model = Linear(function, *size)
    for net in (model, accelerate(model)):
        x = X.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        assert torch.autograd.grad(gradient.square().sum(), x, allow_unused=True) == (None,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, monkeypatch):
    monkeypatch.setattr(blur, "CPU_FROM", 0)
    function, size = UPSAMPLED["upsampled"]
    model, x = Blurred(function, *size).to(dtype), X.to(dtype)
    expected = model.double()(x.double())
    fast = accelerate(model.to(dtype))
    y = fast(x)
    assert y.dtype == dtype
    assert explain(fast).replaced
    # Three roundings of values below the largest: of the product, of the blur, of the square.
    assert (y.double() - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


def overwritten(x: Tensor, f: Tensor) -> Tensor:
    g = f * 1
    weight = g[None, None].repeat(C, 1, 1, 1)
    g.zero_()
    return F.conv2d(x, weight, groups=C)


def partly_overwritten(x: Tensor, f: Tensor) -> Tensor:
    weight = f[None, None].repeat(C, 1, 1, 1)
    weight.view(-1)[0] = 5
    return F.conv2d(x, weight, groups=C)


LEFT = {
    "reflected": (lambda x, f: F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), each(f), groups=C), (3, 3), "blur"),
    "ones around": (lambda x, f: F.conv2d(F.pad(x, (1, 1, 1, 1), value=1.0), each(f), groups=C), (3, 3), "blur"),
    "cropped": (lambda x, f: F.conv2d(F.pad(x, (-1, 1, 0, 0)), each(f), padding=1, groups=C), (3, 3), "blur"),
    "several filters": (lambda x, f: F.conv2d(x, f, groups=C), (C, 1, 3, 3), "its filters may differ"),
    "scaled filters": (lambda x, f: F.conv2d(x, each(f) * x[0, :, :1, :1, None].detach(), groups=C), (3, 3), "differ"),
    "a bias": (lambda x, f: F.conv2d(x, each(f), f[0], groups=C), (3, 3), "a bias"),
    "gaps": (lambda x, f: F.conv2d(x, each(f), dilation=2, groups=C), (3, 3), "gaps"),
    "overwritten": (overwritten, (3, 3), "written over"),
    "partly overwritten": (partly_overwritten, (3, 3), "written over"),
    "two outputs": (lambda x, f: F.conv2d(x, f.expand(2 * C, 1, 3, 3), groups=C), (3, 3), "its geometry"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_or_taken_in_part(name, monkeypatch):
    """Numbers are the original's, and what cannot be proved has its reason."""
    monkeypatch.setattr(blur, "is_on_cpu", lambda node: False)
    function, size, reason = LEFT[name]
    model = Blurred(function, *size)
    replaced = compare(model)
    fast = called(accelerate(model), X)
    if reason == "blur":  # the padding stays
        assert replaced == ["blur"]
        return
    assert replaced == []
    assert any(reason in row.what for row in explain(fast).left), explain(fast)


def test_filters_that_are_trained_stay(monkeypatch):
    monkeypatch.setattr(blur, "is_on_cpu", lambda node: False)
    assert compare(Blurred(*FILTERED["stride"][:1], 4, 4, trained=True)) == []


def test_a_filter_loaded_later_counts(monkeypatch):
    monkeypatch.setattr(blur, "is_on_cpu", lambda node: False)
    function, size = FILTERED["zeros around"]
    model = Blurred(function, *size)
    fast = called(accelerate(model), X)
    fast.load_state_dict({name: 2 * value for name, value in model.state_dict().items()})
    assert_same(results(fast, (X,)), results(copy.deepcopy(model), (X,)), EXACT)


def test_backward_takes_the_filter_of_its_forward(monkeypatch):
    """The original takes the gradient of a copy of it, whatever becomes of the buffer."""
    monkeypatch.setattr(blur, "is_on_cpu", lambda node: False)
    found = []
    model = Blurred(FILTERED["repeated"][0], 3, 3)
    for net in (copy.deepcopy(model), accelerate(model)):
        x = X.clone().requires_grad_()
        y = net(x)
        net.filter.mul_(2)
        found.append(torch.autograd.grad(y.sum() + net(x).sum(), x))
    torch.testing.assert_close(*found, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", ["padding of numbers", "transposed", "zeros around"])
def test_a_tap_of_zero_counts_where_the_image_is_infinite(name):
    function, _ = FILTERED[name]
    model = Linear(function, 4, 4)
    model.filter[0], model.filter[2, 2] = 0, 0
    x = LARGE.clone()
    x[0, 0, 9, 9], x[1, 1, 0, 0] = float("inf"), float("nan")
    fast = accelerate(model)
    torch.testing.assert_close(fast(x), copy.deepcopy(model)(x), rtol=EXACT, atol=EXACT, equal_nan=True)


LARGE = X.repeat(1, 1, 24, 24)
FEW = [
    ("padding of numbers", (3, 3)),
    ("stride", (4, 4)),
    ("transposed", (4, 4)),
    ("zeros around", (4, 4)),
    ("upsampled", (3, 3)),
]
MANY = [
    ("padding of numbers", (5, 5)),
    ("padding of numbers", (3, 4)),
    ("stride of one axis", (4, 4)),
    ("transposed and cropped", (4, 4)),
    ("upsampled", (4, 4)),
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("name", "size"), FEW, ids=str)
def test_a_cpu_blurs_large_images_with_few_taps(name, size, layout):
    function, _ = (FILTERED | UPSAMPLED)[name]
    model = Blurred(function, *size)
    assert "blur" in " ".join(compare(model, LARGE.contiguous(memory_format=layout)))
    fast = called(accelerate(model), X.contiguous(memory_format=layout))
    assert any("a blur of few values" in row.what for row in explain(fast).left)


@pytest.mark.parametrize(("name", "size"), MANY, ids=str)
def test_a_cpu_leaves_blurs_that_have_no_kernel(name, size):
    function, _ = (FILTERED | UPSAMPLED)[name]
    model = Blurred(function, *size)
    assert "blur" not in " ".join(compare(model, LARGE))
    assert any("of many taps" in row.what for row in explain(called(accelerate(model), LARGE)).left)
