"""The promises of accelerate about a model: the same objects, the way back, what is replaced."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pggan_fast import accelerate, explain, restore
from tests.dropin.helpers import CLOSE, X, block, called, calls
from tests.dropin.model_zoo import network
from tests.dropin.progressive import UpBlock

# The same objects


def test_a_copy_shares_everything_and_the_model_stays():
    model = block()
    fast = accelerate(model)
    assert type(model) is UpBlock and fast is not model
    assert isinstance(fast, UpBlock) and repr(fast) == repr(model)
    assert [id(p) for p in fast.parameters()] == [id(p) for p in model.parameters()]
    assert list(fast.state_dict()) == list(model.state_dict())
    assert not explain(model) and explain(called(fast, X)).replaced and not explain(model)


def test_in_place_is_the_same_object():
    model = block()
    parameters = dict(model.named_parameters())
    assert accelerate(model, inplace=True) is model
    assert {n: id(p) for n, p in model.named_parameters()} == {n: id(p) for n, p in parameters.items()}


def test_buffers_are_shared():
    model = network("stackgan").train()
    fast = accelerate(model)
    fast(torch.randn(4, 16))
    torch.testing.assert_close(fast.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert model.fc[1].num_batches_tracked == 1


@pytest.mark.parametrize("inplace", [True, False])
def test_restore(inplace, monkeypatch):
    model = block()
    expected = model(X)
    fast = restore(called(accelerate(model, inplace=inplace), X))
    seen = calls(monkeypatch)
    assert type(fast) is UpBlock and not explain(fast)
    assert torch.equal(fast(X), expected) and not seen
    assert vars(fast).keys() == vars(block()).keys()


def test_accelerating_twice_is_once():
    fast = accelerate(accelerate(block()))
    assert type(fast) is UpBlock
    torch.testing.assert_close(fast(X), block()(X), **CLOSE)
    assert len(explain(fast).graphs) == 1


def test_no_module():
    for function in (accelerate, explain, restore):
        with pytest.raises(TypeError, match=f"^{function.__name__}: model is a int, must be a torch.nn.Module"):
            function(3)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"bias_act": False}, "pixel norm"),
        ({"resample": False}, "nearest upsampling"),
        ({"conv": False}, "equalized conv"),
    ],
)
def test_options_leave_things_alone(options, left):
    everything = " ".join(row.what for row in explain(called(accelerate(block()), X)).replaced)
    fast = called(accelerate(block(), **options), X)
    assert left in everything and left not in " ".join(row.what for row in explain(fast).replaced)
    torch.testing.assert_close(fast(X), block()(X), **CLOSE)


def test_minibatch_stddev_can_be_left_alone(monkeypatch):
    fast = accelerate(network("pggan_discriminator"), minibatch_stddev=False)
    seen = calls(monkeypatch)
    fast(torch.randn(4, 3, 32, 32))
    assert seen and "minibatch_stddev" not in seen


# What is replaced


def test_what_runs(monkeypatch):
    fast = accelerate(block())
    expected = block()(X)
    seen = calls(monkeypatch)
    torch.testing.assert_close(fast(X), expected, **CLOSE)
    assert seen == ["equalized_conv2d", "bias_act"]  # with nothing to fold, the convolution is torch's
    rows = explain(fast).replaced
    assert [row.what for row in rows] == [
        "nearest upsampling + equalized conv + lrelu + pixel norm",
        "equalized conv + lrelu + pixel norm",
    ]
    assert "nearest upsampling" in str(explain(fast))
    assert str(explain(fast)).endswith("calls put in: 2, runs: 1")


class Staged(nn.Module):
    """Two parts, one of which has nothing to fuse; an argument or the grad mode says which one runs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x, part="grad mode"):
        whole = torch.is_grad_enabled() if part == "grad mode" else part
        return F.leaky_relu(self.conv(F.interpolate(x, scale_factor=2.0)), 0.2) * 2 if whole else torch.tanh(x)


@pytest.mark.parametrize("given", ["keyword", "flag", "step", "grad mode"])
def test_a_call_with_nothing_to_fuse_does_not_decide_for_others(given):
    model = Staged()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    for whole in (False, False, True):
        args, kwargs = {
            "keyword": ((X,), {"part": whole}),
            "flag": ((X, whole), {}),
            "step": ((X, int(whole)), {}),
            "grad mode": ((X,), {}),
        }[given]
        with torch.set_grad_enabled(whole):
            torch.testing.assert_close(fast(*args, **kwargs), model(*args, **kwargs), **CLOSE)
    assert explain(fast).replaced


class Doubling:
    def __call__(self, x):
        return F.relu(x) * 2


class Forwarding(nn.Module):
    forward = Doubling()


def test_a_forward_that_is_no_function():
    assert torch.equal(accelerate(Forwarding())(X), Forwarding()(X))


class Sloped(nn.Module):
    """A gradient by the input, as of a field that is trained on its normals."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = x.detach().requires_grad_()
        y = F.leaky_relu(self.conv(F.interpolate(x, scale_factor=2.0)), 0.2) * 2
        return torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]


def test_a_backward_inside_forward_is_not_captured():
    model = Sloped().double()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    gradients = []
    for net in (fast, model):
        y = net(X.double())
        gradients.append((y, *torch.autograd.grad(y.square().sum(), list(net.parameters()))))
    torch.testing.assert_close(*gradients)
    assert explain(fast).replaced and not explain(fast).reasons


def test_where_nothing_is_replaced_it_says_so_first():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.Tanh())
    fast = called(accelerate(model), torch.zeros(1, 3, 8, 8))
    assert str(explain(fast)).startswith("nothing is replaced: what runs is the model's own code\n")


@pytest.mark.parametrize("size", [8, 64], ids=lambda size: f"{size} px")
@pytest.mark.parametrize("rescale", [nn.Upsample(scale_factor=2), nn.AvgPool2d(2)], ids=repr)
def test_rescaling_without_a_convolution(rescale, size, monkeypatch):
    """The op, which takes torch's own function where the image is small."""
    model = nn.Sequential(rescale, nn.Tanh())
    x = torch.randn(2, 3, size, size, dtype=torch.float64, requires_grad=True)
    fast, seen = accelerate(model), calls(monkeypatch)
    torch.testing.assert_close(fast(x), model(x))
    assert [row.what for row in explain(fast).replaced] in (["nearest upsampling"], ["2x2 mean"])
    assert len(seen) == 1
    assert torch.autograd.gradcheck(fast, x[:1, :1, :4, :4]) and torch.autograd.gradgradcheck(fast, x[:1, :1, :4, :4])
    for other in (x.contiguous(memory_format=torch.channels_last), x[0], x.bfloat16()):
        torch.testing.assert_close(fast(other), model(other))
    assert not explain(called(accelerate(model, resample=False), x)).replaced


@pytest.mark.parametrize("up", [True, False])
def test_one_by_one_convolutions_take_the_smaller_image(up):
    """They commute with rescaling, also over odd sizes, with bias, activation and pixel norm behind them."""
    conv = nn.Conv2d(3, 5, 1)
    model = nn.Sequential(nn.Upsample(scale_factor=2), conv, nn.ReLU()) if up else nn.Sequential(conv, nn.AvgPool2d(2))
    x = torch.randn(2, 3, 7, 9, dtype=torch.float64, requires_grad=True)
    fast = accelerate(model.double())
    torch.testing.assert_close(fast(x), model(x))
    gradients = [torch.autograd.grad(net(x).square().sum(), [x, *conv.parameters()]) for net in (fast, model)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ["pggan_discriminator", "pggan_batch_deviation", "pggan_function_deviation"])
@pytest.mark.parametrize("batch", [2, 4, 6, 8])
def test_stddev_of_any_batch(name, batch, monkeypatch):
    model = network(name).double()
    fast = accelerate(model)
    images = torch.randn(batch, 3, 32, 32, dtype=torch.float64)
    if name == "pggan_discriminator" and batch == 6:  # its reshape refuses such a batch, and so must ours
        with pytest.raises(RuntimeError):
            fast(images)
        return
    seen = calls(monkeypatch)
    torch.testing.assert_close(fast(images), model(images), rtol=1e-10, atol=1e-10)
    assert "minibatch_stddev" in seen


def test_one_sample_has_no_deviation():
    model = network("pggan_discriminator").double()
    torch.testing.assert_close(accelerate(model)(X[:1, :3].double()), model(X[:1, :3].double()))


def test_a_deviation_with_weights_of_its_own_is_left_alone(monkeypatch):
    class Odd(nn.Module):
        def forward(self, x):
            return torch.cat([x, torch.sqrt(x.var(0) + 1e-8).square().mean().expand(4, 1, 16, 16)], 1)

    fast = accelerate(Odd())
    seen = calls(monkeypatch)
    assert torch.equal(fast(X), Odd()(X)) and not seen
