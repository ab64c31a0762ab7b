"""The kernels that are passes over a tensor: right, by the plain formula in fp64, then timed beside a copy.

Sign bits after cuDNN, layers from images, the filters of the StyleGAN family, and the halo tiles' launch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bench.gpu_check.equality import relative
from bench.gpu_check.findings import DEVICE, REHEARSAL, Part, milliseconds, set_precision
from pggan_fast import _native, ops, reference
from pggan_fast.ops import conv, conv_rgb_gradients, sign_bits

# scale, activation, slope, gain, pixel norm, eps
OPTIONS = (0.1, "lrelu", 0.2, 1.3, False, 1e-8)
SLOPES = (0.1, 1.3, 0.26)
LAYER = dict(weight_scale=0.1, act="lrelu", gain=1.3)
# Convolutions to images have no activation.
LINEAR = (0.1, "linear", 0.2, 1.0, False, 1e-8)
# Samples, rows and columns that are no multiple of a tile; then a tensor past the L2 cache of any GPU.
CHECKED, TIMED = ((1, 10, 12), (1, 16, 16)) if REHEARSAL else ((2, 270, 300), (4, 1024, 1024))


class Case(NamedTuple):
    """An op with its plain formula, and which kernels it must take on a GPU."""

    inputs: Callable[[torch.dtype], tuple[Tensor, ...]]
    ours: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    taken: Callable[..., bool]


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    t = torch.randn(shape, device=DEVICE, dtype=torch.float32).to(dtype)
    return t.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else t


def _layer(c_in: int, c_out: int, k: int) -> Callable[[torch.dtype], tuple[Tensor, ...]]:
    """Return what draws x, weight and bias of a convolution."""
    n, h, w = CHECKED
    return lambda dtype: (_random(n, c_in, h, w, dtype=dtype), _random(c_out, c_in, k, k), _random(c_out))


def _convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ops.equalized_conv2d(x, weight, bias, **LAYER, impl="native")


def _plainly_convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return reference.equalized_conv2d(x, weight, bias, **LAYER)


def _filter(taps: int) -> Tensor:
    return torch.hamming_window(taps, periodic=False, device=DEVICE) / taps


def _filtered(layout: str, **options: int) -> Case:
    def images(dtype: torch.dtype) -> tuple[Tensor, ...]:
        n, h, w = CHECKED
        x = _random(n, 16, h, w, dtype=dtype)
        return (x if layout == "channels_last" else x.contiguous(),)

    return Case(
        images,
        lambda x: ops.upfirdn2d(x, _filter(4), padding=2, **options, impl="native"),
        lambda x: reference.upfirdn2d(x, _filter(4).to(x.dtype), padding=2, **options),
        lambda x: _native.cuda_available,
    )


FILTERED_LRELU = dict(up=2, down=2, padding=11, clamp=2.0)

CASES = {
    "D 64>64 by sign bits": Case(
        _layer(64, 64, 3),
        _convolved,
        _plainly_convolved,
        lambda x, weight, bias: conv._writes_sign_bits(x, weight, (1, 1, 1), OPTIONS, "native"),
    ),
    "from RGB 3>16": Case(
        _layer(3, 16, 1),
        _convolved,
        _plainly_convolved,
        lambda x, weight, bias: conv_rgb_gradients.takes(x, weight, (0, 1, 1), OPTIONS, "native"),
    ),
    "to RGB 16>3": Case(
        _layer(16, 3, 1),
        lambda x, weight, bias: ops.equalized_conv2d(x, weight, bias, weight_scale=0.1, impl="native"),
        lambda x, weight, bias: reference.equalized_conv2d(x, weight, bias, weight_scale=0.1),
        lambda x, weight, bias: conv_rgb_gradients.takes_to_image(x, weight, (0, 1, 1), LINEAR, "native"),
    ),
    "upfirdn2d blur": _filtered("channels_last"),
    "upfirdn2d up": _filtered("channels_last", up=2),
    "upfirdn2d down": _filtered("contiguous", down=2),
    "filtered_lrelu": Case(
        lambda dtype: (_random(CHECKED[0], 8, *CHECKED[1:], dtype=dtype).contiguous(), _random(8)),
        lambda x, bias: ops.filtered_lrelu(x, _filter(12), _filter(12), bias, **FILTERED_LRELU, impl="native"),
        lambda x, bias: reference.filtered_lrelu(
            x, _filter(12).to(x.dtype), _filter(12).to(x.dtype), bias, **FILTERED_LRELU
        ),
        lambda x, bias: _native.cuda_available,
    ),
}

# Relative norms. Values are rounded to 8 or 11 bits of mantissa a few times; three in a thousand cross zero by that,
# where the gradient is five times another: sqrt(0.003) of its norm. In fp32 one in a million does.
ALLOWED = {
    torch.bfloat16: {"y": 0.02, "gradient": 0.1},
    torch.float16: {"y": 0.003, "gradient": 0.05},
    torch.float32: {"y": 1e-5, "gradient": 2e-3},
}


def passes(part: Part) -> None:
    """Compare every case's result and gradients with the plain formula's in fp64, on the device itself."""
    set_precision("exact")
    for dtype in ALLOWED:
        for name in CASES:
            part.look(f"{name} {dtype}", lambda name=name, dtype=dtype: errors(CASES[name], dtype))
    part.look("sign bits", lambda: _wrong_bits())


def errors(case: Case, dtype: torch.dtype) -> dict[str, str]:
    """Return the relative errors of y and of the gradient of each input; raise where one is too large."""
    torch.manual_seed(0)
    inputs = tuple(t.requires_grad_() for t in case.inputs(dtype))
    assert DEVICE == "cpu" or case.taken(*inputs), "these kernels are not taken here"
    y = case.ours(*inputs)
    upstream = torch.randn_like(y)
    found = (y, *torch.autograd.grad(y, inputs, upstream))
    wide = tuple(t.detach().double().requires_grad_() for t in inputs)
    plain = case.plain(*wide)
    expected = (plain, *torch.autograd.grad(plain, wide, upstream.double()))
    seen = {}
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        name = f"gradient {i}" if i else "y"
        seen[name] = relative(a.double(), b)
        assert float(seen[name]) <= ALLOWED[dtype][name.split()[0]], f"too far from fp64: {name} {seen[name]}"
    return seen


def _wrong_bits() -> dict[str, int]:
    """Compare every bit with the sign of the value that the same launch wrote."""
    n, h, w = CHECKED
    x = _random(n, 64, h, w, dtype=torch.bfloat16)
    bits = sign_bits.bias_act_with_sign_bits_inplace(x, _random(64), *OPTIONS[:1], *OPTIONS[2:4])
    wrong = int((bits != sign_bits.pack_signs(x)).sum())
    assert wrong == 0, f"{wrong} words of sign bits are not those of the values"
    return {"words": bits.numel()}


def pass_times(part: Part) -> None:
    """Time each launch, and a copy of the bytes that it must move."""
    set_precision("exact")
    for name, (launch, tensors) in _launches().items():
        part.look(name, lambda launch=launch, tensors=tensors: _time(launch, tensors))


def _launches() -> dict[str, tuple[Callable[[], object], tuple[Tensor, ...]]]:
    """Return launches in bf16, each with the tensors that it reads or writes, as often as it does."""
    n, h, w = TIMED
    half = torch.bfloat16
    wide, image, bias = _random(n, 16, h, w, dtype=half), _random(n, 3, h, w, dtype=half), _random(16)
    bits, other = sign_bits.pack_signs(wide), torch.empty_like(wide)
    named = torch.ops.pggan_fast
    from_image, to_image = _random(16, 3, 1, 1), _random(3, 16, 1, 1)
    filters = _random(16, 16, 3, 3, dtype=half)
    return {
        "with sign bits": (
            lambda: named.bias_act_with_sign_bits_(wide, bias, 1.0, 0.2, 1.0),
            (wide, wide, bits),
        ),
        "by sign bits": (
            lambda: named.bias_act_backward_by_sign_bits(wide, bits, 0.1, 0.2, 1.3, True),
            (wide, other, bits),
        ),
        "expand": (lambda: named.conv_rgb_expand(image, from_image, bias, None, *SLOPES, True), (image, wide, bits)),
        "reduce": (lambda: named.conv_rgb_reduce(wide, to_image, None, bits, *SLOPES), (wide, bits, image)),
        "weight gradient": (lambda: named.conv_rgb_weight_gradient(wide, image, bits, *SLOPES), (wide, image, bits)),
        "halo tiles": (
            lambda: named.conv_halo(wide, filters, bias, None, False, 1, h, w, "epilogue", *SLOPES, 0.0, True),
            (wide, other, bits),
        ),
        "blur": (lambda: ops.upfirdn2d(wide, _filter(4), padding=(2, 1, 2, 1), impl="native"), (wide, other)),
        "filtered": (
            lambda: ops.filtered_lrelu(wide, _filter(12), _filter(12), bias, **FILTERED_LRELU, impl="native"),
            (wide, other),
        ),
    }


def _time(launch: Callable[[], object], tensors: tuple[Tensor, ...]) -> dict[str, float]:
    moved = sum(t.numel() * t.element_size() for t in tensors)
    source = torch.zeros(moved // 2, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    with torch.no_grad():
        ms, copy = milliseconds(launch, 0.1), milliseconds(lambda: target.copy_(source), 0.1)
    return {
        "us": round(1e3 * ms, 1),
        "copy_us": round(1e3 * copy, 1),
        "copy_tb_per_s": round(moved / copy / 1e9, 2),
        "share_of_copy": round(copy / ms, 2),
    }
