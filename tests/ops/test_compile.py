"""torch.compile(fullgraph=True): every public function and its gradients, a gradient penalty, one run of Inductor."""

import shutil
from contextlib import nullcontext

import pytest
import torch

from pggan_fast import ops, use_impl
from pggan_fast.ops.dispatch import unavailable_reason
from tests.ops.samples import SAMPLES, Sample, laid_out
from tests.tolerances import COMPILED

LABELS = {
    "bias_act": ("norm", "defaults", "linear", "dense"),
    "pixel_norm": ("image",),
    "equalized_conv2d": ("generator", "up", "down", "no_bias", "fp32_weight_up"),
    "equalized_linear": ("norm", "no_bias"),
    "upsample2x": ("odd",),
    "downsample2x": ("odd",),
    "fade_in": ("tensor", "number"),
    "fade_reals": ("tensor", "uint8"),
    "minibatch_stddev": ("n8", "n6_consecutive"),
    "filtered_lrelu": ("same_size", "no_bias"),
    "upfirdn2d": ("blur", "up_1d", "lopsided"),
}
COMPILABLE = [s for s in SAMPLES if s.label in LABELS[s.op]]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# Triton's graphs are another test's, tests/kernels/test_graph_compiled.py: the interpreter has none.
@pytest.fixture(params=["native", "reference"])
def impl(request):
    if (reason := unavailable_reason(request.param, "cpu")) is not None:
        pytest.skip(reason)
    with use_impl(request.param):
        yield request.param


def _results(function, sample: Sample, layout: str, dtype: torch.dtype) -> list[torch.Tensor]:
    tensors = [laid_out(t, layout) for t in sample.tensors(dtype).values()]
    inputs = [t.requires_grad_() for t in tensors if t.is_floating_point()]
    y = function(*tensors, **sample.options)
    return [y, *(torch.autograd.grad(y.float().square().sum(), inputs) if y.requires_grad else ())]


@pytest.mark.parametrize(
    ("layout", "dtype"), [("contiguous", torch.float32), ("channels_last", torch.bfloat16)], ids=str
)
@pytest.mark.parametrize("sample", COMPILABLE, ids=str)
def test_public_functions(impl, sample, layout, dtype):
    """Forward and backward through AOT autograd, with fake tensors of the strides that the kernels then give."""
    function = getattr(ops, sample.op)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(
        _results(compiled, sample, layout, dtype), _results(function, sample, layout, dtype), strict=True
    ):
        # Decompositions of torch's own functions lay out results otherwise.
        assert impl == "reference" or actual.stride() == expected.stride()
        torch.testing.assert_close(actual, expected, **COMPILED)


@pytest.mark.parametrize("op", ["bias_act", "fade_in", "minibatch_stddev", "upfirdn2d"])
def test_batch_sizes_share_a_graph(impl, op):
    """A dynamic batch: torch gives up on one that an op made a constant."""

    def inputs(n):
        random = torch.Generator().manual_seed(n)
        shapes = {"fade_in": [(n, 4, 3, 3), (n, 4, 6, 6)]}.get(op, [(n, 4, 6, 6)])
        return [torch.randn(s, generator=random) for s in shapes] + [0.3] * (op == "fade_in")

    function = getattr(ops, op)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=op != "minibatch_stddev")
    for n in (4, 8, 12):
        torch.testing.assert_close(compiled(*inputs(n)), function(*inputs(n)), **COMPILED)


def _discriminator(images, weights, biases, alpha):
    """From RGB, a block with fading, minibatch statistics, a dense layer: every op but those of G."""
    y = ops.equalized_conv2d(images, weights[0], biases[0], act="lrelu")
    y = ops.equalized_conv2d(y, weights[1], biases[1], down=2, act="lrelu")
    low = ops.equalized_conv2d(ops.downsample2x(images), weights[2], biases[2], act="lrelu")
    y = torch.lerp(low, y, alpha)
    y = ops.minibatch_stddev(y).flatten(1)
    return ops.equalized_linear(y, weights[3], biases[3]).sum(1)


def _parameters(*shapes: tuple) -> tuple[list, list]:
    random = torch.Generator().manual_seed(9)
    weights = [torch.nn.Parameter(torch.randn(s, generator=random)) for s in shapes]
    return weights, [torch.nn.Parameter(torch.randn(s[0], generator=random)) for s in shapes]


D_SHAPES = ((8, 3, 1, 1), (6, 8, 3, 3), (6, 3, 1, 1), (5, 7 * 16))


def _penalty(images, weights, biases, alpha):
    """WGAN-GP's: the inner gradient is taken inside, since torch cannot differentiate a compiled backward."""
    scores = _discriminator(images, weights, biases, alpha)
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return scores.mean() + 10 * (gradient.square().sum((1, 2, 3)).sqrt() - 1).square().mean()


@pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < "2.11", reason="this torch does not trace autograd.grad"
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradient_penalty(impl, layout):
    weights, biases = _parameters(*D_SHAPES)
    images = laid_out(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(10)), layout).requires_grad_()

    def run(penalty):
        loss = penalty(images, weights, biases, torch.tensor(0.3))
        return loss, *torch.autograd.grad(loss, [*weights, *biases])

    compiled = torch.compile(_penalty, fullgraph=True, backend="aot_eager")
    # The releases that have this setting trace autograd.grad only with it; later ones always do.
    patches = {"trace_autograd_ops": True} if hasattr(torch._dynamo.config, "trace_autograd_ops") else {}
    with torch._dynamo.config.patch(**patches) if patches else nullcontext():
        torch.testing.assert_close(run(compiled), run(_penalty), **COMPILED)


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="Inductor needs a compiler")
def test_inductor():
    """Generated code between the ops, from the strides that their fake kernels promise: once, since it takes long."""
    weights, biases = _parameters((3, 4, 1, 1), (8, 4, 3, 3), (3, 8, 1, 1))
    random = torch.Generator().manual_seed(11)
    x = laid_out(torch.randn(4, 4, 4, 4, generator=random), "channels_last")

    def loss(x, alpha):
        low = ops.equalized_conv2d(x, weights[0], biases[0])
        y = ops.equalized_conv2d(x, weights[1], biases[1], up=2, act="lrelu", pixel_norm=True) * 2
        images = ops.fade_in(low, ops.equalized_conv2d(y, weights[2], biases[2]), alpha)
        return ops.minibatch_stddev(ops.downsample2x(images)).square().mean()

    def run(loss):
        value = loss(x, torch.tensor(0.3))
        return value, *torch.autograd.grad(value, [*weights, *biases])

    torch.testing.assert_close(run(torch.compile(loss, fullgraph=True)), run(loss), **COMPILED)
