"""equalized_conv2d and equalized_linear: which convolutions run, what is kept, gradient penalties, autocast."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pggan_fast import ops, reference
from pggan_fast.ops.registry import TRITON_INSTALLED
from tests.ops.implementations import IMPLEMENTATIONS
from tests.tolerances import AUTOCAST, EXACT, rms


class Convolutions(TorchDispatchMode):
    """Count convolutions by what they compute, wherever they are called from: y, dx or dw."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.of_triton = []
        if TRITON_INSTALLED:
            from pggan_fast.ops import conv_fused

            kinds = {"forward": "y", "_convolution": "y", "_input_gradient": "dx", "_weight_gradient": "dw"}
            self.of_triton = [self._counted(conv_fused, name, kind) for name, kind in kinds.items()]

    def _counted(self, module, name: str, kind: str):
        run = getattr(module, name)

        def counting(*args, **kwargs):
            self.calls.append(kind)
            return run(*args, **kwargs)

        return patch.object(module, name, counting)

    def __enter__(self):
        for counted in self.of_triton:
            counted.start()
        return super().__enter__()

    def __exit__(self, *error):
        for counted in self.of_triton:
            counted.stop()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            dx, dw, _ = args[-1]
            self.calls += ["dx"] * dx + ["dw"] * dw
        elif func is torch.ops.aten.convolution.default:
            self.calls.append("y")
        return func(*args, **kwargs or {})


def _network(conv, images, weights, biases, alpha=1.0):
    """A small discriminator: conv, conv with down=2, sum."""
    y = conv(images, weights[0], biases[0], act="lrelu")
    y = conv(y, weights[1], biases[1], down=2, act="lrelu")
    return y.square().sum((1, 2, 3))


def _parameters(dtype=torch.float64):
    random = torch.Generator().manual_seed(3)
    shapes = [(6, 3, 3, 3), (4, 6, 3, 3)]
    weights = [torch.nn.Parameter(torch.randn(s, generator=random, dtype=torch.float64).to(dtype)) for s in shapes]
    biases = [torch.nn.Parameter(torch.randn(s[0], generator=random, dtype=torch.float64).to(dtype)) for s in shapes]
    return torch.randn(2, 3, 6, 6, generator=random, dtype=torch.float64).to(dtype), weights, biases


def _eager_conv(x, weight, bias, *, up=1, down=1, act="linear", pixel_norm=False):
    x = F.interpolate(x, scale_factor=2.0, mode="nearest") if up == 2 else x
    y = F.conv2d(x, weight * (2 / weight[0].numel()) ** 0.5, padding="same")
    y = (F.avg_pool2d(y, 2) if down == 2 else y) + bias.view(1, -1, 1, 1)
    y = F.leaky_relu(y, 0.2) if act == "lrelu" else y
    return y / (y.square().mean(1, keepdim=True) + 1e-8).sqrt() if pixel_norm else y


def test_gradient_of_images_alone_needs_no_weight_gradients(fused):
    """The first half of a gradient penalty asks for dx; a weight gradient there is thrown away."""
    images, weights, biases = _parameters()
    images.requires_grad_()
    scores = _network(fused.function("equalized_conv2d"), images, weights, biases)
    with Convolutions() as seen:
        (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    assert sorted(seen.calls) == ["dx", "dx"]
    with Convolutions() as seen:
        penalty = gradient.square().sum()
        torch.autograd.grad(penalty, weights)
    # Weight gradients of both, from the penalty's own two convolutions and from what those pass back to the first.
    assert seen.calls.count("dw") <= 4
    assert "dw" in seen.calls


def test_weights_gradient_alone_needs_no_image_gradient(fused):
    images, weights, biases = _parameters()
    y = fused.function("equalized_conv2d")(images, weights[0], biases[0], act="lrelu")
    with Convolutions() as seen:
        y.sum().backward()
    assert seen.calls == ["dw"]


def test_an_input_whose_gradient_is_not_asked_for_gets_none(fused):
    """The images of a gradient penalty, when the penalty itself is differentiated."""
    images, weights, biases = _parameters()
    images.requires_grad_()
    scores = _network(fused.function("equalized_conv2d"), images, weights, biases)
    with Convolutions() as seen:
        scores.sum().backward(inputs=weights)
    assert sorted(seen.calls) == ["dw", "dw", "dx"]
    assert images.grad is None and weights[0].grad is not None


def test_frozen_weights_get_no_gradient(fused):
    """The discriminator in the generator's step: its weights do not require gradients."""
    images, weights, biases = _parameters()
    images.requires_grad_()
    scores = _network(fused.function("equalized_conv2d"), images, [w.detach() for w in weights], biases)
    with Convolutions() as seen:
        scores.sum().backward()
    assert sorted(seen.calls) == ["dx", "dx"]


@pytest.mark.parametrize("rescaling", [{}, {"up": 2}, {"down": 2}], ids=str)
@pytest.mark.parametrize("pixel_norm", [False, True])
def test_gradient_penalty_is_torchs(implementation, rescaling, pixel_norm):
    """First and second order against torch's own double backward of interpolate, conv2d and avg_pool2d."""

    def gradients(conv):
        images, weights, biases = _parameters()
        images.requires_grad_()
        y = conv(images, weights[0], biases[0], act="lrelu", pixel_norm=pixel_norm, **rescaling)
        y = conv(y, weights[1], biases[1], act="lrelu").tanh()
        (dx,) = torch.autograd.grad(y.square().sum(), images, create_graph=True)
        penalty = (dx.square().sum((1, 2, 3)).sqrt() - 1).square().mean()
        return y, dx, *torch.autograd.grad(penalty + y.mean(), [images, *weights, *biases])

    for actual, expected in zip(
        gradients(implementation.function("equalized_conv2d")), gradients(_eager_conv), strict=True
    ):
        torch.testing.assert_close(actual, expected, **EXACT)


def test_linear_gradient_penalty_is_torchs(implementation):
    def gradients(linear):
        random = torch.Generator().manual_seed(4)
        x, weight, bias = (
            torch.randn(s, generator=random, dtype=torch.float64).requires_grad_() for s in [(5, 7), (6, 7), (6,)]
        )
        y = linear(x, weight, bias)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return y, dx, *torch.autograd.grad((dx.norm(dim=1) - 1).square().mean(), [x, weight, bias])

    def eager(x, weight, bias):
        return F.leaky_relu(F.linear(x, weight * (2 / 7) ** 0.5, bias), 0.2)

    op = implementation.function("equalized_linear")
    for actual, expected in zip(gradients(lambda *t: op(*t, act="lrelu")), gradients(eager), strict=True):
        torch.testing.assert_close(actual, expected, **EXACT)


@pytest.mark.parametrize(("pixel_norm", "act", "kept"), [(True, "lrelu", 4), (False, "lrelu", 3), (False, "linear", 2)])
@pytest.mark.parametrize("rescaling", [{}, {"up": 2}, {"down": 2}], ids=str)
def test_only_x_weight_y_and_r_are_kept(request, fused, rescaling, pixel_norm, act, kept):
    """No upsampled image, no pre-activation, no folded weight; where a launch is fused, for y a bit of each value."""
    saved = []
    images, weights, biases = _parameters()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = fused.function("equalized_conv2d")(
            images, weights[0], biases[0], act=act, pixel_norm=pixel_norm, **rescaling
        )
    assert len(saved) == kept
    here = {t.data_ptr() for t in (images, weights[0], y)}
    others = [t for t in saved if t.data_ptr() not in here]
    signs = [t.shape for t in others if t.dtype == torch.int32]
    in_one_launch = "triton" in request.node.callspec.params["fused"]
    packed = in_one_launch and act == "lrelu" and not pixel_norm and "up" not in rescaling
    assert signs == [(*y.shape[:1], *y.shape[2:], 1)] * packed
    assert [t.shape[1] for t in others if t.dtype != torch.int32] == [1] * pixel_norm


@pytest.mark.skipif("triton" not in IMPLEMENTATIONS, reason="in Triton's interpreter: TRITON_INTERPRET=1")
def test_signs_are_written_only_for_a_backward():
    from pggan_fast.ops import conv_fused

    images, weights, biases = _parameters()
    frozen = [t.detach() for t in (weights[0], biases[0])]
    with patch.object(conv_fused, "convolve", side_effect=conv_fused.convolve) as launched:
        for given, context in (
            ((weights[0], biases[0]), torch.enable_grad()),
            ((weights[0], biases[0]), torch.no_grad()),
            ((weights[0], biases[0]), torch.inference_mode()),
            (frozen, torch.enable_grad()),
        ):
            with context:
                ops.equalized_conv2d(images, *given, act="lrelu", impl="triton")
    assert [call.kwargs["keep_sign_bits"] for call in launched.call_args_list] == [True, False, False, False]
    y, r = torch.ops.pggan_fast_triton.equalized_conv2d(images, weights[0], biases[0], 1)
    assert y.requires_grad and r.numel() == 0 and r.dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "rescaling"),
    [
        ("equalized_conv2d", {}),
        ("equalized_conv2d", {"up": 2}),
        ("equalized_conv2d", {"down": 2}),
        ("equalized_linear", {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("implementation", ["reference", "native"], indirect=True)
def test_bf16_autocast(implementation, name, rescaling):
    """The convolution follows autocast, the epilogue does not; no worse than what autocast makes of plain torch."""
    images, (weight, _), (bias, _) = _parameters(torch.float32)
    inputs = [images, weight, bias + 8 * (-1) ** torch.arange(6)]  # off the kink of the activation, as in samples.py
    if name == "equalized_linear":
        inputs[:2] = images.flatten(2).mean(1)[:, :27], weight.flatten(1)

    def run(function, dtype, enabled):
        leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = function(*leaves, act="lrelu", pixel_norm=True, **rescaling)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(6)).bfloat16()
        return y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))

    def eager_linear(x, weight, bias, *, act, pixel_norm):
        y = F.leaky_relu(F.linear(x, weight * (2 / weight.shape[1]) ** 0.5, bias), 0.2)
        return y / (y.square().mean(1, keepdim=True) + 1e-8).sqrt()

    eager = _eager_conv if name == "equalized_conv2d" else eager_linear
    exact = run(getattr(reference, name), torch.float64, False)
    actual, plain = run(implementation.function(name), torch.float32, True), run(eager, torch.float32, True)
    assert actual[0].dtype == torch.bfloat16
    for a, p, e in zip(actual, plain, exact, strict=True):
        error, eager_error = rms(a.double() - e), rms(p.double() - e)
        assert error <= AUTOCAST.factor * eager_error + AUTOCAST.floor * rms(e), rms(e)
    assert [t.dtype for t in actual[1:]] == [torch.float32] * 3


@pytest.mark.parametrize("name", ["equalized_conv2d", "equalized_linear"])
@pytest.mark.parametrize("implementation", ["torch_ops", "composite"], indirect=True)
def test_torch_ops_compute_in_the_dtype_of_x(implementation, name):
    """Under autocast too: it is the public function that follows autocast, and casts x."""
    images, (weight, _), (bias, _) = _parameters(torch.float32)
    x, weight = (
        (images, weight) if name == "equalized_conv2d" else (images.flatten(2)[:, :, :27].mean(1), weight.flatten(1))
    )
    inputs = [x.requires_grad_(), weight.detach().requires_grad_(), bias]

    def run():
        y = implementation.function(name)(*inputs, act="lrelu")
        return y, *torch.autograd.grad(y.square().sum(), inputs)

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        y = implementation.function(name)(*inputs, act="lrelu")
    actual = y, *torch.autograd.grad(y.square().sum(), inputs)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, e)


def test_autocast_leaves_bias_and_statistics_in_fp32(fused):
    """-1 + 1.001 is 0.001; with the bias in bf16 it would be 0."""
    bias = torch.full((4,), 1.001)
    with torch.autocast("cpu", torch.bfloat16):
        y = fused.function("equalized_linear")(torch.ones(2, 1), -torch.ones(4, 1), bias, weight_scale=1.0)
        _, r = torch.ops.pggan_fast.bias_act(torch.ones(2, 4, dtype=torch.bfloat16), bias, pixel_norm=True)
    torch.testing.assert_close(y.float(), torch.full((2, 4), 0.001), rtol=1e-2, atol=0)
    assert r.dtype == torch.float32
