"""equalized_conv2d from and to images and by sign bits: values, gradients in fp64, and where the kernels are taken.

The kernels themselves run in tests/cuda_on_cpu/test_sign_bits.py.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pggan_fast import ops, reference
from pggan_fast.ops import conv, conv_rgb_gradients, sign_bits
from pggan_fast.ops.conv_rgb_gradients import RGBConv2d, ToImage, ToImageConv2d, takes, takes_to_image

OPTIONS = (0.3, "lrelu", 0.2, 1.3, False, 1e-8)
LINEAR = (0.3, "linear", 0.2, 1.3, False, 1e-8)


@pytest.fixture
def kernels_here(monkeypatch):
    """Take the CUDA kernels to be here: their formulas in plain PyTorch compute what they would."""
    monkeypatch.setattr(sign_bits, "has_gpu_kernels", lambda t: True)


def channels_last(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).contiguous(memory_format=torch.channels_last)


def image_layer(x, weight, bias):
    # A view, since what is a leaf cannot tell whether its gradient will be used.
    return RGBConv2d.apply(x, weight.view_as(weight), bias.view_as(bias), OPTIONS, torch.is_grad_enabled())[0]


def inputs(size: tuple[int, int] = (2, 3)) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    weight, bias = torch.randn(4, 3, 1, 1, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    return tuple(t.requires_grad_() for t in (channels_last(1, 3, *size), weight, bias))


def test_images_are_the_reference():
    x, weight, bias = inputs()
    scale, act, slope, gain, *_ = OPTIONS
    expected = reference.equalized_conv2d(x, weight, bias, weight_scale=scale, act=act, slope=slope, gain=gain)
    torch.testing.assert_close(image_layer(x, weight, bias), expected)


def test_gradients_of_images():
    """First and second order of every input, in fp64 against differences of values."""
    assert torch.autograd.gradcheck(image_layer, inputs())
    assert torch.autograd.gradgradcheck(image_layer, inputs())


def test_a_gradient_penalty_of_images_takes_the_kernels_alone(monkeypatch):
    def refuse(*args):
        raise AssertionError("the general formula was asked")

    monkeypatch.setattr(conv_rgb_gradients, "differentiable_gradients", refuse)
    x, weight, bias = inputs()
    seconds = []
    for function in (image_layer, lambda *t: reference.equalized_conv2d(*t, weight_scale=0.3, act="lrelu", gain=1.3)):
        y = function(x, weight, bias)
        upstream = torch.ones_like(y).requires_grad_()
        (dx,) = torch.autograd.grad(y, x, upstream, create_graph=True)
        seconds.append((dx, *torch.autograd.grad(dx.square().sum(), (upstream, weight))))
    torch.testing.assert_close(*seconds)


def test_where_images_are_taken(kernels_here):
    x, weight = channels_last(1, 3, 8, 8, dtype=torch.bfloat16), torch.randn(16, 3, 1, 1)
    assert takes(x, weight, (0, 1, 1), OPTIONS, "native")
    for image, filters, geometry, options, impl in (
        (x, weight, (0, 1, 1), OPTIONS, "triton"),
        (x.double(), weight, (0, 1, 1), OPTIONS, "native"),
        (x.contiguous(), weight, (0, 1, 1), OPTIONS, "native"),
        (x[:, :2], weight[:, :2], (0, 1, 1), OPTIONS, "native"),
        (x, torch.randn(16, 3, 3, 3), (1, 1, 1), OPTIONS, "native"),
        (x, torch.randn(48, 3, 1, 1), (0, 1, 1), OPTIONS, "native"),
        (x, weight.bfloat16(), (0, 1, 1), OPTIONS, "native"),
        (x, weight, (0, 1, 2), OPTIONS, "native"),
        (x, weight, (0, 1, 1), (0.3, "linear", 0.2, 1.3, False, 1e-8), "native"),
        (x, weight, (0, 1, 1), (0.3, "lrelu", 0.0, 1.3, False, 1e-8), "native"),
        (x, weight, (0, 1, 1), (0.3, "lrelu", 0.2, 1.3, True, 1e-8), "native"),
    ):
        assert not takes(image, filters, geometry, options, impl)


def test_a_gpu_is_needed():
    x = channels_last(1, 3, 8, 8, dtype=torch.bfloat16)
    assert not takes(x, torch.randn(16, 3, 1, 1), (0, 1, 1), OPTIONS, "native")


@pytest.mark.parametrize("down", [1, 2])
def test_sign_bits_after_torchs_convolution(kernels_here, monkeypatch, down):
    """Values, gradients and a penalty's in fp32 as without sign bits; y is not kept."""
    monkeypatch.setattr(sign_bits, "has_passes", lambda t, channels: t.dtype == torch.float32)
    torch.manual_seed(2)
    x = channels_last(2, 6, 8, 8, dtype=torch.float32).requires_grad_()
    weight, bias = torch.randn(32, 6, 3, 3, requires_grad=True), torch.randn(32, requires_grad=True)

    def values():
        y, _ = conv.EqualizedConv2d.apply(
            x, weight.view(weight.shape), bias.view(-1), (1, 1, down), OPTIONS, "native", True
        )
        upstream = torch.ones_like(y).requires_grad_()
        first = torch.autograd.grad(y, (x, weight, bias), upstream, retain_graph=True)
        (dx,) = torch.autograd.grad(y, x, upstream, create_graph=True)
        second = torch.autograd.grad(dx.square().sum(), (upstream, weight), retain_graph=True)
        (dw,) = torch.autograd.grad(y, weight, upstream, create_graph=True)
        return y, *first, dx, *second, *torch.autograd.grad(dw.square().sum(), (upstream, x))

    y, _ = conv.EqualizedConv2d.apply(x, weight, bias, (1, 1, down), OPTIONS, "native", True)
    kept = [t for t in y.grad_fn.saved_tensors if t is not None]
    assert torch.int32 in {t.dtype for t in kept} and y.shape not in {t.shape for t in kept}
    found = values()
    monkeypatch.setattr(conv, "_has_passes_for_sign_bits", lambda *args: False)
    for ours, expected in zip(found, values(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_public_function_takes_images(kernels_here, monkeypatch):
    calls = []
    taken = RGBConv2d.apply
    monkeypatch.setattr(conv.RGBConv2d, "apply", lambda *a: calls.append(a) or taken(*a))
    torch.manual_seed(2)
    x = channels_last(2, 3, 8, 8, dtype=torch.float32).requires_grad_()
    weight, bias = torch.randn(32, 3, 1, 1, requires_grad=True), torch.randn(32, requires_grad=True)
    impl = "native" if sign_bits._native.cpu_available else "auto"
    y = ops.equalized_conv2d(x, weight, bias, act="lrelu", impl=impl)
    assert len(calls) == 1
    torch.testing.assert_close(y, reference.equalized_conv2d(x, weight, bias, act="lrelu"))


def to_image(x, weight, bias):
    bias = None if bias is None else bias.view_as(bias)
    return ToImageConv2d.apply(x, weight.view_as(weight), bias, LINEAR)[0]


def wide_inputs(image: int = 3) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    weight, bias = torch.randn(image, 4, 1, 1, dtype=torch.float64), torch.randn(image, dtype=torch.float64)
    return tuple(t.requires_grad_() for t in (channels_last(1, 4, 2, 3), weight, bias))


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("image", [1, 3])
def test_values_and_gradients_to_images(image, biased):
    """Values are the reference's; first and second order of every input in fp64 against differences of values."""
    x, weight, bias = wide_inputs(image)
    bias = bias if biased else None
    expected = reference.equalized_conv2d(x, weight, bias, weight_scale=0.3, gain=1.3)
    y = to_image(x, weight, bias)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.autograd.gradcheck(to_image, (x, weight, bias))
    assert torch.autograd.gradgradcheck(to_image, (x, weight, bias))


@pytest.mark.parametrize("needs", [(0,), (1,), (2,), (0, 2), (1, 2), (0, 1, 2)])
def test_each_gradient_to_images_is_there_without_the_others(needs):
    x, weight, bias = (t.detach() for t in wide_inputs())
    inputs = [(x, weight, bias)[i].requires_grad_() for i in needs]
    found = torch.autograd.grad(to_image(x, weight, bias).square().sum(), inputs)
    expected = reference.equalized_conv2d(x, weight, bias, weight_scale=0.3, gain=1.3).square().sum()
    torch.testing.assert_close(found, torch.autograd.grad(expected, inputs))


def test_where_convolutions_to_images_are_taken(kernels_here):
    x, weight = channels_last(1, 16, 8, 8, dtype=torch.bfloat16), torch.randn(3, 16, 1, 1)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert takes_to_image(x.to(dtype), weight, (0, 1, 1), LINEAR, "native")
        assert takes_to_image(x.to(dtype), weight[:1], (0, 1, 1), LINEAR, "native")
    unaligned = torch.zeros(x.numel() + 1, dtype=x.dtype)[1:].view(1, 8, 8, 16).permute(0, 3, 1, 2)
    assert unaligned.is_contiguous(memory_format=torch.channels_last)
    few, many = channels_last(1, 8, 8, 8, dtype=x.dtype), channels_last(1, 48, 8, 8, dtype=x.dtype)
    for wide, filters, geometry, options, impl in (
        (x, weight, (0, 1, 1), LINEAR, "triton"),
        (x.double(), weight, (0, 1, 1), LINEAR, "native"),
        (x.contiguous(), weight, (0, 1, 1), LINEAR, "native"),
        (unaligned, weight, (0, 1, 1), LINEAR, "native"),
        (torch.nn.Parameter(x), weight, (0, 1, 1), LINEAR, "native"),
        (few, torch.randn(3, 8, 1, 1), (0, 1, 1), LINEAR, "native"),
        (many, torch.randn(3, 48, 1, 1), (0, 1, 1), LINEAR, "native"),
        (x, torch.randn(2, 16, 1, 1), (0, 1, 1), LINEAR, "native"),
        (x, torch.randn(16, 16, 1, 1), (0, 1, 1), LINEAR, "native"),
        (x, torch.randn(3, 16, 3, 3), (1, 1, 1), LINEAR, "native"),
        (x, weight.bfloat16(), (0, 1, 1), LINEAR, "native"),
        (x, weight, (1, 1, 1), LINEAR, "native"),
        (x, weight, (0, 2, 1), LINEAR, "native"),
        (x, weight, (0, 1, 2), LINEAR, "native"),
        (x, weight, (0, 1, 1), OPTIONS, "native"),
        (x, weight, (0, 1, 1), (0.3, "linear", 0.2, 0.0, False, 1e-8), "native"),
        (x, weight, (0, 1, 1), (0.3, "linear", 0.2, 1.3, True, 1e-8), "native"),
    ):
        assert not takes_to_image(wide, filters, geometry, options, impl)


def test_a_gpu_is_needed_for_convolutions_to_images():
    x = channels_last(1, 16, 8, 8, dtype=torch.bfloat16)
    assert not takes_to_image(x, torch.randn(3, 16, 1, 1), (0, 1, 1), LINEAR, "native")


def test_the_public_function_takes_convolutions_to_images_and_no_others(kernels_here, monkeypatch):
    calls = []
    taken = ToImageConv2d.apply
    monkeypatch.setattr(conv.ToImageConv2d, "apply", lambda *a: calls.append(a) or taken(*a))
    torch.manual_seed(2)
    x = channels_last(2, 16, 8, 8, dtype=torch.float32).requires_grad_()
    impl = "native" if sign_bits._native.cpu_available else "auto"
    for c_out, k, options, expected in (
        (3, 1, {}, 1),
        (1, 1, dict(gain=0.5), 1),
        (3, 1, dict(act="lrelu"), 0),
        (3, 3, {}, 0),
        (16, 1, {}, 0),
        (4, 1, {}, 0),
    ):
        weight, bias = torch.randn(c_out, 16, k, k, requires_grad=True), torch.randn(c_out, requires_grad=True)
        calls.clear()
        y = ops.equalized_conv2d(x, weight, bias, **options, impl=impl)
        assert len(calls) == expected
        torch.testing.assert_close(y, reference.equalized_conv2d(x, weight, bias, **options))


def test_fake_tensors_to_images_are_as_real_ones(kernels_here):
    """Shapes, dtypes and strides, of the layer in a traced graph and of each launch."""
    x, weight, bias = channels_last(2, 16, 4, 6, dtype=torch.bfloat16), torch.randn(3, 16, 1, 1), torch.randn(3)
    dy = channels_last(2, 3, 4, 6, dtype=torch.bfloat16)

    def found(x, weight, bias, dy):
        inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
        impl = "native" if sign_bits._native.cpu_available else "auto"
        y = ops.equalized_conv2d(*inputs, impl=impl)
        launches = ToImage(0.7).forward(x, weight), *ToImage(0.7).gradients(dy, x, weight, (True, True))
        return y, *torch.autograd.grad(y, inputs, dy), *launches

    real = found(x, weight, bias, dy)
    with FakeTensorMode() as mode:
        fake = found(*(mode.from_tensor(t) for t in (x, weight, bias, dy)))
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
