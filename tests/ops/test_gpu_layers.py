"""Layers that take the CUDA kernels for few channels, images and sign bits: every order of derivatives, and in a graph.

`make gpu-check` runs these on a GPU, some under compute-sanitizer; `make test-kernels` the same code on the kernels on
the CPU, with smaller images. All are compared with the reference in fp64.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from pggan_fast import ops, reference
from pggan_fast.ops import conv, conv_halo_gradients, conv_rgb_gradients
from tests.ops.gpu import DEVICE, ON_GPU, captured, launched, native_kernels, warmed_up

# Rows and columns of the larger image, no multiple of a tile: from 256 on halo tiles are taken on a GPU.
SIZE = (270, 300) if ON_GPU else (34, 36)
HALO, HALO_GRADIENT = "conv_halo", "conv_halo_weight_gradient"
IMAGES = {"conv_rgb_expand", "conv_rgb_reduce", "conv_rgb_weight_gradient"}
SIGNS = {"bias_act_with_sign_bits_", "bias_act_backward_by_sign_bits"}


class Layer(NamedTuple):
    c_in: int
    c_out: int
    k: int
    launches: set[str]
    up: int = 1
    down: int = 1
    act: str = "lrelu"
    pixel_norm: bool = False

    @property
    def options(self) -> dict:
        return dict(
            **dict(weight_scale=0.1, up=self.up, down=self.down, act=self.act, slope=0.2, gain=1.3),
            pixel_norm=self.pixel_norm,
        )

    def takes_its_kernels(self, x: Tensor, weight: Tensor) -> bool:
        geometry = self.k // 2, self.up, self.down
        arguments = x, weight, geometry, (0.1, self.act, 0.2, 1.3, self.pixel_norm, 1e-8), "native"
        if HALO in self.launches:
            return conv_halo_gradients.takes(*arguments)
        if self.launches == SIGNS:
            return conv._writes_sign_bits(*arguments)
        return (conv_rgb_gradients.takes if self.c_in < 16 else conv_rgb_gradients.takes_to_image)(*arguments)


LAYERS = {
    "halo": Layer(16, 16, 3, {HALO, HALO_GRADIENT}),
    "halo_32": Layer(32, 32, 3, {HALO, HALO_GRADIENT}),
    "halo_down": Layer(16, 32, 3, {HALO, HALO_GRADIENT}, down=2),
    "halo_up_norm": Layer(32, 16, 3, {HALO, HALO_GRADIENT}, up=2, pixel_norm=True),
    "halo_norm": Layer(16, 16, 3, {HALO, HALO_GRADIENT}, pixel_norm=True),
    "from_rgb": Layer(3, 16, 1, IMAGES),
    "from_gray": Layer(1, 64, 1, IMAGES),
    "to_rgb": Layer(16, 3, 1, IMAGES, act="linear"),
    "to_gray": Layer(64, 1, 1, IMAGES, act="linear"),
    "sign_bits": Layer(64, 64, 3, SIGNS),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Norms of errors over those of results. Weights are multiples of 1/4 that stay exact when they are folded, so that what
# is rounded are tensors on their way between launches, by half of a last bit each: two. With sign bits after cuDNN,
# which rounds before the activation, and in the second order with pixel norm, a few of ten thousand values fall on the
# other side of zero besides, where the gradient is five times another: 0.01 to 0.03 of its norm, seen on the harness.
ALLOWED = {"bf16": 2**-8, "fp16": 2**-11}
ACROSS_ZERO = {"bf16": 0.05, "fp16": 0.02}


@pytest.fixture(params=["gpu_native" if ON_GPU else "cuda_on_cpu"])
def kernels(request) -> Iterator[None]:
    with native_kernels(smallest=32):
        yield


def drawn(layer: Layer, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """Return what a layer reads, the gradient of its output, and what its input's gradient is multiplied with."""
    random = torch.Generator().manual_seed(seed)

    def images(c: int, up: int, down: int) -> Tensor:
        size = [length // up // down for length in SIZE]
        t = torch.randn(2, c, *size, generator=random).to(dtype)
        return t.contiguous(memory_format=torch.channels_last).to(DEVICE)

    shape = layer.c_out, layer.c_in, layer.k, layer.k
    return {
        "x": images(layer.c_in, layer.up, 1),
        "weight": (torch.randint(-8, 9, shape, generator=random) / 4).to(DEVICE),
        "bias": torch.randn(layer.c_out, generator=random).to(DEVICE),
        "dy": images(layer.c_out, 1, layer.down),
        "v": images(layer.c_in, layer.up, 1),
    }


def orders(function, layer: Layer, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return y, its gradients, and those of the input's gradient times v, as a gradient penalty takes them."""
    x, weight, bias, dy = (given[name].detach().requires_grad_() for name in ("x", "weight", "bias", "dy"))
    y = function(x, weight, bias, **layer.options)
    first = torch.autograd.grad(y, (x, weight, bias), dy, retain_graph=True)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    second = torch.autograd.grad(dx, (dy, weight), given["v"])
    return dict(zip(("y", "dx", "dw", "db", "d_dy", "d_dw"), (y.detach(), *first, *second), strict=True))


def ours(layer: Layer, given: dict[str, Tensor]) -> dict[str, Tensor]:
    return orders(lambda *tensors, **options: ops.equalized_conv2d(*tensors, **options, impl="native"), layer, given)


def assert_near(found: dict[str, Tensor], layer: Layer, given: dict[str, Tensor], kind: str) -> None:
    wide = {name: t.double() for name, t in given.items()}
    for name, expected in orders(reference.equalized_conv2d, layer, wide).items():
        error = ((found[name].double() - expected).norm() / expected.norm()).item()
        crosses = name != "y" and layer.launches == SIGNS or name.startswith("d_") and layer.pixel_norm
        allowed = ACROSS_ZERO[kind] if crosses else ALLOWED[kind]
        assert found[name].shape == expected.shape and error <= allowed, f"{name}: {error:.1e}"


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_every_order_of_derivatives(kernels, name, kind):
    layer = LAYERS[name]
    given = drawn(layer, DTYPES[kind], 1)
    assert layer.takes_its_kernels(given["x"], given["weight"])
    with launched() as names:
        found = ours(layer, given)
    assert ON_GPU or layer.launches <= names
    assert_near(found, layer, given, kind)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_every_order_of_derivatives_in_a_graph(kernels, name, kind):
    """A graph that is captured on zeros computes with what its inputs hold when it is replayed, each time."""
    layer = LAYERS[name]
    first, then = drawn(layer, DTYPES[kind], 1), drawn(layer, DTYPES[kind], 2)
    inputs = {key: torch.zeros_like(t) for key, t in first.items()}
    warmed_up(lambda: ours(layer, inputs))
    results, replay = captured(lambda: ours(layer, inputs))
    for given in (first, then):
        for key, t in given.items():
            inputs[key].copy_(t)
        replay()
        assert_near(results, layer, given, kind)
