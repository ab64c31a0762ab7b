"""Edges: fp16 sums past its range, six dimensions, sizes of one and none, two layouts at once, the meta device."""

import itertools

import pytest
import torch

import pggan_fast
from pggan_fast import ops
from pggan_fast.ops.dispatch import unavailable_reason
from tests.ops.samples import SAMPLES

NATIVE = pytest.mark.skipif(unavailable_reason("native", "cpu") is not None, reason="no native kernels")
FUSED = [pytest.param("native", marks=NATIVE), "reference"]


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("rescaling", [{}, {"up": 2}, {"down": 2}], ids=str)
def test_fp16_overflows_only_where_eager_does(impl, rescaling):
    """512 channels of magnitude 8: the bare sum is up to 68 times the scaled one, past 65504."""
    random = torch.Generator().manual_seed(0)
    x = (8 * torch.randn(1, 512, 4, 4, generator=random)).half()
    weight = torch.randn(8, 512, 3, 3, generator=random).half()
    weight[0] = 1 + weight[0].abs()
    x = x.abs() + 8
    scale = (2 / 4608) ** 0.5
    wide = [t.double().requires_grad_() for t in (x, weight)]
    narrow = [t.clone().requires_grad_() for t in (x, weight)]
    y = ops.equalized_conv2d(*narrow, impl=impl, **rescaling)
    expected = ops.equalized_conv2d(*wide, weight_scale=scale, impl="reference", **rescaling)
    bare = ops.equalized_conv2d(*wide, weight_scale=1.0, impl="reference", **rescaling)
    assert bare.abs().max() > 65504 > expected.abs().max(), "the sample does not test what it says"
    assert y.isfinite().all()
    eps = torch.finfo(torch.float16).eps
    # The weights and the result are each rounded once, the sum is accumulated in fp32.
    bound = eps * (x.double().abs().amax() * weight.double().abs().amax() * 4608 * scale)
    assert (y.double() - expected).abs().max() <= bound
    dy = torch.full_like(y, 8.0)
    for order in (1, 2):
        actual = torch.autograd.grad(y, narrow, dy, create_graph=order == 1)
        exact = torch.autograd.grad(expected, wide, dy.double(), create_graph=order == 1)
        for a, e in zip(actual, exact, strict=True):
            assert a.isfinite().all()
            # Each of fp16's roundings is of a value not above the largest.
            torch.testing.assert_close(
                a.double(), e.to(a.dtype).double(), rtol=8 * eps, atol=8 * eps * e.abs().max().item()
            )
        if order == 1:
            y, expected = (sum(g.double().square().mean() for g in gs) for gs in (actual, exact))
            dy = torch.ones_like(y)


@pytest.mark.parametrize("impl", FUSED)
def test_fp16_dense_layer_overflows_only_where_eager_does(impl):
    x = torch.full((2, 8192), 8.0).half().requires_grad_()
    weight = torch.full((3, 8192), 4.0).half().requires_grad_()
    y = ops.equalized_linear(x, weight, impl=impl)
    expected = 8 * 4 * 8192 * (2 / 8192) ** 0.5
    torch.testing.assert_close(y, torch.full_like(y, expected), rtol=2e-3, atol=0)  # 2 roundings to fp16
    dx, dw = torch.autograd.grad(y, [x, weight], torch.ones_like(y))
    torch.testing.assert_close(dx, torch.full_like(dx, 3 * 4 * (2 / 8192) ** 0.5), rtol=4e-3, atol=0)
    torch.testing.assert_close(dw, torch.full_like(dw, 2 * 8 * (2 / 8192) ** 0.5), rtol=4e-3, atol=0)


@NATIVE
@pytest.mark.parametrize("pixel_norm", [False, True])
@pytest.mark.parametrize("dims", range(2, 8))
def test_channels_innermost_in_any_dimension_with_another_gradient(dims, pixel_norm):
    shape = (2, 6, 3, 2, 2, 3, 2)[:dims]
    values = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = values.movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()
    gradients = []
    for impl in ("native", "reference"):
        y = ops.bias_act(x, pixel_norm=pixel_norm, impl=impl)
        assert y.stride() == x.stride()
        (dx,) = torch.autograd.grad(y, x, torch.ones(shape, dtype=torch.float64), create_graph=True)
        gradients += [dx, *torch.autograd.grad(dx.square().sum() + (dx * y).sum(), x)]
    torch.testing.assert_close(gradients[:2], gradients[2:])


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 5), (5, 1)])
def test_down_without_a_block_is_empty(impl, h, w):
    x = torch.randn(2, 3, h, w).requires_grad_()
    weight, bias = torch.randn(4, 3, 3, 3).requires_grad_(), torch.randn(4).requires_grad_()
    for pixel_norm in (False, True):
        y = ops.equalized_conv2d(x, weight, bias, down=2, act="lrelu", pixel_norm=pixel_norm, impl=impl)
        assert y.shape == (2, 4, h // 2, w // 2)
        gradients = torch.autograd.grad(y.sum(), [x, weight, bias])
        assert [g.shape for g in gradients] == [t.shape for t in (x, weight, bias)]
        assert not any(g.any() for g in gradients)


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "permuted": lambda t: t.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
}
DEGENERATE = [s for s in itertools.product((0, 1, 2), (1, 4), (1, 2, 4), (1, 4))]
CALLS = {
    "bias_act": lambda x: ops.bias_act(x, pixel_norm=True),
    "conv": lambda x: ops.equalized_conv2d(x, x.new_ones(3, x.shape[1], 3, 3), act="lrelu"),
    "conv_to_one": lambda x: ops.equalized_conv2d(x, x.new_ones(1, x.shape[1], 1, 1)),
    "conv_up": lambda x: ops.equalized_conv2d(x, x.new_ones(3, x.shape[1], 3, 3), up=2),
    "conv_down": lambda x: ops.equalized_conv2d(x, x.new_ones(3, x.shape[1], 3, 3), down=2),
    "upsample2x": ops.upsample2x,
    "downsample2x": ops.downsample2x,
    "fade_in": lambda x: ops.fade_in(x, ops.upsample2x(x), 0.5),
    "fade_reals": lambda x: ops.fade_reals(ops.upsample2x(x), 0.5),
    "stddev": lambda x: ops.minibatch_stddev(x),
}


@NATIVE
@pytest.mark.filterwarnings("ignore:minibatch_stddev. no group size")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", CALLS)
def test_fake_strides_are_the_kernels(call, layout):
    for shape in DEGENERATE:
        x = LAYOUTS[layout](torch.randn(shape))
        real = CALLS[call](x)
        with torch._subclasses.FakeTensorMode() as mode:
            fake = CALLS[call](mode.from_tensor(x))
        assert fake.shape == real.shape, shape
        assert fake.stride() == real.stride(), shape
        if x.is_contiguous() and real.numel():
            assert real.is_contiguous(), shape


@NATIVE
@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 4, 1, 1), (1, 4, 8, 8), (1, 1, 1, 1)], ids=str)
def test_compiled_strides_are_the_kernels(shape):
    torch._dynamo.reset()
    x = torch.randn(shape[0], *shape[2:], shape[1]).permute(0, 3, 1, 2).requires_grad_()
    weight = torch.randn(4, shape[1], 3, 3, requires_grad=True)
    results = []
    for wrap in (lambda f: f, lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")):
        y = wrap(lambda x, w: ops.equalized_conv2d(x, w, act="lrelu", impl="native"))(x, weight)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, weight])])
    for eager, compiled in zip(*results, strict=True):
        assert eager.stride() == compiled.stride()
        torch.testing.assert_close(eager, compiled)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:minibatch_stddev. no group size")
@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_meta_device(sample):
    tensors = sample.tensors(torch.float32)
    expected = getattr(ops, sample.op)(*tensors.values(), **sample.options)
    there = [t.to("meta").requires_grad_(t.is_floating_point()) for t in tensors.values()]
    options = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in sample.options.items()}
    actual = getattr(ops, sample.op)(*there, **options)
    assert actual.is_meta and actual.shape == expected.shape and actual.dtype == expected.dtype
    leaves = [t for t in there if t.requires_grad]
    if leaves:
        gradients = torch.autograd.grad(actual.sum(), leaves)
        assert [g.shape for g in gradients] == [t.shape for t in leaves]
        assert all(g.is_meta for g in gradients)


def test_networks_on_the_meta_device():
    G = pggan_fast.Generator(16, fmap_base=64, fmap_max=8).to("meta")
    D = pggan_fast.Discriminator(16, fmap_base=64, fmap_max=8).to("meta")
    images = G(torch.empty(2, G.latent_dim, device="meta"), alpha=0.5)
    scores, _ = D(images, alpha=0.5)
    scores.sum().backward()
    assert images.shape == (2, 3, 16, 16) and scores.shape == (2,)
    assert any(p.grad is not None for p in D.parameters())
    assert all(p.grad is None or p.grad.is_meta for p in D.parameters())
