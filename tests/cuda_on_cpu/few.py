"""Calls of the CUDA kernels that are for few dtypes, channels and layouts; tests/ops/op_calls.py has the others.

A tensor is of several tiles, the last of which are not full.
"""

from itertools import product
from typing import NamedTuple

import torch

from pggan_fast.ops.conv_halo import CHANNELS, FUSED, exists, has_weight_gradient
from tests.ops.op_calls import Call, Make, bits

# transposed, stride; flipped is the kernel of plain with other strides of the weight.
KINDS = {"plain": (False, 1), "flipped": (True, 1), "strided": (False, 2), "transposed": (True, 2)}
BF16, FP32 = torch.bfloat16, torch.float32
SLOPES = (0.7, 1.3, 0.26)  # scale, then those of positive and of other values


class Few(NamedTuple):
    """A call in the dtype and layout that it is for."""

    call: Call
    dtype: torch.dtype
    layout: str = "channels_last"

    def __str__(self) -> str:
        return f"{self.call}-{str(self.dtype).removeprefix('torch.')}-{self.layout}"

    def arguments(self) -> tuple:
        return self.call.arguments(Make(self.dtype, self.layout))


def _halo(kind: str, fused: str, c_in: int, c_out: int) -> Call:
    transposed, stride = KINDS[kind]

    def arguments(t: Make) -> tuple:
        h, w = {"plain": (34, 35), "flipped": (34, 35), "strided": (18, 34), "transposed": (9, 33)}[kind]
        out = (h // 2, w // 2) if kind == "strided" else (stride * h, stride * w)
        k = 3 if stride == 1 else 4
        mask = bits(1, h, w, 1) if fused == "in_mask" else bits(1, *out, 1) if fused == "out_mask" else None
        weight = t(c_in, c_out, k, k) if transposed else t(c_out, c_in, k, k)
        bias = t.filter(c_out) if mask is None else None
        return t(1, c_in, h, w), weight, bias, mask, transposed, stride, *out, fused, *SLOPES, 1e-8, True

    return Call("conv_halo", f"{kind}-{fused}-{c_in}-{c_out}", arguments)


def _gradient(stride: int, masked: bool, c_a: int, c_b: int) -> Call:
    def arguments(t: Make) -> tuple:
        h, w = (17, 35) if stride == 1 else (9, 17)
        a, b = t(1, c_a, h, w), t(1, c_b, stride * h, stride * w)
        return a, b, bits(1, h, w, 1) if masked else None, stride, *SLOPES

    return Call("conv_halo_weight_gradient", f"{stride}-{'masked' if masked else 'all'}-{c_a}-{c_b}", arguments)


def _filter(taps: int, up: int, down: int) -> Call:
    before, after = {(3, 1, 1): (1, 1), (3, 2, 1): (2, 0), (3, 1, 2): (1, 0), (4, 1, 2): (1, 1)}.get(
        (taps, up, down), (2, 1)
    )
    sides = (before, after, before, after)
    return Call(
        "upfirdn2d",
        f"{taps}_taps-{up}-{down}",
        lambda t: (t(1, 8, 32, 48), t.filter(taps, taps), up, up, down, down, *sides),
    )


def _passes(c: int, image: int) -> list[Call]:
    """Return those over sign bits and from and to images; 16 channels fill half a word."""
    size, mask = (24, 24), bits(2, 24, 24, -(-c // 32))
    return [
        Call("bias_act_with_sign_bits_", f"{c}", lambda t: (t(2, c, *size), t.filter(c), 0.7, 0.2, 1.3)),
        Call("bias_act_backward_by_sign_bits", f"{c}", lambda t: (t(2, c, *size), mask, 0.7, 0.2, 1.3, True)),
        Call(
            "conv_rgb_expand",
            f"signs-{c}",
            lambda t: (t(2, image, *size), t.filter(c, image, 1, 1), t.filter(c), None, *SLOPES, True),
        ),
        Call(
            "conv_rgb_expand",
            f"mask-{c}",
            lambda t: (t(2, image, *size), t.filter(c, image, 1, 1), None, mask, *SLOPES, False),
        ),
        Call(
            "conv_rgb_reduce",
            f"{c}",
            lambda t: (t(2, c, *size), t.filter(image, c, 1, 1), t.filter(image), mask, *SLOPES),
        ),
        Call("conv_rgb_weight_gradient", f"{c}", lambda t: (t(2, c, *size), t(2, image, *size), mask, *SLOPES)),
    ]


FEW = [
    *(
        Few(_halo(kind, fused, c_in, c_out), BF16)
        for kind, fused, c_in, c_out in product(("plain", "strided", "transposed"), FUSED, CHANNELS, CHANNELS)
        if exists(BF16, c_in, c_out, *KINDS[kind])
    ),
    Few(_halo("flipped", "in_mask", 16, 16), torch.float16),
    Few(_halo("flipped", "out_mask", 16, 32), FP32),
    *(
        Few(_gradient(stride, masked, c_a, c_b), BF16)
        for stride, masked, c_a, c_b in product((1, 2), (False, True), CHANNELS, CHANNELS)
        if has_weight_gradient(BF16, c_a, c_b, stride)
    ),
    *(Few(call, dtype) for c, image in ((16, 3), (64, 1)) for call in _passes(c, image) for dtype in (BF16, FP32)),
    *(
        Few(_filter(taps, up, down), dtype, layout)
        for taps, (up, down) in product((3, 4), ((1, 1), (2, 1), (1, 2)))
        for dtype, layout in ((FP32, "contiguous"), (BF16, "channels_last"))
    ),
]
