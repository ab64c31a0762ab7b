"""Tests of bias_act that the matrix of test_values.py leaves out: bits, special values, in place, what is kept."""

import pytest
import torch
import torch.nn.functional as F

from pggan_fast import _native, ops, reference
from tests.ops.samples import LAYOUTS, SAMPLES, laid_out
from tests.tolerances import EXACT

HALVES = [torch.bfloat16, torch.float16]
BIG = next(s for s in SAMPLES if str(s) == "bias_act-many_pixels")


def _every_value(dtype: torch.dtype) -> torch.Tensor:
    """All 65,536 bit patterns of a half-precision dtype, NaNs and infinities included, as [4, 16, 32, 32]."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).view(4, 16, 32, 32)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", HALVES)
def test_every_value_survives(implementation, dtype, layout):
    """Half to fp32 and back, by whichever instructions: no bit changes, and NaN stays NaN."""
    x = _every_value(dtype)
    y = implementation.function("bias_act")(laid_out(x, layout), act="linear")
    assert torch.equal(y.isnan(), x.isnan())
    same = y.contiguous().view(torch.int16) == x.view(torch.int16)
    # `x + 0` of -0 is 0: where a kernel adds the bias that is not there.
    assert (same | x.isnan() | (x == 0)).all()
    assert torch.equal(y == 0, x == 0)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_is_torchs(implementation, dtype, layout):
    """To nearest, ties to even, overflow to infinity, subnormals kept: bit for bit as torch rounds fp32."""
    x = _every_value(dtype)
    bias = torch.linspace(-3, 3, 16) * 2.0 ** torch.arange(-14, 18, 2)
    y = implementation.function("bias_act")(laid_out(x, layout), bias, act="linear")
    expected = (x.float() + bias.view(1, -1, 1, 1)).to(dtype)
    torch.testing.assert_close(y.contiguous(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("pixel_norm", [False, True])
def test_nan_and_infinity_pass(implementation, dtype, pixel_norm):
    """A broken training step must show, not be clipped away; pixels beside it are not touched."""
    x = torch.randn(2, 5, 3, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 1, 2, 3], x[1, 4, 0, 6], x[1, 2, 1, 1] = float("nan"), float("inf"), -float("inf")
    y = implementation.function("bias_act")(x, act="lrelu", pixel_norm=pixel_norm)
    u = F.leaky_relu(x.double(), 0.2)
    if pixel_norm:
        u = u / (u.square().mean(1, keepdim=True) + 1e-8).sqrt()
    assert torch.equal(y.isnan(), u.isnan())
    assert torch.equal(y.isinf(), u.isinf())
    assert y.isfinite().sum() > y.numel() - 20


def test_large_fp16_values_do_not_overflow(implementation):
    """200**2 times 512 channels is far beyond fp16, and so is a bias gradient of 65504 or more."""
    x = torch.full((4, 512, 16, 16), 200.0, dtype=torch.float16, requires_grad=True)
    bias = torch.zeros(512, requires_grad=True)
    y = implementation.function("bias_act")(x, bias, act="linear", pixel_norm=True)
    # fp16 has 11 bits: 1 is exact.
    assert torch.equal(y, torch.ones_like(y))
    y = implementation.function("bias_act")(x, bias, act="linear")
    (db,) = torch.autograd.grad(y, bias, torch.full_like(y, 100.0))
    assert torch.equal(db, torch.full_like(db, 4 * 16 * 16 * 100.0))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.op == "bias_act"], ids=str)
def test_in_place(sample, layout):
    """bias_act_ writes what bias_act returns into x, and returns the same r."""
    arguments = dict(scale=1.0, act="lrelu", slope=0.2, gain=1.0, pixel_norm=False, eps=1e-8) | sample.options
    x, *bias = sample.tensors(torch.float32).values()
    x = laid_out(x, layout).clone(memory_format=torch.preserve_format)
    y, r = torch.ops.pggan_fast.bias_act(x, *bias or [None], *arguments.values())
    strides, pointer = x.stride(), x.data_ptr()
    assert torch.equal(torch.ops.pggan_fast.bias_act_(x, *bias or [None], *arguments.values()), r)
    assert torch.equal(x, y)
    assert (x.stride(), x.data_ptr()) == (strides, pointer)


def test_in_place_leaves_the_rest_of_a_buffer_alone():
    buffer = torch.randn(4, 9, 8, 8, generator=torch.Generator().manual_seed(0))
    before, window = buffer.clone(), (slice(1, 3), slice(2, 7), slice(1, 6), slice(3, 7))
    torch.ops.pggan_fast.bias_act_(buffer[window])
    torch.testing.assert_close(buffer[window], F.leaky_relu(before[window], 0.2))
    buffer[window] = before[window]
    assert torch.equal(buffer, before)


def test_r_is_the_factor_of_pixel_norm():
    x = BIG.tensors(torch.float64)["x"]
    y, r = torch.ops.pggan_fast.bias_act(x, None, 1.0, "linear", 0.2, 1.0, True, 1e-8)
    torch.testing.assert_close(r, (x.square().mean(1, keepdim=True) + 1e-8).rsqrt())
    torch.testing.assert_close(y, x * r)
    for dtype in HALVES:
        assert torch.ops.pggan_fast.bias_act(x.to(dtype), pixel_norm=True)[1].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"pixel_norm": True}, 2),
        ({"pixel_norm": True, "act": "linear"}, 2),
        ({"act": "lrelu"}, 1),
        ({"act": "relu"}, 1),
        ({"act": "linear"}, 0),
    ],
    ids=str,
)
def test_only_y_and_r_are_kept(fused, options, kept):
    """For backward: y, which the next layer keeps anyway, and r of one channel; nothing for an affine map."""
    saved = []
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    bias = torch.zeros(8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = fused.function("bias_act")(x * 1, bias, **options)
    assert len(saved) == kept
    if kept:
        assert saved[0].data_ptr() == y.data_ptr()
    if kept == 2:
        assert saved[1].shape == (2, 1, 4, 4)


@pytest.mark.parametrize("shape", [(2, 3, 129, 131), (3, 5, 1, 1), (5, 700, 3, 5), (1, 2, 128, 128), (4, 3)], ids=str)
def test_planes_of_any_size(implementation, shape):
    """Contiguous, without pixel norm: many planes to a piece of work, or many pieces to a plane; to second order."""
    random = torch.Generator().manual_seed(1)
    x, g = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
    bias = torch.randn(shape[1], generator=random, dtype=torch.float64)

    def gradients(function):
        leaves = [t.clone().requires_grad_() for t in (x, bias)]
        y = function(*leaves, scale=0.7, gain=1.3)
        dx, db = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return y, dx, db, *torch.autograd.grad((dx * g).sum() + db.square().sum(), leaves)

    for actual, expected in zip(
        gradients(implementation.function("bias_act")), gradients(reference.bias_act), strict=True
    ):
        torch.testing.assert_close(actual, expected, **EXACT)


@pytest.mark.skipif(not _native.cpu_available, reason=_native.cpu_reason)
@pytest.mark.parametrize("act", ["lrelu", "softplus"])
@pytest.mark.parametrize("shape", [(16, 37), (100, 3), (9, 5, 1, 1)], ids=str)
def test_bias_gradients_of_vectors_that_cancel(shape, act):
    """Added up in double on a CPU: of sums in fp32 their rounding would be all that is left."""
    x, bias, dy = 30 + torch.rand(shape), torch.zeros(shape[1], requires_grad=True), torch.randn(shape)
    dy[-1] -= dy.sum(0)
    (db,) = torch.autograd.grad(ops.bias_act(x, bias, act=act, impl="native"), bias, dy)
    expected = dy.double().sum([d for d in range(dy.ndim) if d != 1])  # both slopes are 1 here
    torch.testing.assert_close(db.double(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_scale_of_zero(implementation, layout):
    """Nothing of x comes through, and the bias gets its gradient."""
    shapes = ((2, 24, 5, 4), (16, 96, 1, 1))  # pixels, and vectors of one pixel
    for shape in shapes:
        x, dy = (laid_out(torch.randn(shape), layout) for _ in range(2))
        bias = torch.linspace(-1, 1, shape[1])
        leaves = x.requires_grad_(), bias.requires_grad_()
        y = implementation.function("bias_act")(x, bias, scale=0.0, act="lrelu", gain=2.0)
        dx, db = torch.autograd.grad(y, leaves, dy)
        assert not dx.any()
        slope = torch.where(bias > 0, 2.0, 0.4)
        torch.testing.assert_close(db, slope * dy.sum((0, 2, 3)))
