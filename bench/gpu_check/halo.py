"""The halo-tile convolutions: right, by the plain formula in fp64, and then timed beside cuDNN."""

from __future__ import annotations

from unittest.mock import patch

import torch
from torch import Tensor

from bench.gpu_check.equality import relative
from bench.gpu_check.findings import DEVICE, REHEARSAL, Part, milliseconds, set_precision
from pggan_fast import ops, reference
from pggan_fast.ops import conv_halo_gradients

# name: channels in and out, up, down, pixel norm; the last blocks of G and D at 512 and 1024 px
LAYERS = {
    "D 16>16": (16, 16, 1, 1, False),
    "D 16>32 down": (16, 32, 1, 2, False),
    "D 32>32": (32, 32, 1, 1, False),
    "G 32>16 up": (32, 16, 2, 1, True),
    "G 16>16": (16, 16, 1, 1, True),
}
# No multiple of a tile, then what is timed; of the larger image.
CHECKED, TIMED = ((10, 12), (16, 16)) if REHEARSAL else ((270, 300), (1024, 1024))


def halo_tiles(part: Part) -> None:
    """Compare every layer's result and gradients with the plain formula's in fp64."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        set_precision(_precision(dtype))
        for name in LAYERS:
            part.look(f"{name} {dtype}", lambda name=name, dtype=dtype: _errors(name, dtype))


def halo_times(part: Part) -> None:
    """Time every layer with and without tiles."""
    for dtype in (torch.bfloat16, torch.float32):
        set_precision(_precision(dtype))
        for name in LAYERS:
            part.look(f"{name} {dtype}", lambda name=name, dtype=dtype: _times(name, dtype))


def _precision(dtype: torch.dtype) -> str:
    """Return the kind in which tiles take this dtype: fp32 as tf32."""
    return "tf32" if dtype == torch.float32 else "bf16"


def _inputs(name: str, dtype: torch.dtype, size: tuple[int, int], n: int) -> tuple[tuple[Tensor, ...], dict]:
    c_in, c_out, up, down, norm = LAYERS[name]
    torch.manual_seed(0)
    x = torch.randn(n, c_in, *(length // up for length in size), device=DEVICE, dtype=dtype)
    weight, bias = torch.randn(c_out, c_in, 3, 3, device=DEVICE), torch.randn(c_out, device=DEVICE)
    inputs = tuple(t.requires_grad_() for t in (x.contiguous(memory_format=torch.channels_last), weight, bias))
    return inputs, dict(up=up, down=down, act="lrelu", gain=1.3, pixel_norm=norm)


def _taken(inputs: tuple[Tensor, ...], kwargs: dict) -> Tensor:
    """Return equalized_conv2d by halo tiles, or fail; on a CPU, which has none, by their formula in plain PyTorch."""
    x, weight, bias = inputs
    options = (reference.default_weight_scale(weight), "lrelu", 0.2, 1.3, kwargs["pixel_norm"], 1e-8)
    geometry = (1, kwargs["up"], kwargs["down"])
    if DEVICE == "cuda":
        assert conv_halo_gradients.takes(x, weight, geometry, options, "native"), "no halo tiles are taken here"
        return ops.equalized_conv2d(x, weight, bias, **kwargs, impl="native")
    views = weight.view(weight.shape), bias.view(-1)
    return conv_halo_gradients.HaloConv2d.apply(x, *views, geometry, options, True)[0]


def _errors(name: str, dtype: torch.dtype) -> dict[str, str]:
    inputs, kwargs = _inputs(name, dtype, CHECKED, 2)
    y = _taken(inputs, kwargs)
    upstream = torch.randn_like(y)
    found = (y, *torch.autograd.grad(y, inputs, upstream))
    wide = tuple(t.detach().double().requires_grad_() for t in inputs)
    plain = reference.equalized_conv2d(*wide, **kwargs)
    expected = (plain, *torch.autograd.grad(plain, wide, upstream.double()))
    names = ("y", "dx", "dw", "db")
    errors = {what: relative(a.double(), b) for what, a, b in zip(names, found, expected, strict=True)}
    # Values are rounded to 8 bits of mantissa a few times each, and weights once. It takes three in a thousand
    # across zero, where the gradient is five times another: sqrt(0.003) of its norm.
    # In fp32 operands are rounded to 10 bits, and a tenth as many cross.
    y, gradient = (0.002, 0.05) if dtype == torch.float32 else (0.02, 0.1)
    allowed = {"y": y, "dx": gradient, "dw": gradient, "db": gradient}
    assert all(float(errors[what]) < allowed[what] for what in names), f"too far from the reference: {errors}"
    return errors


def _times(name: str, dtype: torch.dtype) -> dict[str, float]:
    inputs, kwargs = _inputs(name, dtype, TIMED, 1 if REHEARSAL else 4)
    upstream = torch.randn_like(_taken(inputs, kwargs))

    def both(call) -> tuple[float, float]:
        with torch.no_grad():
            forward = milliseconds(call, 0.1)
        return forward, milliseconds(lambda: torch.autograd.grad(call(), inputs, upstream), 0.1)

    found = dict(zip(("halo_ms", "halo_with_gradients_ms"), both(lambda: _taken(inputs, kwargs)), strict=True))
    with patch.object(conv_halo_gradients, "SMALLEST", 1 << 30):
        other = both(lambda: ops.equalized_conv2d(*inputs, **kwargs))
    return found | dict(zip(("otherwise_ms", "otherwise_with_gradients_ms"), other, strict=True))
