"""The networks as PyTorch modules: sizes, growth, options, errors, compilation, saving.

What they compute is compared with the official implementation in tests/interop/test_official.py.
"""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pggan_fast import Discriminator, Generator, _native, cache_folded_weights, use_impl
from pggan_fast.ops import small

SMALL = {"resolution": 16, "fmap_base": 64, "fmap_max": 16}
NETWORKS = pytest.mark.parametrize("network", [Generator, Discriminator])
RESOLUTIONS = pytest.mark.parametrize("resolution", [4, 8, 16])


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Tensors are tiny: a second thread gains nothing, and on a busy machine it is waited for."""
    torch.set_num_threads(1)


def _small(network: type, **options):
    torch.manual_seed(0)
    return network(**SMALL | options)


def _inputs(net, batch: int = 4, resolution: int = 16, dtype=torch.float32) -> tuple:
    """Return the positional arguments of forward: latents and labels, or images."""
    random = torch.Generator().manual_seed(1)
    if isinstance(net, Discriminator):
        shape = (batch, net.image_channels, resolution, resolution)
        return (torch.randn(shape, generator=random, dtype=dtype),)
    z = torch.randn(batch, net.latent_dim, generator=random, dtype=dtype)
    if net.label_dim == 0:
        return (z,)
    return z, torch.randint(net.label_dim, (batch,), generator=random)


def _run(net, *, resolution: int = 16, alpha=1.0, batch: int = 4, dtype=torch.float32):
    """The one tensor that matters: images, or scores."""
    inputs = _inputs(net, batch, resolution, dtype)
    if isinstance(net, Discriminator):
        return net(*inputs, alpha=alpha)[0]
    return net(*inputs, resolution=resolution, alpha=alpha)


# Sizes


@pytest.mark.parametrize(("network", "count"), [(Generator, 23_079_115), (Discriminator, 23_087_249)])
def test_parameter_count_at_1024_px(network, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in network(1024).parameters()) == count


def test_channels_at_1024_px():
    table = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}
    with torch.device("meta"):
        G, D = Generator(), Discriminator()
    assert G.latent_dim == 512
    assert G.input.weight.shape == (512 * 16, 512)
    assert D.head["dense"].weight.shape == (512, 512 * 16)
    assert D.head["conv"].weight.shape == (512, 513, 3, 3)
    for r, maps in table.items():
        assert G.blocks[str(r)]["conv"].weight.shape == (maps, maps, 3, 3)
        assert G.to_rgb[str(r)].weight.shape == (3, maps, 1, 1)
        assert D.from_rgb[str(r)].weight.shape == (maps, 3, 1, 1)
        if r > 4:
            below = table[r // 2]
            assert G.blocks[str(r)]["up"].weight.shape == (maps, below, 3, 3)
            assert D.blocks[str(r)]["conv"].weight.shape == (maps, maps, 3, 3)
            assert D.blocks[str(r)]["down"].weight.shape == (below, maps, 3, 3)


def test_channels_follow_their_options():
    G = Generator(32, fmap_base=100, fmap_decay=0.5, fmap_max=48)
    maps = [G.blocks[str(r)]["conv"].weight.shape[0] for r in (4, 8, 16, 32)]
    assert maps == [48, 48, 35, 25]  # int of 70.7, 50, 35.4, 25, at most 48
    assert G.latent_dim == 48


@NETWORKS
def test_initial_parameters(network):
    net = _small(network)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
    weights = torch.cat([p.flatten() for n, p in net.named_parameters() if n.endswith("weight")])
    # More than 10,000 draws of N(0, 1): the deviations of these estimates are below 0.01.
    assert abs(weights.mean()) < 0.04
    assert abs(weights.std() - 1) < 0.04


# Growth


@RESOLUTIONS
def test_shapes(resolution):
    G, D = _small(Generator), _small(Discriminator)
    images = G(*_inputs(G), resolution=resolution)
    assert images.shape == (4, 3, resolution, resolution)
    scores, logits = D(images)
    assert scores.shape == (4,)
    assert logits is None
    assert G(*_inputs(G)).shape == (4, 3, 16, 16)


class CountConvolutions(TorchDispatchMode):
    """Count forward convolutions, whether torch's or the fused op that holds one."""

    NAMES = ("aten::convolution", "pggan_fast::equalized_conv2d")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name().split(".")[0] in self.NAMES
        return func(*args, **kwargs or {})


@NETWORKS
@RESOLUTIONS
@pytest.mark.parametrize("fused_scale", [True, False])
@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_only_live_branches_are_computed(network, resolution, fused_scale, impl):
    net = _small(network, fused_scale=fused_scale)
    stages = [4, 8, 16].index(resolution)
    with use_impl(impl), torch.no_grad():
        with CountConvolutions() as whole:
            _run(net, resolution=resolution, alpha=1.0)
        with CountConvolutions() as fading:
            _run(net, resolution=resolution, alpha=torch.tensor(0.5))
    assert whole.count == 2 + 2 * stages  # one at 4 px, one from or to RGB, two per resolution
    assert fading.count == whole.count + (resolution > 4)


@NETWORKS
@RESOLUTIONS
@pytest.mark.parametrize("fading", [False, True])
def test_active_parameters_are_those_with_gradients(network, resolution, fading):
    net = _small(network)
    _run(net, resolution=resolution, alpha=0.5 if fading else 1.0).square().sum().backward()
    with_gradient = {name for name, p in net.named_parameters() if p.grad is not None}
    live = {id(p) for p in net.active_parameters(resolution, fading)}
    assert len(live) == len(net.active_parameters(resolution, fading))
    assert with_gradient == {name for name, p in net.named_parameters() if id(p) in live}


@NETWORKS
def test_everything_is_live_at_most_once_over_all_resolutions(network):
    net = _small(network)
    live = {id(p) for r in (4, 8, 16) for p in net.active_parameters(r, False)}
    assert live == {id(p) for p in net.parameters()}


@NETWORKS
@pytest.mark.parametrize("resolution", [8, 16])
def test_alpha_is_the_weight_of_the_new_path(network, resolution):
    net = _small(network)
    new = _run(net, resolution=resolution, alpha=1.0)
    torch.testing.assert_close(_run(net, resolution=resolution, alpha=torch.tensor(1.0)), new)
    number, tensor = (_run(net, resolution=resolution, alpha=a) for a in (0.3, torch.tensor(0.3)))
    torch.testing.assert_close(number, tensor)
    half = resolution // 2
    old = _run(net, resolution=resolution, alpha=0.0)
    if network is Generator:
        expected = _run(net, resolution=half).repeat_interleave(2, 2).repeat_interleave(2, 3)
    else:
        (images,) = _inputs(net, resolution=resolution)
        expected = net(images.reshape(4, 3, half, 2, half, 2).mean((3, 5)))[0]
    torch.testing.assert_close(old, expected)


@NETWORKS
def test_alpha_gets_a_gradient(network):
    net = _small(network).double()
    alpha = torch.tensor(0.25, requires_grad=True)

    def loss(alpha):
        return _run(net, alpha=alpha, batch=2, dtype=torch.float64).square().mean()

    (gradient,) = torch.autograd.grad(loss(alpha), alpha)
    with torch.no_grad():
        difference = (loss(0.25 + 1e-6) - loss(0.25 - 1e-6)) / 2e-6
    # alpha's gradient is fp32; a central difference of step h errs by about eps / h = 1e-10.
    torch.testing.assert_close(gradient, difference.float(), rtol=1e-5, atol=0)


# Options


@pytest.mark.parametrize("channels", [1, 4])
def test_image_channels(channels):
    G, D = _small(Generator, image_channels=channels), _small(Discriminator, image_channels=channels)
    images = G(*_inputs(G), alpha=0.5)
    assert images.shape == (4, channels, 16, 16)
    assert D(images, alpha=0.5)[0].shape == (4,)


def test_labels():
    G, D = _small(Generator, label_dim=5), _small(Discriminator, label_dim=5)
    z, labels = _inputs(G)
    images = G(z, labels)
    one_hot = torch.nn.functional.one_hot(labels, 5)
    torch.testing.assert_close(G(z, one_hot), images)
    torch.testing.assert_close(G(z, one_hot.float()), images)
    assert not torch.allclose(G(z, (labels + 1) % 5), images)
    scores, logits = D(images)
    assert scores.shape == (4,)
    assert logits.shape == (4, 5)


def test_latent_dim():
    G = _small(Generator, latent_dim=7, label_dim=2)
    assert G.latent_dim == 7
    assert G.input.weight.shape == (256, 9)
    assert _run(G).shape == (4, 3, 16, 16)


def test_normalize_latents():
    """Normalized latents have no length; the labels beside them are normalized with them."""
    (z,) = _inputs(_small(Generator))
    with torch.no_grad():
        G = _small(Generator)
        torch.testing.assert_close(G(3 * z), G(z), atol=1e-5, rtol=1e-5)
        # Without pixel norm, which takes lengths out as well, the network is homogeneous: biases are 0.
        G = _small(Generator, normalize_latents=False, pixel_norm=False)
        torch.testing.assert_close(G(3 * z), 3 * G(z), atol=1e-5, rtol=1e-5)
        G = _small(Generator, label_dim=2, pixel_norm=False)
        labels = torch.tensor([0, 1, 1, 0])
        assert not torch.allclose(G(3 * z, labels), G(z, labels), atol=0.01)


def test_pixel_norm():
    """Without it, biases being 0, doubling a layer's weight doubles the image."""
    (z,) = _inputs(_small(Generator))
    for pixel_norm, factor in ((True, 1.0), (False, 2.0)):
        G = _small(Generator, pixel_norm=pixel_norm)
        with torch.no_grad():
            before = G(z)
            G.blocks["8"]["conv"].weight.mul_(2)
            torch.testing.assert_close(G(z), factor * before, atol=1e-4, rtol=1e-4)


def test_fused_scale_is_one_function_in_the_generator_and_two_in_the_discriminator():
    with torch.no_grad():
        fused, unfused = (_run(_small(Generator, fused_scale=f)) for f in (True, False))
        torch.testing.assert_close(fused, unfused)
        fused, unfused = (_run(_small(Discriminator, fused_scale=f)) for f in (True, False))
        assert not torch.allclose(fused, unfused, atol=0.01)


# The minibatch statistics: samples share a score's fate only within a group, and groups are strided.
@pytest.mark.parametrize(
    ("group_size", "batch", "companions"),
    [
        (4, 8, {2, 4, 6}),
        (2, 8, {4}),
        (8, 8, {1, 2, 3, 4, 5, 6, 7}),
        (1, 8, set()),
        (4, 4, {1, 2, 3}),
        (4, 3, {1, 2}),
        (4, 6, {2, 4}),  # 4 does not divide 6: groups of 3
        (4, 10, {5}),  # groups of 2
    ],
)
def test_minibatch_groups(group_size, batch, companions):
    D = _small(Discriminator, mbstd_group_size=group_size)
    (images,) = _inputs(D, batch=batch)
    with torch.no_grad():
        score = D(images)[0][0]
        influential = set()
        for i in range(1, batch):
            changed = images.clone()
            changed[i] = 10 * changed[i].flip(1)
            if not torch.allclose(D(changed)[0][0], score, atol=1e-4):
                influential.add(i)
    assert influential == companions


@pytest.mark.parametrize("batch", [5, 7])
def test_batch_without_groups(batch):
    D = _small(Discriminator)
    with pytest.warns(UserWarning, match="group"):
        scores, _ = D(*_inputs(D, batch=batch))
    assert scores.shape == (batch,)
    assert scores.isfinite().all()


@NETWORKS
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_empty_batch(network, alpha):
    assert len(_run(_small(network), batch=0, alpha=alpha)) == 0


@NETWORKS
def test_channels_last(network):
    net = _small(network)
    with torch.no_grad():
        expected = _run(net, alpha=0.5)
        net = net.to(memory_format=torch.channels_last)
        inputs = [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in _inputs(net)]
        actual = net(*inputs, alpha=0.5)
    if network is Generator:
        # Plain PyTorch's fade_in makes its result contiguous; values are right in either layout.
        if _native.cpu_available:
            assert actual.is_contiguous(memory_format=torch.channels_last)
    else:
        actual = actual[0]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@NETWORKS
def test_bf16_autocast_is_near_fp32(network):
    net = _small(network)
    with torch.no_grad():
        expected = _run(net, alpha=0.5)
        with torch.autocast("cpu", torch.bfloat16):
            actual = _run(net, alpha=0.5).float()
    # bf16 keeps 8 bits (0.4 percent) per rounding; some ten roundings in a row.
    error = (actual - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 0 < error < 0.04


@NETWORKS
def test_cached_weights_change_nothing(network):
    net = _small(network)
    with torch.no_grad():
        expected = _run(net, alpha=0.5)
        with cache_folded_weights():
            assert torch.equal(_run(net, alpha=0.5), expected)
            assert torch.equal(_run(net, alpha=0.5), expected)


# Compilation and saving


@NETWORKS
@pytest.mark.parametrize("alpha", [1.0, torch.tensor(0.3)], ids=["whole", "fading"])
def test_compiles_as_one_graph(network, alpha, monkeypatch):
    monkeypatch.setattr(small, "is_eager", lambda x, impl: False)  # the graph has our ops, so small as this net is
    net = _small(network, resolution=8)
    parameters = net.active_parameters(8, fading=isinstance(alpha, torch.Tensor))

    def output_and_gradients():
        output = _run(net, resolution=8, alpha=alpha)
        return output, *torch.autograd.grad(output.square().sum(), parameters)

    expected = output_and_gradients()
    torch._dynamo.reset()
    # Traces forward and backward with fake tensors; generating code is torch's own affair.
    net.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(output_and_gradients(), expected)


@NETWORKS
def test_options_rebuild_the_network(network):
    options = {"image_channels": 1, "label_dim": 3, "fused_scale": False}
    net = _small(network, **options)
    same = network(**json.loads(json.dumps(net.options)))
    assert same.options == net.options
    same.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(_run(same, alpha=0.5), _run(net, alpha=0.5))


@NETWORKS
def test_state_dict_through_a_file(network, tmp_path):
    net, other = _small(network), network(**SMALL)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    with torch.no_grad():
        assert torch.equal(_run(other), _run(net))
    assert set(net.state_dict()) == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_without_wscale_weights_start_with_the_constant(network):
    """The official use_wscale=False: the same function at the start, of weights that are used as they are."""
    torch.manual_seed(0)
    scaled = network(8, fmap_base=64, fmap_max=16)
    torch.manual_seed(0)
    plain = network(8, fmap_base=64, fmap_max=16, use_wscale=False)
    inputs = torch.randn(4, 16) if network is Generator else torch.randn(4, 3, 8, 8)
    expected, found = (net(inputs) if network is Generator else net(inputs)[0] for net in (scaled, plain))
    # fp32: the constant is multiplied in before sums of about a hundred terms instead of after them
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weight, own = scaled.blocks["8"]["conv"].weight, plain.blocks["8"]["conv"].weight
    torch.testing.assert_close(own, weight * (2 / (own[0].numel())) ** 0.5)
    assert plain.options["use_wscale"] is False
