"""The passes of csrc/cuda over sign bits and images of few channels: values, bytes, a layer's step."""

from itertools import product

import pytest
import torch

from pggan_fast import reference
from pggan_fast.ops import conv, equalized_conv2d, sign_bits
from pggan_fast.ops.conv_rgb import _expand, _reduce, _weight_gradient
from pggan_fast.ops.conv_rgb_gradients import RGBConv2d, ToImage
from tests.cuda_on_cpu import build
from tests.ops.implementations import cuda_kernels_on_cpu

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Of the largest output: a rounding of the result, or the sums' in fp32.
ALLOWED = {"bf16": 2**-8, "fp16": 2**-11, "fp32": 2**-20}
# 16 channels fill half a word of sign bits, and 1024 in fp32 a block.
CHANNELS = (16, 32, 256, 1024)
EVERY = pytest.mark.parametrize("dtype", DTYPES)
SLOPES = (0.7, 1.3, 0.26)  # scale, then those of positive and of other values


def last(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def near(found: torch.Tensor, expected: torch.Tensor, allowed: float) -> bool:
    return bool((found.double() - expected).abs().max() <= allowed * expected.abs().max())


@pytest.fixture
def ops():
    controls = build.load()
    controls.set_order(controls.Order.shuffled, 1)
    torch.manual_seed(1)
    yield torch.ops.pggan_fast_cuda_on_cpu
    controls.set_order(controls.Order.ascending)


@pytest.mark.parametrize("c", CHANNELS)
@EVERY
def test_bias_act(ops, dtype, c):
    """Forward over x, and backward by what it wrote, beside the plain formula in fp64."""
    x, dy, bias = (*(last(3, c, 7, 5, dtype=DTYPES[dtype]) for _ in range(2)), torch.randn(c))
    y, expected = x.clone(memory_format=torch.preserve_format), x.double()
    bits = ops.bias_act_with_sign_bits_(y, bias, 0.7, 0.2, 1.3)
    assert torch.equal(bits, sign_bits._forward(expected, bias, 0.7, 0.2, 1.3))
    assert near(y, expected, ALLOWED[dtype])
    for needs_bias_grad in (False, True):
        found = ops.bias_act_backward_by_sign_bits(dy, bits, 0.7, 0.2, 1.3, needs_bias_grad)
        dx, db = sign_bits._backward(dy.double(), bits, 0.7, 0.2, 1.3, needs_bias_grad)
        assert near(found[0], dx, ALLOWED[dtype]) and found[0].stride() == dx.stride()
        assert found[1].shape == db.shape and (not needs_bias_grad or near(found[1], db, 1e-5))


@pytest.mark.parametrize("image", [1, 3])
@pytest.mark.parametrize("c", CHANNELS)
@EVERY
def test_images(ops, dtype, c, image):
    """Both directions and the weight's gradient, each with a mask and without, beside the plain formula in fp64."""
    narrow, wide = (last(3, channels, 7, 5, dtype=DTYPES[dtype]) for channels in (image, c))
    weight, allowed = torch.randn(c, image, 1, 1), ALLOWED[dtype]
    mask = sign_bits.pack_signs(torch.randn(3, c, 7, 5))
    for bits, bias in product((None, mask), (None, torch.randn(c))):
        y, signs = ops.conv_rgb_expand(narrow, weight, bias, bits, *SLOPES, True)
        expected, expected_signs = _expand(narrow.double(), weight, bias, bits, *SLOPES, True)
        assert near(y, expected, allowed) and y.stride() == expected.stride()
        assert signs.shape == expected_signs.shape
        # Sums in fp32 may fall on the other side of zero than those in fp64.
        differs = (
            sign_bits.unpack_signs(signs, expected) != sign_bits.unpack_signs(expected_signs, expected)
            if (bits is None)
            else torch.zeros(1, dtype=torch.bool)
        )
        assert not differs.any() or expected[differs].abs().max() < 1e-5
        assert ops.conv_rgb_expand(narrow, weight, bias, bits, *SLOPES, False)[1].numel() == 0
    for bits, bias in product((None, mask), (None, torch.randn(image))):
        y = ops.conv_rgb_reduce(wide, weight.transpose(0, 1), bias, bits, *SLOPES)
        expected = _reduce(wide.double(), weight.transpose(0, 1), bias, bits, *SLOPES)
        assert near(y, expected, max(allowed, 1e-5)) and y.stride() == expected.stride()
    for bits in (None, mask):
        found = ops.conv_rgb_weight_gradient(wide, narrow, bits, *SLOPES)
        expected = _weight_gradient(wide.double(), narrow.double(), bits, *SLOPES)
        for part in (slice(-c), slice(-c, None)):
            assert near(found[part], expected[part], 1e-5)
        found = ops.conv_rgb_weight_gradient(wide, narrow, bits, *SLOPES, True)
        expected = _weight_gradient(wide.double(), narrow.double(), bits, *SLOPES, True)
        assert len(found) == len(expected) == image * (c + 1)
        for part in (slice(-image), slice(-image, None)):
            assert near(found[part], expected[part], 1e-5)


@pytest.mark.parametrize("c", [16, 64, 512])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_bytes(ops, dtype, c):
    """At most 1.05 times the tensors' own, each once: rows of sums, weights and biases are what comes on top."""
    controls = build.load()
    size = (64, 64) if c == 16 else (2048 // c, 64)
    x, image = (last(2, channels, *size, dtype=DTYPES[dtype]) for channels in (c, 3))
    bits, weight, bias = sign_bits.pack_signs(x), torch.randn(c, 3, 1, 1), torch.randn(c)
    size, small, words = (t.numel() * t.element_size() for t in (x, image, bits))
    for own, call in (
        (2 * size + words, lambda: ops.bias_act_with_sign_bits_(x, bias, 0.7, 0.2, 1.3)),
        (2 * size + words, lambda: ops.bias_act_backward_by_sign_bits(x, bits, 0.7, 0.2, 1.3, True)),
        (size + small + words, lambda: ops.conv_rgb_expand(image, weight, bias, None, *SLOPES, True)),
        (size + small + words, lambda: ops.conv_rgb_reduce(x, weight.transpose(0, 1), None, bits, *SLOPES)),
        (size + small + words, lambda: ops.conv_rgb_weight_gradient(x, image, bits, *SLOPES)),
        (size + small + words, lambda: ops.conv_rgb_weight_gradient(x, image, bits, *SLOPES, True)),
    ):
        controls.take_launches()
        call()
        # Of words of 16 channels' bits readers leave the upper half out.
        own, moved = own - (words // 2 if c == 16 else 0), sum(t.loaded + t.stored for t in controls.take_launches())
        # A small GPU's blocks read a weight each.
        assert own <= moved <= 1.05 * own + 16 * 4 * 1024 * 4


def test_what_there_is_no_kernel_for_is_refused(ops):
    x, bits = last(1, 48, 4, 4, dtype=torch.float32), torch.zeros(1, 4, 4, 2, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="there are 48 channels, allowed: powers of two"):
        ops.bias_act_backward_by_sign_bits(x, bits, 0.7, 0.2, 1.3, True)
    with pytest.raises(RuntimeError, match="slope and gain above 0"):
        ops.bias_act_backward_by_sign_bits(x, bits, 0.7, 0.0, 1.3, True)
    with pytest.raises(RuntimeError, match="must be channels_last"):
        ops.bias_act_with_sign_bits_(torch.randn(1, 64, 4, 4), None, 0.7, 0.2, 1.3)
    with pytest.raises(RuntimeError, match="images have 2 channels, allowed: 1, 3"):
        ops.conv_rgb_expand(last(1, 2, 4, 4, dtype=torch.float32), torch.randn(16, 2, 1, 1), None, None, *SLOPES, True)
    with pytest.raises(RuntimeError, match="must be float32, bfloat16 or float16"):
        ops.bias_act_with_sign_bits_(last(1, 64, 4, 4, dtype=torch.float64), None, 0.7, 0.2, 1.3)
    with pytest.raises(RuntimeError, match="sign bits must be int32"):
        ops.bias_act_backward_by_sign_bits(x[:, :32], bits.long(), 0.7, 0.2, 1.3, True)


def test_nothing_comes_of_no_images(ops):
    x, bits = last(0, 64, 4, 4, dtype=torch.float32), torch.zeros(0, 4, 4, 2, dtype=torch.int32)
    assert ops.bias_act_with_sign_bits_(x, None, 0.7, 0.2, 1.3).shape == bits.shape
    dx, db = ops.bias_act_backward_by_sign_bits(x, bits, 0.7, 0.2, 1.3, True)
    assert dx.shape == x.shape and torch.equal(db, torch.zeros(64))
    assert not ops.conv_rgb_weight_gradient(x, x[:, :3], None, *SLOPES).any()


@pytest.mark.parametrize("layer", ["cuDNN", "image"])
def test_a_training_step_of_a_layer(monkeypatch, layer):
    """Forward, both gradients, and a gradient penalty's, on these kernels and on the general formula."""
    controls = build.load()
    torch.manual_seed(5)
    c_in, k = (3, 1) if layer == "image" else (5, 3)
    x = last(2, c_in, 8, 6, dtype=torch.bfloat16).requires_grad_()
    weight, bias = torch.randn(32, c_in, k, k, requires_grad=True), torch.randn(32, requires_grad=True)
    options = (0.1, "lrelu", 0.2, 1.3, False, 1e-8)

    def gradients(function):
        y, _ = function(x, weight.view(weight.shape), bias.view(-1))
        upstream = torch.ones_like(y).requires_grad_()
        found = list(torch.autograd.grad(y, (x, weight, bias), upstream, retain_graph=True))
        (dx,) = torch.autograd.grad(y, x, upstream, create_graph=True)
        return [y, *found, dx, *torch.autograd.grad(dx.float().square().sum(), (upstream, weight))]

    general = lambda *inputs: conv.EqualizedConv2d.apply(*inputs, (k // 2, 1, 1), options, "native", True)  # noqa: E731
    expected = gradients(general)
    monkeypatch.setattr(sign_bits, "has_gpu_kernels", lambda t: True)
    controls.take_launches()
    with cuda_kernels_on_cpu():
        found = gradients(general if layer == "cuDNN" else lambda *inputs: RGBConv2d.apply(*inputs, options, True))
    names = {launch.name for launch in controls.take_launches()}
    if layer == "image":
        assert names == {"conv_rgb_expand", "conv_rgb_reduce", "conv_rgb_weight_gradient"}
    else:
        assert {"bias_act_with_sign_bits_", "bias_act_backward_by_sign_bits"} <= names
        assert not names & {"bias_act_backward", "bias_act_double_backward"}
    for ours, plain in zip(found, expected, strict=True):
        # Both round each launch's result to bf16, and the general formula the weight.
        error = (ours.float() - plain.float()).square().mean().sqrt() / plain.float().square().mean().sqrt()
        assert error < 0.02


def all_orders(function, x, weight, bias, dy, probes):
    """Return y, the gradients of x, weight and bias, and the second order of each by a probe, and what launched."""
    controls = build.load()
    x, weight, dy = (t.detach().requires_grad_() for t in (x, weight, dy))
    bias = None if bias is None else bias.detach().requires_grad_()
    inputs = [t for t in (x, weight, bias) if t is not None]
    controls.take_launches()
    y = function(x, weight, bias)
    forward = [launch.name for launch in controls.take_launches()]
    first = torch.autograd.grad(y, inputs, dy, retain_graph=True)
    backward = [launch.name for launch in controls.take_launches()]
    second = []
    for t, probe in zip(inputs, probes, strict=False):
        (gradient,) = torch.autograd.grad(y, t, dy, create_graph=True)
        others = [o for o in (dy, x, weight) if o is not t]
        found = torch.autograd.grad(gradient, others, probe, allow_unused=True, retain_graph=True)
        second += [g for g in found if g is not None]
    return [y, *first], second, forward, backward


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("image", [1, 3])
@pytest.mark.parametrize("c", [16, 64, 512])
@EVERY
def test_a_layer_to_images(monkeypatch, dtype, c, image, biased):
    """Values, gradients and second order beside the reference in fp64, by one launch and three.

    The weight's gradient brings the bias's. The probes are drawn, so that each result is rounded once.
    """

    def by_torch(self, dz):
        assert torch.is_grad_enabled(), "torch's sum is a launch more"
        return of_torch(self, dz)

    of_torch = ToImage.bias_gradient
    monkeypatch.setattr(ToImage, "bias_gradient", by_torch)
    monkeypatch.setattr(sign_bits, "has_gpu_kernels", lambda t: True)
    torch.manual_seed(3)
    kind = dict(dtype=DTYPES[dtype])
    x, dy, v = last(2, c, 6, 5, **kind), last(2, image, 6, 5, **kind), last(2, c, 6, 5, **kind)
    weight, bias = torch.randn(image, c, 1, 1), torch.randn(image) if biased else None
    inputs = (x, weight, bias, dy)
    probes = (v, torch.randn_like(weight), torch.randn(image))
    options = dict(weight_scale=0.7, gain=1.3)
    with cuda_kernels_on_cpu():
        ours = all_orders(lambda *t: equalized_conv2d(*t, **options, impl="native"), *inputs, probes)
    wide = [[t if t is None else t.double() for t in group] for group in (inputs, probes)]
    plain = all_orders(lambda *t: reference.equalized_conv2d(*t, **options), *wide[0], wide[1])
    assert ours[2] == ["conv_rgb_reduce"]
    assert ours[3] == ["conv_rgb_expand", *["conv_rgb_weight_gradient"] * 2]
    # Of x: by dy and weight; of the weight: by dy and x; of the bias: by dy.
    assert len(ours[1]) == len(plain[1]) == 4 + biased
    for found, expected in zip(ours[0] + ours[1], plain[0] + plain[1], strict=True):
        # What is not an image's or a wide tensor's is in fp32 throughout, and images are sums in fp32.
        allowed = max(ALLOWED[dtype], 1e-5) if found.dtype == DTYPES[dtype] else 1e-5
        assert found.shape == expected.shape and near(found, expected, allowed)


def test_a_layer_from_images_reads_gradients_of_any_layout(monkeypatch):
    """A contiguous dy and one at an odd address, as of dense tensors, with and without a graph."""
    monkeypatch.setattr(sign_bits, "has_gpu_kernels", lambda t: True)
    torch.manual_seed(4)
    x, dy = last(2, 3, 4, 3, dtype=torch.bfloat16).requires_grad_(), last(2, 32, 4, 3, dtype=torch.bfloat16)
    odd = torch.zeros(dy.numel() + 1, dtype=dy.dtype)[1:].view(2, 4, 3, 32).permute(0, 3, 1, 2).copy_(dy)
    weight, bias = torch.randn(32, 3, 1, 1, requires_grad=True), torch.randn(32).bfloat16().requires_grad_()
    with cuda_kernels_on_cpu():
        y = equalized_conv2d(x, weight, bias, weight_scale=0.7, act="lrelu", impl="native")
        for inputs, graph in (((x, weight, bias), False), ((x,), True)):
            found = [torch.autograd.grad(y, inputs, d, True, graph) for d in (dy, dy.contiguous(), odd)]
            for others in found[1:]:
                assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_a_layer_to_images_reads_gradients_of_any_layout(monkeypatch):
    """A contiguous dy, a wide gradient at an odd address, single pixels, no images: as of dense tensors."""
    monkeypatch.setattr(sign_bits, "has_gpu_kernels", lambda t: True)
    torch.manual_seed(4)
    weight, bias = torch.randn(3, 32, 1, 1), torch.randn(3).bfloat16()
    probes = (torch.randn(3, 32, 1, 1), torch.randn(3).bfloat16())
    for size in ((2, 4, 3), (2, 1, 1), (0, 4, 3)):
        n, h, w = size
        kind = dict(dtype=torch.bfloat16)
        x, dy, v = last(n, 32, h, w, **kind), last(n, 3, h, w, **kind), last(n, 32, h, w, **kind)
        odd = torch.zeros(v.numel() + 1, **kind)[1:].view(n, h, w, 32).permute(0, 3, 1, 2).copy_(v)
        with cuda_kernels_on_cpu():
            layer = lambda *t: equalized_conv2d(*t, weight_scale=0.7, impl="native")  # noqa: E731
            expected = all_orders(layer, x, weight, bias, dy, (v, *probes))
            found = all_orders(layer, x, weight, bias, dy.contiguous(), (odd, *probes))
        assert expected[2] == (["conv_rgb_reduce"] if n else [])
        assert expected[0][3].dtype == torch.bfloat16
        for a, b in zip(found[0] + found[1], expected[0] + expected[1], strict=True):
            assert torch.equal(a, b)


def test_a_gradient_penalty_through_a_layer_to_images_takes_the_kernels_alone(monkeypatch):
    """The images' gradient with a graph is one launch; its own gradients are two kinds, and no general formula."""
    monkeypatch.setattr(sign_bits, "has_gpu_kernels", lambda t: True)
    controls = build.load()
    x = last(2, 32, 4, 4, dtype=torch.bfloat16).requires_grad_()
    weight, bias = torch.randn(3, 32, 1, 1, requires_grad=True), torch.randn(3, requires_grad=True)
    with cuda_kernels_on_cpu():
        y = equalized_conv2d(x, weight, bias, impl="native")
        upstream = torch.ones_like(y).requires_grad_()
        controls.take_launches()
        (dx,) = torch.autograd.grad(y, x, upstream, create_graph=True)
        assert [launch.name for launch in controls.take_launches()] == ["conv_rgb_expand"]
        torch.autograd.grad(dx.float().square().sum(), (upstream, weight))
        names = [launch.name for launch in controls.take_launches()]
    assert sorted(names) == ["conv_rgb_reduce", *["conv_rgb_weight_gradient"] * 2]
