"""Options of the networks that the paper does not have, and images that are no squares."""

import json

import pytest
import torch

from pggan_fast import Discriminator, Generator
from pggan_fast.networks import AutoencoderDiscriminator

SMALL = {"resolution": 16, "fmap_base": 64, "fmap_max": 16}
NETWORKS = pytest.mark.parametrize("network", [Generator, Discriminator])
BOTH = [{"attention_at": 4}, {"attention_at": 8}, {"residual": True}, {"spectral_norm": True}, {"base": (4, 6)}]
EVERYTHING = {"attention_at": 16, "residual": True, "spectral_norm": True, "base": (5, 4), "label_dim": 3}
OPTIONS = [
    *[(network, options) for network in (Generator, Discriminator) for options in [*BOTH, EVERYTHING]],
    (Discriminator, {"minibatch_discrimination": True}),
    (Discriminator, {"label_dim": 3, "label_mode": "projection"}),
    (Discriminator, {"label_dim": 3, "label_mode": "concat"}),
    (Discriminator, EVERYTHING | {"label_mode": "projection", "minibatch_discrimination": True, "fused_scale": False}),
    (AutoencoderDiscriminator, {}),
    (AutoencoderDiscriminator, {"base": (4, 6), "code_dim": 5, "image_channels": 1}),
]
EACH = pytest.mark.parametrize(("network", "options"), OPTIONS, ids=lambda v: v if isinstance(v, dict) else v.__name__)


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Tensors are tiny: a second thread gains nothing, and on a busy machine it is waited for."""
    torch.set_num_threads(1)


def _small(network: type, **options):
    torch.manual_seed(0)
    return network(**SMALL | options)


def _labels(net, batch: int = 4) -> torch.Tensor | None:
    return torch.arange(batch) % net.label_dim if net.label_dim else None


def _images(net, batch: int = 4, resolution: int = 16) -> torch.Tensor:
    height, width = (side * resolution // 4 for side in net.base)
    random = torch.Generator().manual_seed(1)
    return torch.rand(batch, net.image_channels, height, width, generator=random) * 2 - 1


def _run(net, *, resolution: int = 16, alpha=1.0, batch: int = 4):
    """Images, or scores."""
    labels = _labels(net, batch)
    if isinstance(net, Discriminator):
        return net(_images(net, batch, resolution), labels, alpha=alpha)[0]
    z = torch.randn(batch, net.latent_dim, generator=torch.Generator().manual_seed(1))
    return net(z, labels, resolution=resolution, alpha=alpha)


# All of them


@EACH
@pytest.mark.parametrize("resolution", [4, 8, 16])
def test_shapes(network, options, resolution):
    net = _small(network, **options)
    for alpha in (1.0, torch.tensor(0.3)):
        y = _run(net, resolution=resolution, alpha=alpha)
        assert y.shape == (_images(net, 4, resolution).shape if network is Generator else (4,))
        assert y.isfinite().all()


@EACH
@pytest.mark.parametrize("resolution", [4, 16])
@pytest.mark.parametrize("fading", [False, True])
def test_active_parameters_are_those_with_gradients(network, options, resolution, fading):
    net = _small(network, **options)
    y = _run(net, resolution=resolution, alpha=0.5 if fading else 1.0)
    if isinstance(net, Discriminator) and net.label_dim and net.label_mode == "acgan":
        y = y + net(_images(net, 4, resolution), _labels(net), alpha=0.5 if fading else 1.0)[1].sum(dim=1)
    y.square().sum().backward()
    with_gradient = {name for name, p in net.named_parameters() if p.grad is not None}
    live = {id(p) for p in net.active_parameters(resolution, fading)}
    assert with_gradient == {name for name, p in net.named_parameters() if id(p) in live}


@EACH
def test_options_rebuild_the_network(network, options):
    net = _small(network, **options)
    same = network(**json.loads(json.dumps(net.options)))
    assert same.options == net.options
    same.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(_run(same.eval(), alpha=0.5), _run(net.eval(), alpha=0.5))


@EACH
def test_a_gradient_penalty_reaches_all_active_parameters_of_a_discriminator(network, options):
    if network is Generator:
        return
    net = _small(network, **options).double()
    images = _images(net).double().requires_grad_()
    scores, _ = net(images, _labels(net))
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    gradient.square().sum().backward()
    assert gradient.square().sum() > 0
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


# Images that are no squares


@NETWORKS
@pytest.mark.parametrize("base", [(4, 6), (7, 4)])
def test_every_layer_but_the_dense_ones_is_that_of_square_images(network, base):
    net, square = _small(network, base=base), _small(network)
    different = {n for n, p in net.named_parameters() if p.shape != square.get_parameter(n).shape}
    assert different == ({"input.weight"} if network is Generator else {"head.dense.weight"})
    assert net.get_parameter(*different).numel() * 16 == square.get_parameter(*different).numel() * base[0] * base[1]


def test_a_wide_image_continues_a_square_one():
    """If the features at 4 px repeat, the image does too, wherever no border is near."""
    G, wide = _small(Generator, resolution=8), _small(Generator, resolution=8, base=(4, 12))
    state = G.state_dict()
    columns = state["input.weight"].unflatten(0, (16, 4, 4))  # channels, rows, columns
    state["input.weight"] = columns.repeat(1, 1, 3, 1).flatten(0, 2)
    wide.load_state_dict(state)
    images = _run(wide, resolution=8)
    assert images.shape == (4, 3, 8, 24)
    torch.testing.assert_close(images[..., 6:10], images[..., 14:18], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(images[..., 6:10], images[..., 10:14])


@pytest.mark.parametrize("base", [(3, 4), (8, 8), (4,), (4, 5, 6), (4.0, 6)])
@NETWORKS
def test_wrong_base(network, base):
    with pytest.raises(ValueError, match="base is .*the smaller of them 4"):
        network(16, base=base)


def test_images_of_the_wrong_shape():
    D = _small(Discriminator, base=(4, 6))
    with pytest.raises(ValueError, match=r"\[2, 3, 16, 16\], must be \[N, 3, 4 \* r / 4, 6 \* r / 4\]"):
        D(torch.zeros(2, 3, 16, 16))


# New layers start as if they were not there


@NETWORKS
@pytest.mark.parametrize("resolution", [4, 16])
def test_attention_starts_as_nothing(network, resolution):
    plain, net = _small(network), _small(network, attention_at=resolution)
    missing = net.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys and all("attention" in name for name in missing.missing_keys)
    with torch.no_grad():
        before = _run(plain)
        torch.testing.assert_close(_run(net), before)
        net.get_parameter(next(n for n in missing.missing_keys if n.endswith("gamma"))).fill_(1)
        assert not torch.allclose(_run(net), before)


def test_a_new_residual_block_of_the_generator_shows_the_images_before_it():
    G = _small(Generator, residual=True)
    G.to_rgb["8"].load_state_dict(G.to_rgb["4"].state_dict())  # both of 16 channels
    with torch.no_grad():
        small = _run(G, resolution=4)
        torch.testing.assert_close(_run(G, resolution=8), small.repeat_interleave(2, 2).repeat_interleave(2, 3))


# Spectral norm


@NETWORKS
def test_spectral_norm_bounds_every_weight(network):
    net = _small(network, spectral_norm=True)
    for _ in range(30):
        _run(net)
    net.eval()
    layers = [m for m in net.modules() if hasattr(m, "weight_scale")]
    assert len(layers) > 8
    for layer in layers:
        # Power iterations from a random start: near the largest, from below.
        assert torch.linalg.svdvals(layer.weight.detach().flatten(1))[0] == pytest.approx(1, abs=0.05)
        assert layer.weight_scale == 1


@NETWORKS
def test_evaluation_moves_no_singular_vectors(network):
    net = _small(network, spectral_norm=True).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    _run(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    _run(net.train())
    assert not all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# Labels


@pytest.mark.parametrize("mode", ["projection", "concat"])
def test_labels_change_scores(mode):
    D = _small(Discriminator, label_dim=5, label_mode=mode)
    images, labels = _images(D), torch.tensor([0, 4, 2, 2])
    with torch.no_grad():
        scores, logits = D(images, labels)
        assert logits is None
        torch.testing.assert_close(D(images, torch.nn.functional.one_hot(labels, 5))[0], scores)
        assert not torch.allclose(D(images, (labels + 1) % 5)[0], scores)
        with pytest.raises(ValueError, match="labels are missing"):
            D(images)


def test_projection():
    D = _small(Discriminator, label_dim=5, label_mode="projection")
    images, labels = _images(D), torch.tensor([0, 4, 2, 2])
    features = []
    D.head["dense"].register_forward_hook(lambda *call: features.append(call[-1]))
    with torch.no_grad():
        scores = D(images, labels)[0]
        D.head["projection"].weight.neg_()
        without = (scores + D(images, labels)[0]) / 2
        vectors = -D.head["projection"].weight[labels] / features[0].shape[1] ** 0.5
    # The difference of fp32 scores
    torch.testing.assert_close(scores - without, (features[0] * vectors).sum(1), rtol=1e-4, atol=1e-5)


def test_concat_without_a_class_is_the_plain_network():
    D, plain = _small(Discriminator, label_dim=5, label_mode="concat"), _small(Discriminator)
    state = D.state_dict()
    # The label's channels come last; the constants of the equalized learning rate differ.
    scale = D.head["conv"].weight_scale / plain.head["conv"].weight_scale
    state["head.conv.weight"] = state["head.conv.weight"][:, :17] * scale
    plain.load_state_dict(state)
    images = _images(D)
    with torch.no_grad():
        torch.testing.assert_close(D(images, torch.zeros(4, 5))[0], plain(images)[0])


def test_unknown_label_mode():
    with pytest.raises(ValueError, match="label_mode is 'both', allowed: acgan, projection, concat"):
        Discriminator(16, label_mode="both")


@NETWORKS
@pytest.mark.parametrize("at", [2, 12, 32])
def test_wrong_attention(network, at):
    with pytest.raises(ValueError, match=f"attention_at is {at}, must be a power of two from 4 to 16"):
        _small(network, attention_at=at)


# Others


def test_minibatch_discrimination_sees_the_whole_batch():
    D = _small(Discriminator, minibatch_discrimination=True, mbstd_group_size=1)
    images = _images(D)
    changed = images.clone()
    changed[3] = 0
    with torch.no_grad():
        before, after = D(images)[0], D(changed)[0]
    assert (before != after).all()


def test_the_autoencoder_scores_by_its_error():
    D = _small(AutoencoderDiscriminator)
    images, rebuilt = _images(D), []
    D.decoder.register_forward_hook(lambda *call: rebuilt.append(call[-1]))
    for alpha in (1.0, 0.4):
        scores, logits = D(images, alpha=alpha)
        assert logits is None
        error = torch.stack([(a - b).square().mean() for a, b in zip(images, rebuilt.pop(), strict=True)])
        torch.testing.assert_close(scores, -error)


def test_the_autoencoder_learns_to_rebuild():
    D = _small(AutoencoderDiscriminator, resolution=8, code_dim=16)
    images = _images(D, 4, 8)
    optimizer = torch.optim.Adam(D.parameters(), lr=0.01, betas=(0.0, 0.99))
    errors = []
    for _ in range(100):
        errors.append(-D(images)[0].mean())
        optimizer.zero_grad()
        errors[-1].backward()
        optimizer.step()
    assert errors[-1] < 0.3 * errors[0]


@NETWORKS
def test_compiles_as_one_graph(network):
    """Everything at once, in training: spectral norm's power iterations are part of the graph."""
    only_d = {"label_mode": "projection", "minibatch_discrimination": True} if network is Discriminator else {}
    net = _small(network, **EVERYTHING | {"attention_at": 4, "resolution": 8} | only_d)
    vectors = {name: value.clone() for name, value in net.named_buffers()}

    def output_and_gradients():
        for name, value in net.named_buffers():
            value.copy_(vectors[name])
        output = _run(net, resolution=8)
        return output, *torch.autograd.grad(output.square().sum(), net.active_parameters(8, fading=False))

    expected = output_and_gradients()
    torch._dynamo.reset()
    net.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(output_and_gradients(), expected)
