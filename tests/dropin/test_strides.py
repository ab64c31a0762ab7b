"""Gradients that `backward` leaves in `.grad` lie in memory as the original's."""

import copy

import pytest
import torch
from torch import Tensor

from pggan_fast import accelerate
from tests.dropin.helpers import always_fuse
from tests.dropin.test_kept import LAYERS, SIZE, C, Layer, N

NAMES = ["equalized", "up", "down", "bias, gain", "norm", "batch norm", "deviation", "modulated", "blur"]


def strides_of_grads(layer: Layer, x: Tensor, penalty: bool) -> dict[str, tuple | None]:
    """By name, after the backward of a loss or of a penalty on the input's gradient."""
    leaves = {"x": x.clone().requires_grad_(), "styles": torch.ones(N, C, dtype=x.dtype).requires_grad_()}
    leaves |= dict(layer.named_parameters())
    y = layer(leaves["x"], leaves["styles"])
    if penalty:
        (gradient,) = torch.autograd.grad(y.square().sum(), leaves["x"], create_graph=True)
        gradient.square().sum().backward()
    else:
        y.backward(torch.ones(y.shape, dtype=y.dtype))
    return {name: None if leaf.grad is None else leaf.grad.stride() for name, leaf in leaves.items()}


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("name", NAMES)
def test_grads_lie_as_the_originals(name, order, monkeypatch):
    """They do with channels_last tensors too, also where the gradient of the output is contiguous."""
    always_fuse(monkeypatch)
    x = torch.randn(N, C, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for layout in (torch.contiguous_format, torch.channels_last):
        layer = Layer(LAYERS[name][0], False).to(memory_format=layout)
        networks = copy.deepcopy(layer), accelerate(copy.deepcopy(layer))
        images = x.to(memory_format=layout)
        expected, actual = (strides_of_grads(net, images, order == "second") for net in networks)
        assert actual == expected
