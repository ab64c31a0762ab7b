"""Activation checkpointing: same values and gradients, of second order too, from what enters a block alone."""

import weakref

import pytest
import torch

from pggan_fast import Discriminator, Generator
from pggan_fast.layers import EqualizedConv2d
from pggan_fast.networks.recompute import recomputed

SMALL = dict(fmap_base=64, fmap_max=8)


def block():
    torch.manual_seed(0)
    layers = [EqualizedConv2d(3, 4, 3, act="lrelu", pixel_norm=True), EqualizedConv2d(4, 2, 3, down=2, act="lrelu")]
    return torch.nn.Sequential(*layers).double()


def test_gradients_of_both_orders():
    layers = block()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    parameters = list(layers.parameters())

    def function(x, *_):
        return recomputed(layers, layers, x)

    assert torch.autograd.gradcheck(function, (x, *parameters))
    assert torch.autograd.gradgradcheck(function, (x, *parameters))


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("alpha", [1.0, torch.tensor(0.3)], ids=["whole", "fading"])
def test_networks_give_the_same_bits(precision, alpha):
    """A penalty through D, and G's loss through both, with and without."""
    torch.manual_seed(0)
    G, D = Generator(16, **SMALL), Discriminator(16, **SMALL)
    z = torch.randn(8, G.latent_dim)

    def gradients(checkpointing):
        G.activation_checkpointing = D.activation_checkpointing = checkpointing
        with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
            images = G(z, alpha=alpha)
            scores, _ = D(images, alpha=alpha)
        (inner,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
        loss = scores.mean() + (inner.float().square().sum((1, 2, 3)).sqrt() - 1).square().mean()
        parameters = [*G.active_parameters(16, alpha != 1), *D.active_parameters(16, alpha != 1)]
        return [loss, *torch.autograd.grad(loss, parameters)]

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        # Gradients that reach a tensor on several ways are added in another order.
        scale = expected.abs().max() * (2e-2 if precision else 1e-5)
        assert (found - expected).abs().max() <= scale


class Held:
    """A saved tensor, for as long as a graph holds it."""

    def __init__(self, tensor):
        self.tensor = tensor


def test_only_what_enters_a_block_is_kept():
    layers = block()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    references = []

    def pack(tensor):
        held = Held(tensor)
        references.append(weakref.ref(held))
        return held

    def kept():
        alive = [reference() for reference in references]
        return {held.tensor.untyped_storage().data_ptr() for held in alive if held is not None}

    known = {tensor.untyped_storage().data_ptr() for tensor in (x, *layers.parameters())}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        y = recomputed(layers, layers, x)
        assert kept() == known
        dy = torch.randn_like(y, requires_grad=True)
        (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    assert kept() == known | {dy.untyped_storage().data_ptr()}
    assert dx.requires_grad


def test_nothing_is_recomputed_without_gradients():
    layers = block()
    with torch.no_grad():
        assert not recomputed(layers, layers, torch.randn(2, 3, 4, 4, dtype=torch.float64)).requires_grad
