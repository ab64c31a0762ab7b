"""The blend of D's paths: torch.lerp forward, and one launch for the gradient, to every order."""

from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pggan_fast.networks import Discriminator
from pggan_fast.ops import blend, sign_bits


class Seen(TorchDispatchMode):
    """Names of the ops that run inside."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.append(op._schema.name)
        return op(*args, **(kwargs or {}))


@pytest.fixture
def as_on_a_gpu():
    """CPU tensors take the way of a GPU with the CUDA kernels, and its op in plain PyTorch."""
    with mock.patch.object(sign_bits, "has_gpu_kernels", lambda t: True):
        yield


def plain(old, new, alpha):
    return torch.lerp(old, new, alpha.to(old.dtype) if isinstance(alpha, torch.Tensor) else alpha)


ALPHAS = pytest.mark.parametrize("alpha", [0.3, torch.tensor(0.7)], ids=["number", "tensor"])


@ALPHAS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradients_of_lerp(as_on_a_gpu, alpha, dtype):
    torch.manual_seed(0)
    paths = [torch.randn(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last) for _ in range(4)]
    results = []
    for function in (blend.blend_paths, plain):
        old, new, dy, g = (t.clone().requires_grad_() for t in paths)
        y = function(old, new, alpha)
        first = torch.autograd.grad(y, (old, new), dy, create_graph=True)
        (second,) = torch.autograd.grad(first, dy, (g, g * 2))
        results.append((y, *first, second))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
        assert found.stride() == expected.stride()


def test_gradgradcheck(as_on_a_gpu):
    paths = [torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    call = lambda old, new: blend.blend_paths(old, new, 0.3)  # noqa: E731
    assert torch.autograd.gradcheck(call, paths) and torch.autograd.gradgradcheck(call, paths)


def test_alpha_gets_its_gradient(as_on_a_gpu):
    old, new, alpha = torch.randn(1, 2, 2, 3), torch.randn(1, 2, 2, 3), torch.tensor(0.3, requires_grad=True)
    (found,) = torch.autograd.grad(blend.blend_paths(old, new, alpha).sum(), alpha)
    torch.testing.assert_close(found, (new - old).sum())


@ALPHAS
def test_one_launch_in_the_discriminator(as_on_a_gpu, alpha):
    d, images = Discriminator(8, fmap_base=64, fmap_max=8), torch.randn(4, 3, 8, 8, requires_grad=True)
    scores, _ = d(images, alpha=alpha)
    with Seen() as seen:
        torch.autograd.grad(scores.sum(), images)
    assert seen.names.count("pggan_fast::blend_backward") == 1
