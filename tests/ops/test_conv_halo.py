"""conv_halo's formulas: its plain form against torch's convolutions, its gradients in fp64, and where it is taken.

The kernels themselves run in tests/cuda_on_cpu/test_conv_halo.py.
"""

from types import SimpleNamespace

import pytest
import torch

from pggan_fast import ops, reference
from pggan_fast.ops import conv_halo_gradients
from pggan_fast.ops.conv_halo_gradients import HaloConv2d, takes
from pggan_fast.ops.sign_bits import pack_signs

GEOMETRIES = {"plain": (1, 1, 1), "up": (1, 2, 1), "down": (1, 1, 2)}
OPTIONS = {
    "lrelu": (0.3, "lrelu", 0.2, 1.3, False, 1e-8),
    "linear": (0.3, "linear", 0.2, 1.3, False, 1e-8),
    "norm": (0.3, "lrelu", 0.2, 1.3, True, 1e-8),
}


def channels_last(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).contiguous(memory_format=torch.channels_last)


def arguments(geometry: str, size: tuple[int, int] = (5, 6)) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    x, weight = channels_last(1, 2, *size), torch.randn(3, 2, 3, 3, dtype=torch.float64)
    return tuple(t.requires_grad_() for t in (x, weight, torch.randn(3, dtype=torch.float64)))


def run(x, weight, bias, geometry, options):
    # A view, since what is a leaf cannot tell whether its gradient will be used.
    y, r = HaloConv2d.apply(x, weight.view_as(weight), bias.view_as(bias), geometry, options, torch.is_grad_enabled())
    return (y, r) if options[4] else y


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_forward_is_the_reference(geometry, options):
    x, weight, bias = arguments(geometry)
    padding, up, down = GEOMETRIES[geometry]
    scale, act, slope, gain, norm, eps = OPTIONS[options]
    found = run(x, weight, bias, GEOMETRIES[geometry], OPTIONS[options])
    kwargs = dict(weight_scale=scale, padding=padding, up=up, down=down, act=act, slope=slope, gain=gain)
    expected = reference.equalized_conv2d(x, weight, bias, **kwargs, pixel_norm=norm, eps=eps)
    torch.testing.assert_close(found[0] if norm else found, expected)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_gradients(geometry, options):
    """First and second order of every input, in fp64 against differences of values."""
    inputs = arguments(geometry, (3, 4))
    call = lambda *inputs: run(*inputs, GEOMETRIES[geometry], OPTIONS[options])  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("geometry", ["plain", "down"])
def test_a_gradient_penalty_takes_the_kernels_alone(geometry, monkeypatch):
    """The images' gradient and its own gradients, which a penalty asks for, without the general formula."""

    def refuse(*args):
        raise AssertionError("the general formula was asked")

    monkeypatch.setattr(conv_halo_gradients, "differentiable_gradients", refuse)
    x, weight, bias = arguments(geometry)
    found, expected = [], []
    for results, function in (
        (found, lambda: run(x, weight, bias, GEOMETRIES[geometry], OPTIONS["lrelu"])),
        (expected, lambda: composite(x, weight, bias, geometry, OPTIONS["lrelu"])),
    ):
        (dx,) = torch.autograd.grad(function().square().sum(), x, create_graph=True)
        results += [dx]
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(run(x, weight, bias, GEOMETRIES[geometry], OPTIONS["lrelu"])).requires_grad_()
    seconds = []
    for function in (
        lambda: run(x, weight, bias, GEOMETRIES[geometry], OPTIONS["lrelu"]),
        lambda: composite(x, weight, bias, geometry, OPTIONS["lrelu"]),
    ):
        (dx,) = torch.autograd.grad(function(), x, upstream, create_graph=True)
        seconds.append(torch.autograd.grad(dx.square().sum(), (upstream, weight)))
    torch.testing.assert_close(*seconds)


def composite(x, weight, bias, geometry, options):
    padding, up, down = GEOMETRIES[geometry]
    scale, act, slope, gain, _, _ = options
    kwargs = dict(weight_scale=scale, padding=padding, up=up, down=down, act=act, slope=slope, gain=gain)
    return reference.equalized_conv2d(x, weight, bias, **kwargs)


def test_packed_signs_are_bits_by_channel():
    z = torch.tensor([1.0, -1.0, 0.0, float("nan"), 2.0] + [0.0] * 26 + [3.0]).view(1, 32, 1, 1)
    assert pack_signs(z).item() == (1 | 1 << 4 | 1 << 31) - (1 << 32)


@pytest.fixture
def kernels_here(monkeypatch):
    monkeypatch.setattr(conv_halo_gradients, "_has_kernels", lambda x, more_memory: True)
    monkeypatch.setattr(conv_halo_gradients, "SMALLEST", 8)


def half(c_in: int = 16, size: int = 8) -> torch.Tensor:
    return channels_last(1, c_in, size, size, dtype=torch.bfloat16)


def test_where_it_is_taken(kernels_here):
    options, weight = OPTIONS["lrelu"], torch.randn(16, 16, 3, 3)
    assert takes(half(), weight, (1, 1, 1), options, "native")
    assert takes(half(), torch.randn(32, 16, 3, 3), (1, 1, 2), options, "native")
    assert takes(half(32, 4), torch.randn(16, 32, 3, 3), (1, 2, 1), options, "native")
    for x, w, geometry, other, impl in (
        (half(), weight, (1, 1, 1), options, "triton"),
        (half().double(), weight, (1, 1, 1), options, "native"),
        (half().contiguous(), weight, (1, 1, 1), options, "native"),
        (half(size=7), weight, (1, 1, 1), options, "native"),
        (half(), weight, (0, 1, 1), options, "native"),
        (half(), torch.randn(16, 16, 1, 1), (0, 1, 1), options, "native"),
        (half(), torch.randn(48, 16, 3, 3), (1, 1, 1), options, "native"),
        (half(32), torch.randn(32, 32, 3, 3), (1, 1, 2), options, "native"),
        (half(), weight, (1, 1, 1), (0.3, "relu", 0.2, 1.3, False, 1e-8), "native"),
        (half(), weight, (1, 1, 1), (0.3, "lrelu", 0.0, 1.3, False, 1e-8), "native"),
        (half(), weight, (1, 1, 1), (-0.3, "lrelu", 0.2, 1.3, True, 1e-8), "native"),
    ):
        assert not takes(x, w, geometry, other, impl)


@pytest.mark.parametrize("c_in", [16, 32])
def test_fp32_is_taken_where_cudnn_may_multiply_it_as_tf32(kernels_here, monkeypatch, c_in):
    """By torch's switch, read at every call: without it results must be those of fp32."""
    x, weight = half(c_in).float(), torch.randn(16, c_in, 3, 3)
    for allowed in (True, False, True):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        assert takes(x, weight, (1, 1, 1), OPTIONS["lrelu"], "native") == allowed
        assert takes(half(c_in), weight, (1, 1, 1), OPTIONS["lrelu"], "native")


def test_fp32_is_taken_where_two_blocks_fit(monkeypatch):
    """Filters of 32 to 32 channels, and of resizing, leave room for one block on a consumer GPU's multiprocessor."""
    monkeypatch.setattr(conv_halo_gradients, "SMALLEST", 8)
    monkeypatch.setattr(conv_halo_gradients, "has_gpu_kernels", lambda x: True)
    for capability, kilobytes in (((7, 5), 64), ((8, 9), 100), ((8, 0), 164)):
        properties = SimpleNamespace(major=capability[0], shared_memory_per_multiprocessor=kilobytes << 10)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=properties: found)
        for c_in, c_out, geometry in (
            (16, 32, (1, 1, 2)),
            (32, 16, (1, 2, 1)),
            (32, 32, (1, 1, 1)),
            (16, 16, (1, 1, 1)),
        ):
            x, weight = half(c_in), torch.randn(c_out, c_in, 3, 3)
            needed = 64 if c_in == c_out == 16 else 160
            assert takes(x, weight, geometry, OPTIONS["lrelu"], "native") == (capability >= (8, 0))
            fits = capability >= (8, 0) and kilobytes >= needed
            assert takes(x.float(), weight, geometry, OPTIONS["lrelu"], "native") == fits


def test_a_gpu_is_needed():
    assert not takes(half(size=256), torch.randn(16, 16, 3, 3), (1, 1, 1), OPTIONS["lrelu"], "native")


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("geometry", "c_in", "c_out"), [("plain", 16, 16), ("up", 32, 16), ("down", 16, 32)])
def test_the_public_function_takes_it(kernels_here, monkeypatch, geometry, c_in, c_out, norm):
    """With its gradients, in bf16: near to the reference in fp32, and by conv_halo."""
    calls = []
    taken = conv_halo_gradients.forward
    monkeypatch.setattr(conv_halo_gradients, "forward", lambda *a: calls.append(a) or taken(*a))
    torch.manual_seed(2)
    x = channels_last(2, c_in, 8, 8, dtype=torch.bfloat16).requires_grad_()
    weight, bias = torch.randn(c_out, c_in, 3, 3, requires_grad=True), torch.randn(c_out, requires_grad=True)
    kwargs = dict(zip(("padding", "up", "down"), GEOMETRIES[geometry], strict=True), act="lrelu", pixel_norm=norm)
    y = ops.equalized_conv2d(x, weight, bias, **kwargs, impl="native" if native() else "auto")
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, weight, bias), upstream)
    assert calls
    wide = x.detach().float().requires_grad_()
    expected_y = reference.equalized_conv2d(wide, weight.bfloat16().float(), bias, **kwargs)
    expected = torch.autograd.grad(
        reference.equalized_conv2d(wide, weight, bias, **kwargs), (wide, weight, bias), upstream.float()
    )
    for ours, theirs in zip((y, *found), (expected_y, *expected), strict=True):
        # A sum's terms are rounded to bf16 each, and near zero an activation's sign may differ.
        error = (ours.float() - theirs).square().mean().sqrt() / theirs.square().mean().sqrt()
        assert error < 0.02


def native() -> bool:
    from pggan_fast.ops.dispatch import unavailable_reason

    return unavailable_reason("native", "cpu") is None
