"""The halo-tile convolutions of csrc/cuda on the emulated tensor cores: fragments, values, a layer's step."""

from itertools import product

import pytest
import torch

from pggan_fast.ops import conv_halo_gradients
from pggan_fast.ops.conv_halo import FUSED, _conv_halo, _weight_gradient, exists, has_weight_gradient
from pggan_fast.ops.conv_halo_gradients import HaloConv2d
from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.few import KINDS
from tests.ops.implementations import cuda_kernels_on_cpu

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}
# Of the largest output: a rounding of the result, and for tf32 those of the operands.
ALLOWED = {"bf16": 2**-8, "fp16": 2**-11, "tf32": 2**-10}
# More than a tile in both directions, and no multiple of one.
SIZE = (34, 35)


def images(n: int, c: int, h: int, w: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(n, c, h, w).to(dtype).contiguous(memory_format=torch.channels_last)


def words(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32)


@pytest.fixture
def order():
    controls = build.load()
    controls.set_order(controls.Order.shuffled, 1)
    yield controls
    controls.set_order(controls.Order.ascending)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_product_by_the_tables_of_the_ptx_isa(dtype):
    torch.manual_seed(0)
    depth = 8 if dtype == "tf32" else 16
    a, b = (torch.randn(shape).to(torch.bfloat16).double() for shape in ((16, depth), (depth, 8)))
    found = build.load().product(dtype, a.flatten().tolist(), b.flatten().tolist())
    torch.testing.assert_close(torch.tensor(found).double().view(16, 8), a @ b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_tile_by_ldmatrix(transposed):
    tile = torch.arange(256.0).view(16, 16)
    found = torch.tensor(build.load().loaded_tile(tile.flatten().tolist(), transposed)).view(16, 16)
    assert torch.equal(found, tile.T if transposed else tile)


def test_a_copy_that_is_not_waited_for_shows():
    controls = build.load()
    assert controls.missing_wait(right=True) == [1, 2, 3, 4]
    assert all(value != value for value in controls.missing_wait())


def arguments(dtype, c_in, c_out, kind, fused, size=SIZE):
    torch.manual_seed(3)
    (transposed, stride), (h, w) = KINDS[kind], size
    out = (h, w) if stride == 1 else (2 * h + 1, 2 * w) if transposed else (h // 2, w // 2)
    x, k = images(1, c_in, h, w, dtype), 3 if stride == 1 else 4
    weight = torch.randn((c_in, c_out, k, k) if transposed else (c_out, c_in, k, k)).to(dtype)
    mask = words(1, h, w, 1) if fused == "in_mask" else words(1, *out, 1) if fused == "out_mask" else None
    bias = torch.randn(c_out) if mask is None else None
    return x, weight, bias, mask, transposed, stride, *out, fused, 0.1, 1.3, 0.26, 1e-8, True


@pytest.mark.parametrize("fused", FUSED)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_values(order, dtype, kind, fused):
    op, count = torch.ops.pggan_fast_cuda_on_cpu.conv_halo.default, 0
    for c_in, c_out in product((16, 32), repeat=2):
        if not exists(DTYPES[dtype], c_in, c_out, *KINDS[kind]):
            continue
        count += 1
        args = arguments(DTYPES[dtype], c_in, c_out, kind, fused)
        y, r, signs = op(*args)
        expected, factors, _ = _conv_halo(*(t.double() if i < 2 else t for i, t in enumerate(args)))
        assert (y - expected).abs().max() <= ALLOWED[dtype] * expected.abs().max()
        assert y.is_contiguous(memory_format=torch.channels_last)
        if fused == "pixel_norm":
            torch.testing.assert_close(r.double(), factors, rtol=2e-3 if dtype == "tf32" else 1e-5, atol=0)
        if fused == "epilogue":
            # What is stored is rounded, and its sign is that of what it was.
            bits = (signs >> torch.arange(c_out, dtype=torch.int32) & 1).movedim(-1, 1).bool()
            assert torch.equal(bits, y > 0)
    assert count


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_gradient(order, dtype, stride, masked):
    op = torch.ops.pggan_fast_cuda_on_cpu.conv_halo_weight_gradient.default
    torch.manual_seed(4)
    for c_a, c_b in product((16, 32), repeat=2):
        if not has_weight_gradient(DTYPES[dtype], c_a, c_b, stride):
            continue
        a, b = (images(2, c, 19 * s, 36 * s + s - 1, DTYPES[dtype]) for c, s in ((c_a, 1), (c_b, stride)))
        args = (a, b, words(2, 19, 36, 1) if masked else None, stride, 0.1, 1.3, 0.26)
        found, expected = op(*args), _weight_gradient(a.double(), b.double(), *args[2:])
        # Sums in fp32; what is masked is rounded to the dtype, and fp32 is to tf32, masked or not.
        allowed = 2**-10 if dtype == "tf32" else 2**-8 if masked else 1e-6
        for part in (slice(-c_a), slice(-c_a, None)):
            assert (found[part] - expected[part]).abs().max() <= allowed * expected[part].abs().max()


def test_what_there_is_no_kernel_for_is_refused():
    op = torch.ops.pggan_fast_cuda_on_cpu.conv_halo.default
    args = list(arguments(torch.bfloat16, 16, 16, "plain", "epilogue", (8, 8)))
    with pytest.raises(RuntimeError, match="x must be channels_last"):
        op(args[0].contiguous(), *args[1:])
    with pytest.raises(RuntimeError, match="pixel norm needs a scale and a slope above 0"):
        op(*args[:8], "pixel_norm", 0.0, *args[10:])
    with pytest.raises(RuntimeError, match="allowed: epilogue, pixel_norm"):
        op(*args[:8], "bias", *args[9:])
    with pytest.raises(RuntimeError, match="there is no kernel for these channels"):
        op(*arguments(torch.bfloat16, 32, 32, "strided", "epilogue", (8, 8)))


@pytest.mark.parametrize(("norm", "up", "down"), [(False, 1, 1), (True, 1, 1), (True, 2, 1), (False, 1, 2)])
@pytest.mark.parametrize("dtype", ["bf16", "tf32"])
def test_a_training_step_of_a_layer(monkeypatch, dtype, norm, up, down):
    """Forward, both gradients, and a gradient penalty's, through the public formula on these kernels."""
    controls = build.load()
    monkeypatch.setattr(conv_halo_gradients, "_has_kernels", lambda x, more_memory: True)
    torch.manual_seed(5)
    c_in, c_out = (32, 16) if up == 2 else (16, 32) if down == 2 else (16, 16)
    x = images(1, c_in, 16, 18, DTYPES[dtype]).requires_grad_()
    weight, bias = torch.randn(c_out, c_in, 3, 3, requires_grad=True), torch.randn(c_out, requires_grad=True)
    options = (0.1, "lrelu", 0.2, 1.3, norm, 1e-8)

    def gradients():
        y, _ = HaloConv2d.apply(x, weight.view(weight.shape), bias.view(-1), (1, up, down), options, True)
        upstream = torch.ones_like(y).requires_grad_()
        found = list(torch.autograd.grad(y, (x, weight, bias), upstream, retain_graph=True))
        if not norm and up == 1:
            (dx,) = torch.autograd.grad(y, x, upstream, create_graph=True)
            found += torch.autograd.grad(dx.float().square().sum(), (upstream, weight))
        return [y, *found]

    expected = gradients()
    controls.take_launches()
    with cuda_kernels_on_cpu():
        found = gradients()
    names = {launch.name for launch in controls.take_launches()}
    assert {"conv_halo", "conv_halo_weight_gradient"} <= names
    for i, (ours, plain) in enumerate(zip(found, expected, strict=True)):
        # Both round each launch's result to bf16, or ours the operands to tf32. By that an activation's sign may differ
        # where it is near zero, one in a thousand, where the gradient is five times another.
        error = (ours.float() - plain.float()).square().mean().sqrt() / plain.float().square().mean().sqrt()
        assert error < (0.002 if dtype == "tf32" and i == 0 else 0.02)
