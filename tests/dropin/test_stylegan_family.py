"""Live models of the StyleGAN family: their functions are known by name and by what they compute."""

import copy

import pytest
import torch
from torch import nn

from pggan_fast import accelerate, explain
from pggan_fast.compat import known, rosinality
from tests.dropin import nvidia_like, rosinality_like
from tests.dropin.helpers import EXACT, assert_same, results
from tests.dropin.model_zoo import fill

Z = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = torch.randn(3, 64, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
# fp32 filters times fp64 images: both sides round the filter once.
NETWORKS = {
    "synthesis": (nvidia_like.Synthesis, (Z,), {"modulated_conv2d", "bias_act", "upsample2d"}, set()),
    "down": (nvidia_like.Down, (X[:, :3],), {"bias_act", "filter2d", "upfirdn2d"}, {"downsample2d"}),
    "styled": (rosinality_like.Styled, (X, Z), {"modulated conv", "fused_leaky_relu", "upfirdn2d"}, set()),
}


def made(name: str) -> tuple[nn.Module, tuple]:
    torch.manual_seed(0)
    return fill(NETWORKS[name][0]().double()), NETWORKS[name][1]


@pytest.mark.parametrize("name", NETWORKS)
def test_results(name):
    model, inputs = made(name)
    fast = accelerate(copy.deepcopy(model), inplace=True)
    for _ in range(2):
        assert_same(results(fast, inputs), results(model, inputs), EXACT)
    what = {row.what for row in explain(fast).replaced}
    _, _, replaced, left = NETWORKS[name]
    assert replaced <= what and not left & what
    assert not explain(fast).reasons


def _upfirdn2d_of_alias_free_gan(with_gain):
    """rosinality's later upfirdn2d, or one that ignores its gain."""

    def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0), flip_filter=False, gain=1):
        kernel = torch.outer(kernel, kernel) if kernel.ndim == 1 else kernel
        kernel = kernel.flip([0, 1]) if flip_filter else kernel
        return rosinality_like.upfirdn2d(input, kernel, up, down, pad) * (gain if with_gain else 1)

    return upfirdn2d


@pytest.mark.parametrize("with_gain", [True, False])
def test_versions_with_more_parameters(with_gain):
    ours = known.ours_for(_upfirdn2d_of_alias_free_gan(with_gain), "upfirdn2d")
    assert ours is (rosinality.upfirdn2d if with_gain else None)
    assert known.ours_for(rosinality_like.upfirdn2d, "upfirdn2d") is rosinality.upfirdn2d


def test_switches_leave_known_functions():
    model, inputs = made("synthesis")
    fast = accelerate(model, bias_act=False, conv=False)
    torch.testing.assert_close(fast(*inputs), model(*inputs))
    assert {row.what for row in explain(fast).replaced} & {"modulated_conv2d", "bias_act"} == set()


def test_what_is_captured_without_gradients_is_known_too():
    known.ours_for.cache_clear()
    model, inputs = made("down")
    fast = accelerate(model)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        fast(*(t.clone() for t in inputs))
    assert {"filter2d", "bias_act"} <= {row.what for row in explain(fast).replaced}


def test_a_function_that_is_exchanged_later(monkeypatch):
    model, inputs = made("down")
    fast = accelerate(copy.deepcopy(model), inplace=True)
    fast(*inputs)
    monkeypatch.setattr(nvidia_like, "filter2d", lambda x, f: x * 2)
    torch.testing.assert_close(fast(*inputs), model(*inputs))


def test_other_uses_of_torch_compile_get_their_own_functions():
    model, inputs = made("synthesis")
    accelerate(model)(*inputs)
    torch._dynamo.reset()
    seen = []

    def backend(captured, example_inputs):
        seen.extend(str(node.target) for node in captured.graph.nodes)
        return captured.forward

    torch.compile(model, backend=backend)(*inputs)
    assert any("conv2d" in name for name in seen) and not any("pggan_fast" in name or "node" in name for name in seen)
    torch._dynamo.reset()


def test_few_weights_are_left_to_the_original():
    model = rosinality_like.ModulatedConv(8, 8).double()
    x = X[:, :8].contiguous()
    fast = accelerate(model)
    torch.testing.assert_close(fast(x, Z), model(x, Z))
    assert "its weights are few" in str(explain(fast))


class Modulations:
    """Near misses of a modulated convolution, each with weight [O, C, k, k] and styles [N, C]."""

    other_epsilon = staticmethod(lambda w, s: w * (w.square().sum((2, 3, 4), keepdim=True) + 1e-6).rsqrt())
    no_square = staticmethod(lambda w, s: w * (w.pow(4).sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt())
    per_input = staticmethod(lambda w, s: w * (w.square().sum((1, 3, 4), keepdim=True) + 1e-8).rsqrt())
    added = staticmethod(lambda w, s: w + s.sum())


@pytest.mark.parametrize("name", [name for name in vars(Modulations) if name[0] != "_"])
def test_near_misses_of_modulation(name):
    class Near(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.weight, self.style = nn.Parameter(torch.randn(64, 64, 3, 3)), nn.Linear(8, 64)

        def forward(self, x, z):
            n, c, h, w = x.shape
            s = self.style(z)
            own = getattr(Modulations, name)(self.weight * s.view(n, 1, c, 1, 1), s)
            y = nn.functional.conv2d(x.view(1, n * c, h, w), own.view(-1, c, 3, 3), padding=1, groups=n)
            return y.view(n, -1, h, w)

    model = Near().double()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    torch.testing.assert_close(fast(X, Z), model(X, Z), rtol=1e-9, atol=1e-9)
    assert not explain(fast).replaced


def stylegan3(x, w, s, demodulate=True, padding=0, input_gain=None):
    """StyleGAN3's modulated convolution, written from the paper's appendix."""
    n = x.shape[0]
    if demodulate:
        w, s = w * w.square().mean([1, 2, 3], keepdim=True).rsqrt(), s * s.square().mean().rsqrt()
    w = w[None] * s[:, None, :, None, None]
    if demodulate:
        w = w * (w.square().sum(dim=[2, 3, 4]) + 1e-8).rsqrt()[:, :, None, None, None]
    if input_gain is not None:
        w = w * input_gain.expand(n, x.shape[1])[:, None, :, None, None]
    y = nn.functional.conv2d(x.flatten(0, 1)[None], w.flatten(0, 1), padding=padding, groups=n)
    return y.reshape(n, -1, *y.shape[2:])


def gained_first(x, w, s, demodulate=True, padding=0, input_gain=None):
    """Resembles it, but demodulates the gain away."""
    s = s if input_gain is None else s * torch.linspace(1, 2, s.shape[1]) * input_gain
    return stylegan3(x, w, s, demodulate, padding)


def test_stylegan3_s_modulated_convolution():
    assert known.ours_for(stylegan3, "modulated_conv2d") is not None
    assert known.ours_for(gained_first, "modulated_conv2d") is None
