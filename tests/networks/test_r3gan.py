"""R3GAN's networks against a plain writing of the paper's, and what they refuse."""

import copy
import inspect
import json

import pytest
import torch
import torch.nn.functional as F

from bench.baseline import r3gan as plain
from pggan_fast.layers.r3gan import LRELU_GAIN, ScaledConv2d
from pggan_fast.networks import R3ganDiscriminator, R3ganGenerator
from tests.tolerances import EXACT

SMALL = dict(fmap_base=128, fmap_max=32, group_channels=8)  # 32, 32, 16 channels at 4, 8, 16 px
WIDTHS, GROUPS = [32, 32, 16], [8, 8, 4]
NETWORKS = pytest.mark.parametrize("network", [R3ganGenerator, R3ganDiscriminator])


@pytest.fixture(autouse=True)
def one_thread(threads):
    torch.set_num_threads(1)


def small(network: type, resolution: int = 16, **options):
    torch.manual_seed(0)
    net = network(resolution, **SMALL | options)
    for parameter in net.parameters():  # the last layer of each block starts at 0
        if not parameter.any():
            parameter.data.normal_(0, 0.2)
    return net


def inputs(net, n: int = 3):
    random = torch.Generator().manual_seed(1)
    labels = torch.arange(n) % net.label_dim if net.label_dim else None
    if isinstance(net, R3ganGenerator):
        return torch.randn(n, net.latent_dim, generator=random), labels
    height, width = (side * net.resolution // 4 for side in net.base)
    return torch.randn(n, net.image_channels, height, width, generator=random), labels


def output(net, x, labels):
    y = net(x, labels)
    return y[0] if isinstance(y, tuple) else y


@NETWORKS
@pytest.mark.parametrize("label_dim", [0, 5])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_computes_the_papers_function_and_its_derivatives(network, label_dim, layout):
    """Outputs, gradients, and the gradients of a penalty on the input's gradient, in float64."""
    net = small(network, label_dim=label_dim).double().to(memory_format=layout)
    kind = plain.Generator if network is R3ganGenerator else plain.Discriminator
    theirs = kind(WIDTHS, GROUPS, label_dim=label_dim).double()
    theirs.load_state_dict(net.state_dict(), strict=True)
    x, labels = inputs(net)
    x = x.double().contiguous(memory_format=layout) if x.ndim == 4 else x.double()
    one_hot = F.one_hot(labels, label_dim).double() if label_dim else None

    def derivatives(net, labels):
        at = x.detach().requires_grad_()
        y = output(net, at, labels)
        (gradient,) = torch.autograd.grad(y.sin().sum(), at, create_graph=True)
        second = torch.autograd.grad(gradient.square().sum() + y.sum(), tuple(net.parameters()))
        return y, gradient, *second

    # Twenty layers in a row, and sums of thousands of terms that cancel: 4 digits above one rounding's 1e-16.
    torch.testing.assert_close(derivatives(net, labels), derivatives(theirs, one_hot), rtol=1e-9, atol=1e-10)


@NETWORKS
def test_published_sizes(network):
    """768 channels from 4 to 32 px, 384 at 64, 192 at 128, 96 at 256, cardinality 96 to 12: groups of 16."""
    with torch.device("meta"):
        net = network(256)
    grouped = {r: net.stages[r][1].grouped for r in ("32", "64", "128", "256")}
    assert [layer.weight.shape for layer in grouped.values()] == [(n, 16, 3, 3) for n in (1536, 768, 384, 192)]
    assert [layer.groups for layer in grouped.values()] == [96, 48, 24, 12]


def test_initialisation():
    """N(0, gain^2 / fan_in); inside blocks scaled by blocks^(-1/4), the last layer of a block at 0 (Fix-up)."""
    torch.manual_seed(0)
    block = R3ganDiscriminator(16, fmap_base=4096, fmap_max=512).stages["8"][0]
    expected = LRELU_GAIN * 6**-0.25
    for layer, fan_in in ((block.first, 512), (block.grouped, 16 * 9)):
        # The standard deviation of a million numbers, to 1 percent
        assert layer.weight.std().item() == pytest.approx(expected / fan_in**0.5, rel=0.01)
    assert not block.last.weight.any() and not block.first.bias.any()
    x = torch.randn(2, 512, 8, 8)
    assert torch.equal(block(x), x)


@NETWORKS
@pytest.mark.parametrize("options", [{}, {"label_dim": 3, "base": (4, 6), "image_channels": 1, "blocks": 1}])
def test_options_build_the_same_network(network, options):
    net = small(network, **options)
    again = network(**json.loads(json.dumps(net.options)))
    again.load_state_dict(net.state_dict())
    assert again.options == net.options and net.options["network"] == "r3gan"
    x, labels = inputs(net)
    assert torch.equal(output(again, x, labels), output(net, x, labels))


@NETWORKS
def test_every_parameter_is_live_and_seen_in_the_signature(network):
    net = small(network, label_dim=3)
    output(net, *inputs(net)).square().sum().backward()
    assert all(p.grad is not None for p in net.active_parameters(16, fading=False))
    assert {id(p) for p in net.parameters()} == {id(p) for p in net.active_parameters(16, fading=False)}
    assert inspect.signature(network).parameters["group_channels"].default == 16


@NETWORKS
def test_activation_checkpointing_changes_no_number(network):
    net = small(network, label_dim=3).double()
    other = copy.deepcopy(net)
    other.activation_checkpointing = True
    x, labels = inputs(net)

    def derivatives(net):
        at = x.double().requires_grad_()
        y = output(net, at, labels)
        (gradient,) = torch.autograd.grad(y.sum(), at, create_graph=True)
        return y, gradient, *torch.autograd.grad(gradient.square().sum() + y.sum(), tuple(net.parameters()))

    torch.testing.assert_close(derivatives(net), derivatives(other), **EXACT)


@NETWORKS
def test_compiles_as_one_graph(network):
    net = small(network, label_dim=3)
    x, labels = inputs(net)

    def derivatives():
        y = output(net, x, labels)
        return y, *torch.autograd.grad(y.square().sum(), tuple(net.parameters()))

    expected = derivatives()
    torch._dynamo.reset()
    net.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(derivatives(), expected)


def test_scores_are_fp32_under_autocast():
    D = small(R3ganDiscriminator, label_dim=3)
    x, labels = inputs(D)
    with torch.autocast("cpu", torch.bfloat16):
        scores, logits = D(x, labels)
    assert scores.dtype == torch.float32 and logits is None
    # bf16 keeps 8 bits per rounding, some 20 layers in a row
    torch.testing.assert_close(scores, D(x, labels)[0], rtol=0.1, atol=0.1)


IMAGES = torch.zeros(2, 3, 16, 16)
REFUSED = {
    "smaller images": (R3ganDiscriminator, {}, (torch.zeros(2, 3, 8, 8),), {}, r"\[2, 3, 8, 8\], must be \[N, 3, 16, "),
    "another resolution": (R3ganGenerator, {}, (torch.zeros(2, 64),), {"resolution": 8}, "resolution is 8, must be 16"),
    "fading": (R3ganDiscriminator, {}, (IMAGES,), {"alpha": 0.5}, r"alpha is 0\.5, must be 1\.0"),
    "another latent": (R3ganGenerator, {}, (torch.zeros(2, 6),), {}, r"\[2, 6\], must be \[N, 64\]"),
    "no labels": (R3ganDiscriminator, {"label_dim": 2}, (IMAGES,), {}, "labels are missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_arguments_get_one_line(name):
    network, options, args, kwargs, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        small(network, **options)(*args, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_channels": 24}, "group_channels is 24, must divide the 64 channels of the blocks at 4 px"),
        ({"blocks": 0}, "blocks is int 0, must be a whole number from 1"),
        ({"network": "pggan"}, "network is 'pggan', allowed: r3gan"),
        ({"resolution": 24}, "resolution is 24, must be a power of two"),
    ],
)
def test_wrong_options_get_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        R3ganGenerator(**{"resolution": 16, **SMALL, **options})
    assert "\n" not in str(caught.value)


def test_an_unknown_option_is_named():
    with pytest.raises(TypeError, match="residual"):
        R3ganGenerator(16, residual=True)


def test_repr():
    assert "16, 32, 3, groups=4, act=lrelu, bias=True" in repr(
        ScaledConv2d(16, 32, 3, groups=4, act="lrelu", bias=True)
    )
