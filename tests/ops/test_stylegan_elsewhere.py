"""Each op of the StyleGAN family outside eager mode: exported, in ONNX Runtime, compiled in one graph, under vmap."""

import io

import numpy as np
import pytest
import torch

from pggan_fast import _native, ops
from pggan_fast.ops.activations import ACTIVATIONS
from tests.tolerances import COMPILED

F1, F2 = ops.setup_filter([1, 2, 3, 4, 4, 3, 2, 1]), ops.setup_filter([1, 3, 3, 1])
W, S, B = (torch.randn(s, generator=torch.Generator().manual_seed(2)) for s in ((4, 4, 3, 3), (2, 4), (4,)))
GRID = torch.rand(2, 5, 6, 2, generator=torch.Generator().manual_seed(3)) * 2.4 - 1.2
# Of an image [2, 4, 6, 8].
CALLS = {
    **{act: lambda x, act=act: ops.bias_act(x, B, act=act, gain=1.3, clamp=1.0) for act in ACTIVATIONS},
    "bias_act_along_width": lambda x: ops.bias_act(x, torch.ones(8), dim=3, act="lrelu"),
    "upfirdn2d": lambda x: ops.upfirdn2d(x, F2, up=(2, 1), down=(1, 2), padding=(2, 1, 3, 0), gain=2.0),
    "upfirdn2d_1d": lambda x: ops.upfirdn2d(x, F1, up=2, padding=4, flip_filter=True),
    "upfirdn2d_cropped": lambda x: ops.upfirdn2d(x, F2, up=3, padding=(-1, 2, 3, -2)),
    "upfirdn2d_without_filter": lambda x: ops.upfirdn2d(x, None, up=2, down=3),
    "filter2d": lambda x: ops.filter2d(x, F2),
    "upsample2d": lambda x: ops.upsample2d(x, F2),
    "downsample2d": lambda x: ops.downsample2d(x, F2),
    "conv2d": lambda x: ops.conv2d(x, W[:, :2], padding=1, groups=2),
    "conv2d_resample_up": lambda x: ops.conv2d_resample(x, W, F2, up=2, padding=1),
    "conv2d_resample_down": lambda x: ops.conv2d_resample(x, W, F2, down=2, padding=1),
    "modulated_conv2d": lambda x: ops.modulated_conv2d(x, W, S, padding=1, fused_modconv=False),
    "modulated_conv2d_grouped": lambda x: ops.modulated_conv2d(x, W, S, padding=1, fused_modconv=True),
    "modulated_conv2d_up": lambda x: ops.modulated_conv2d(x, W, S, up=2, padding=1, resample_filter=F2),
    "modulated_conv2d_stylegan3": lambda x: ops.modulated_conv2d_stylegan3(x, W, S, padding=1),
    "filtered_lrelu": lambda x: ops.filtered_lrelu(x, F1, F1, B, up=2, down=2, padding=7, clamp=0.5),
    "filtered_lrelu_2d": lambda x: ops.filtered_lrelu(x, F2, F2, B, up=2, down=2, padding=3, clamp=0.5),
    "filtered_lrelu_up_4": lambda x: ops.filtered_lrelu(x, F1, F1, up=4, down=2, padding=(8, 7, 6, 9), slope=0.0),
    "grid_sample": lambda x: ops.grid_sample(x, GRID),
    "grid_sample_border": lambda x: ops.grid_sample(x, GRID, padding_mode="border"),
}


class All(torch.nn.Module):
    """Every call."""

    def forward(self, x):
        return tuple(call(x) for call in CALLS.values())


def image() -> torch.Tensor:
    return torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(1))


def test_exports():
    """In plain PyTorch's operators alone, so that they run where this package is not."""
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    x, module = image(), All()
    with torch.no_grad():
        expected = module(x)
        with ops.use_impl("reference"):
            program = torch.export.export(module, (x,))
    assert not [node for node in program.graph.nodes if "pggan_fast" in str(node.target)]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(x), expected, **COMPILED)
    model = torch.onnx.export(program, dynamo=True, input_names=["x"], verbose=False).model_proto
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    results = session.run(None, {"x": x.numpy()})
    for call, actual, result in zip(CALLS, results, expected, strict=True):
        np.testing.assert_allclose(actual, result.numpy(), **COMPILED, err_msg=call)


@pytest.mark.skipif(not _native.cpu_available, reason=_native.cpu_reason)
@pytest.mark.parametrize("call", CALLS)
def test_one_graph(call):
    torch._dynamo.reset()
    results = []
    for function in (CALLS[call], torch.compile(CALLS[call], fullgraph=True, backend="aot_eager")):
        x = image().requires_grad_()
        y = function(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    torch.testing.assert_close(*results, **COMPILED)


@pytest.mark.skipif(not _native.cpu_available, reason=_native.cpu_reason)
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("call", CALLS)
def test_vmap(call):
    """Values, and gradients for each of the batch."""
    function, x = CALLS[call], torch.stack([image(), 0.5 - image(), 2 * image()])
    torch.testing.assert_close(torch.vmap(function)(x), torch.stack([function(t) for t in x]), **COMPILED)

    def loss(t):
        return function(t).square().sum()

    expected = torch.stack([torch.func.grad(loss)(t) for t in x])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(x), expected, **COMPILED)
