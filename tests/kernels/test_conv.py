"""The convolution's Triton kernels in Triton's interpreter: against torch's convolutions and autograd in fp64.

bfloat16 is wrong in the interpreter; test_conv_compiled.py compiles it.
"""

import os
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast import reference
from tests.kernels.guards import guarded_allocations
from tests.ops.samples import laid_out
from tests.tolerances import assert_accurate

pytest.importorskip("triton")
from pggan_fast.kernels import (  # noqa: E402
    activation,
    bias_act,
    conv,
    conv_weight_tiles,  # noqa: E402
)
from pggan_fast.kernels.conv_weight_gradient import weight_gradient  # noqa: E402
from pggan_fast.kernels.conv_weight_tiles import WeightTile  # noqa: E402
from pggan_fast.kernels.gpu_limits import H200  # noqa: E402

OTHERS = (torch.float64, torch.float16)
DTYPES = (torch.float32, *OTHERS)
LAYOUTS = ("channels_last", "contiguous", "sliced", "sliced_channels_last")
ACT = dict(slope=0.2, gain=1.3)
SLOPES = dict(positive_slope=1.3, negative_slope=1.3 * 0.2)


class Case(NamedTuple):
    """x [n, c_in, h, w] and a kernel k, as torch.nn.functional's convolutions take them."""

    n: int = 2
    c_in: int = 5
    c_out: int = 7
    h: int = 6
    w: int = 5
    k: int = 3
    stride: int = 1
    padding: int = 1
    transposed: bool = False

    def __str__(self) -> str:
        kind = "transposed" if self.transposed else "plain"
        return f"{self.n}x{self.c_in}x{self.h}x{self.w}-{self.c_out}-k{self.k}-s{self.stride}-p{self.padding}-{kind}"

    @property
    def geometry(self) -> dict:
        return dict(stride=self.stride, padding=self.padding)

    def run(self, x: Tensor, weight: Tensor) -> Tensor:
        return (F.conv_transpose2d if self.transposed else F.conv2d)(x, weight, **self.geometry)

    def tensors(self, dtype: torch.dtype, layout: str = "channels_last") -> tuple[Tensor, Tensor, Tensor]:
        """x, the weight, and a bias that holds the outputs off the activation's kink (see samples.Sample.tensors)."""
        random = torch.Generator().manual_seed(sum(map(ord, str(self))))
        x = torch.randn(self.n, self.c_in, self.h, self.w, generator=random, dtype=torch.float64)
        channels = (self.c_in, self.c_out) if self.transposed else (self.c_out, self.c_in)
        weight = torch.randn(*channels, self.k, self.k, generator=random, dtype=torch.float64)
        bias = torch.tensor([8.0, -8.0]).repeat(self.c_out)[: self.c_out]
        return laid_out(x.to(dtype), layout), weight.to(dtype), bias


CASES = [
    Case(),
    Case(k=1, padding=0),
    Case(k=1, padding=0, stride=2),
    Case(k=4, padding=1),
    Case(k=5, padding=2),
    Case(padding=0),
    Case(padding=3),
    Case(c_in=17, c_out=33),
    Case(n=1, c_in=48, c_out=16, h=4, w=4),
    Case(n=1, c_in=40, c_out=140, h=3, w=2),
    Case(n=9, h=4, w=4),
    Case(n=3, h=1, w=1),
    Case(n=1, c_in=3, c_out=3, h=19, w=37),
    Case(k=4, stride=2),
    Case(k=4, stride=2, h=7, w=9),
    Case(stride=2, h=7),
    Case(k=6, stride=2, padding=2, h=9, w=8),
    Case(k=4, stride=2, transposed=True),
    Case(k=4, stride=2, h=1, w=1, transposed=True),
    Case(k=2, stride=2, padding=0, transposed=True),
    Case(k=5, stride=2, padding=1, transposed=True),
    Case(stride=2, padding=0, transposed=True),
    Case(k=6, stride=2, padding=2, transposed=True, c_in=33, c_out=17),
    Case(transposed=True),
    Case(k=5, padding=2, transposed=True),
]
if "PGGAN_FAST_TEST_KERNELS" not in os.environ:
    # The interpreter is slow: `make test-kernels` takes them all.
    CASES = CASES[::2]
KINDS = ("plain", "signs", "norm")


def convolve(*args, **kwargs) -> tuple[Tensor, Tensor, Tensor | None]:
    with guarded_allocations():
        return conv.convolve(*args, **kwargs)


def sign_bits_of(y: Tensor) -> Tensor:
    """Packed as the kernels pack them."""
    bits = (y > 0).movedim(1, -1).long()
    bits = F.pad(bits, (0, -bits.shape[-1] % 32)).unflatten(-1, (-1, 32))
    return (bits << torch.arange(32)).sum(-1).to(torch.int32)


def epilogue(case: Case, x: Tensor, weight: Tensor, bias: Tensor, pixel_norm: bool) -> Tensor:
    z = case.run(x, weight)
    return reference.bias_act(z, bias, scale=0.3, **ACT, pixel_norm=pixel_norm, eps=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case, kind):
    pixel_norm = kind == "norm"
    layouts = LAYOUTS if case in CASES[::6] else LAYOUTS[:1]
    for layout, dtype in [*((layout, torch.float32) for layout in layouts), *((LAYOUTS[0], d) for d in OTHERS)]:
        x, weight, bias = case.tensors(dtype, layout)
        exact = epilogue(case, x.double(), weight.double(), bias.double(), pixel_norm)
        plain = epilogue(case, x, weight, bias, pixel_norm)
        y, r, sign_bits = convolve(
            x,
            weight,
            bias,
            size=exact.shape[2:],
            transposed=case.transposed,
            **case.geometry,
            scale=0.3,
            **SLOPES,
            pixel_norm=pixel_norm,
            eps=1e-3,
            keep_sign_bits=kind == "signs",
        )
        assert_accurate(f"{layout} {dtype}", y, plain, exact, order="output", dtype=dtype)
        channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
        assert (sign_bits is not None) == (kind == "signs")
        if kind == "signs":
            assert sign_bits.shape == activation.sign_bits_shape(y) and torch.equal(sign_bits, sign_bits_of(y))
        assert r.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        if kind != "norm":
            assert not r.numel()
            continue
        u = epilogue(case, x.double(), weight.double(), bias.double(), False)
        expected = (u.square().mean(1, keepdim=True) + 1e-3).rsqrt()
        torch.testing.assert_close(r.double(), expected, rtol=64 * torch.finfo(r.dtype).eps, atol=0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_input_gradient(case):
    """The other kind of convolution, with the weight as it is."""
    for dtype in DTYPES:
        x, weight, _ = case.tensors(dtype)
        random = torch.Generator().manual_seed(1)
        wide, narrow = x.double().requires_grad_(), x.detach().requires_grad_()
        z = case.run(wide, weight.double())
        dz = laid_out(torch.randn(z.shape, generator=random, dtype=torch.float64).to(dtype), "channels_last")
        (exact,) = torch.autograd.grad(z, wide, dz.double() * 0.3)
        (plain,) = torch.autograd.grad(case.run(narrow, weight), narrow, dz * 0.3)
        actual, _, _ = convolve(
            dz, weight, size=x.shape[2:], transposed=not case.transposed, **case.geometry, scale=0.3
        )
        assert_accurate(str(dtype), actual, plain, exact, order="first", dtype=dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 9, 6, 5), (3, 33, 4, 7), (1, 140, 3, 3), (2, 16, 1, 1), (0, 8, 2, 2)], ids=str)
@pytest.mark.parametrize("act", ["lrelu", "relu"])
def test_activation_gradient_by_sign_bits(shape, layout, act):
    """To the bit what the same kernel makes of the output itself, which of few channels is another one."""
    random = torch.Generator().manual_seed(1)
    for dtype in DTYPES:
        y, dy = (laid_out(torch.randn(shape, generator=random).to(dtype), layout) for _ in range(2))
        epilogue = (0.7, act, 0.2, 1.3)
        expected = bias_act.backward(dy, None, y, None, *epilogue, False, True)
        with guarded_allocations():
            actual = bias_act.backward_by_signs(dy, sign_bits_of(y), *epilogue, True)
        for a, e in zip(actual, expected, strict=True):
            assert torch.equal(a, e)
        assert actual[0].stride() == torch.empty_like(dy).stride()


def test_sign_bits_of_another_shape_are_refused():
    dy = torch.zeros(2, 5, 4, 4)
    with pytest.raises(ValueError, match="sign bits"):
        bias_act.backward_by_signs(dy, torch.zeros(2, 4, 4, 2, dtype=torch.int32), 1.0, "lrelu", 0.2, 1.0, False)


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize(
    "case", [CASES[0], Case(c_out=140), Case(k=4, stride=2), Case(k=4, stride=2, transposed=True)], ids=str
)
def test_activation_read_off_another_tensor(case, kind):
    """The gradient of the above in dy: a convolution times the activation's slope at y."""
    for dtype in DTYPES:
        x, weight, _ = case.tensors(dtype)
        exact = case.run(x.double(), weight.double()) * 0.3
        sign = torch.randn(exact.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        sign = laid_out(sign, "channels_last")
        factor = torch.where(sign > 0, *(torch.tensor(s, dtype=torch.float64) for s in SLOPES.values()))
        plain = (case.run(x, weight) * 0.3 * factor).to(dtype)
        actual, _, _ = convolve(
            x,
            weight,
            size=exact.shape[2:],
            transposed=case.transposed,
            **case.geometry,
            scale=0.3,
            **SLOPES,
            activation_mask=sign_bits_of(sign) if kind == "signs" else sign,
        )
        assert_accurate(str(dtype), actual, plain, exact * factor, order="output", dtype=dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_weight_gradient(case):
    layouts = LAYOUTS if case in CASES[::6] else LAYOUTS[:1]
    for layout, dtype in [*((layout, torch.float32) for layout in layouts), *((LAYOUTS[0], d) for d in OTHERS)]:
        x, weight, _ = case.tensors(dtype, layout)
        random = torch.Generator().manual_seed(1)
        wide, narrow = weight.double().requires_grad_(), weight.detach().requires_grad_()
        z = case.run(x.double(), wide)
        dz = laid_out(torch.randn(z.shape, generator=random, dtype=torch.float64).to(dtype), layout)
        (exact,) = torch.autograd.grad(z, wide, dz.double())
        (plain,) = torch.autograd.grad(case.run(x, narrow), narrow, dz)
        with guarded_allocations():
            dw = weight_gradient(dz, x, weight, **case.geometry, transposed=case.transposed, scale=0.3)
        assert dw.dtype == dtype and dw.stride() == torch.empty_like(weight).stride()
        assert_accurate(f"{layout} {dtype}", dw, plain * 0.3, exact * 0.3, order="first", dtype=dtype)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 5, 7, 6, 5, 3), (1, 33, 40, 2, 3, 3), (1, 2, 3, 20, 17, 3), (2, 5, 7, 6, 5, 1), (1, 3, 2, 4, 5, 5)]
)
def test_weight_gradient_of_a_folded_weight(shape, transposed):
    """Against `fold` and torch's convolution, differentiated."""
    n, c_in, c_out, h, w, k = shape
    random = torch.Generator().manual_seed(1)
    for layout in LAYOUTS:
        weight = torch.randn(c_out, c_in, k, k, generator=random, dtype=torch.float64)
        weight = laid_out(weight, layout).requires_grad_()
        large, small = (n, c_out if transposed else c_in, 2 * h, 2 * w), (n, c_in if transposed else c_out, h, w)
        large, small = (torch.randn(size, generator=random, dtype=torch.float64) for size in (large, small))
        dz, x = (large, small) if transposed else (small, large)
        shifts = sum(F.pad(weight, (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)) * 0.25
        filters = shifts.flip(2, 3).transpose(0, 1) if transposed else shifts
        z = (F.conv_transpose2d if transposed else F.conv2d)(x, filters, stride=2, padding=k // 2)
        (expected,) = torch.autograd.grad(z, weight, 0.3 * dz)
        options = dict(stride=2, padding=k // 2, transposed=transposed, fold=0.25, scale=0.3)
        with guarded_allocations():
            dw = weight_gradient(dz, x, weight.detach(), **options)
        assert dw.stride() == torch.empty_like(weight).stride()
        torch.testing.assert_close(dw, expected)


@pytest.mark.parametrize("shape", [(2, 70, 65), (9, 4, 40), (40, 4, 4)], ids=str)
def test_parts_of_a_weight_gradient_add_up(shape):
    """Many pixels and few channels: programs share them, step through rows, images and batch, and parts are summed."""
    n, h, w = shape
    x, weight, _ = Case(n=n, c_in=3, c_out=4, h=h, w=w).tensors(torch.float64)
    dz = torch.randn(n, 4, h, w, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight.requires_grad_()
    (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=1), weight, dz)
    with patch.object(conv_weight_tiles, "limits", lambda: H200._replace(multiprocessors=3)), guarded_allocations():
        dw = weight_gradient(dz, x, weight.detach(), padding=1)
        few = weight_gradient(dz, x, weight.detach(), padding=1, tile=WeightTile(1, 4, 4, 16, 64, 4, 1))
    torch.testing.assert_close(dw, expected)
    torch.testing.assert_close(few, expected)


def test_empty_tensors():
    x, weight = torch.empty(0, 5, 4, 4), torch.randn(7, 5, 3, 3)
    y, r, _ = conv.convolve(x, weight, size=(4, 4), padding=1, pixel_norm=True)
    assert y.shape == (0, 7, 4, 4) and r.shape == (0, 1, 4, 4)
    dw = weight_gradient(y, x, weight, padding=1)
    assert not dw.any() and dw.shape == weight.shape


def test_same_bits_every_time():
    x, weight, bias = Case(c_in=17, c_out=33, h=9).tensors(torch.float32)
    dz = torch.randn(2, 33, 9, 5)
    first, again = (
        (
            conv.convolve(x, weight, bias, size=(9, 5), padding=1)[0],
            weight_gradient(dz, x, weight, padding=1),
        )
        for _ in range(2)
    )
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
