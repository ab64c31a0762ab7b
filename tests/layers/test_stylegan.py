"""The layers of StyleGAN2: shapes, state, statistics at the start, gradients, exports."""

import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from pggan_fast import ops
from pggan_fast.layers import Blur, FusedLeakyReLU, ModulatedConv2d, StyledConv2d
from tests.tolerances import GRADCHECK


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Blur(), (2, 4, 8, 6)),
        (Blur(up=2), (2, 4, 16, 12)),
        (Blur(down=2), (2, 4, 4, 3)),
        (ModulatedConv2d(4, 5, 3, 7), (2, 5, 8, 6)),
        (ModulatedConv2d(4, 5, 3, 7, up=2), (2, 5, 16, 12)),
        (ModulatedConv2d(4, 5, 3, 7, down=2), (2, 5, 4, 3)),
        (ModulatedConv2d(4, 3, 1, 7, demodulate=False), (2, 3, 8, 6)),
        (StyledConv2d(4, 5, 3, 7), (2, 5, 8, 6)),
        (StyledConv2d(4, 5, 3, 7, up=2), (2, 5, 16, 12)),
        (FusedLeakyReLU(4), (2, 4, 8, 6)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else str(v),
)
def test_shapes(layer, shape):
    x, w = torch.randn(2, 4, 8, 6), torch.randn(2, 7)
    takes_latents = isinstance(layer, (ModulatedConv2d, StyledConv2d))
    assert (layer(x, w) if takes_latents else layer(x)).shape == shape


def test_state():
    assert list(FusedLeakyReLU(4).state_dict()) == ["bias"]
    assert list(FusedLeakyReLU(4, bias=False).state_dict()) == []
    assert list(Blur().state_dict()) == ["kernel"]
    torch.testing.assert_close(Blur().kernel.sum(), torch.tensor(1.0))


def test_a_constant_stays_what_it_is():
    """Inside the border, where no zeros of the padding are mixed in."""
    x = torch.full((1, 2, 16, 16), 3.0)
    for blur in (Blur(), Blur(up=2), Blur(down=2)):
        inner = blur(x)[..., 3:-3, 3:-3]
        torch.testing.assert_close(inner, torch.full_like(inner, 3.0))


@pytest.mark.parametrize("up", [1, 2])
def test_the_variance_at_the_start_is_one(up):
    torch.manual_seed(0)
    conv, to_rgb = ModulatedConv2d(64, 64, 3, 16, up=up), ModulatedConv2d(64, 64, 1, 16, demodulate=False)
    x, w = torch.randn(8, 64, 32, 32), torch.randn(8, 16) * 0.1
    inner = conv(x, w)[..., 4:-4, 4:-4]
    # Interpolation averages neighbours: white noise through [1, 3, 3, 1] keeps (5 / 8)**2 of its variance.
    assert 0.8 < inner.var().item() / (1 if up == 1 else (5 / 8) ** 2) < 1.2
    assert 0.8 < to_rgb(x, w).var().item() < 1.2


@pytest.mark.parametrize(
    "layer", [StyledConv2d(2, 3, 3, 4, up=2), ModulatedConv2d(2, 3, 3, 4, down=2)], ids=["up", "down"]
)
def test_gradients(layer):
    layer = layer.double()
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64, generator=random, requires_grad=True)
    w = torch.randn(2, 4, dtype=torch.float64, generator=random, requires_grad=True)
    size = 8 if isinstance(layer, StyledConv2d) else 2
    noise = torch.randn(2, 1, size, size, dtype=torch.float64, generator=random)
    names = [n for n, _ in layer.named_parameters()]

    def function(x, w, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x, w, noise))

    leaves = (x, w, *(p.detach().requires_grad_() for p in layer.parameters()))
    assert gradcheck(function, leaves, fast_mode=True, **GRADCHECK)
    assert gradgradcheck(function, leaves, fast_mode=True, **GRADCHECK)


class Small(nn.Module):
    """Every kind of layer, a constant for noise as an exported generator has it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = StyledConv2d(3, 8, 3, 4, up=2), ModulatedConv2d(8, 6, 3, 4, down=2)
        self.activate, self.blur = FusedLeakyReLU(6, clamp=2.0), Blur(up=2)
        self.register_buffer("noise", torch.randn(1, 1, 16, 16))

    def forward(self, x, w):
        y = self.activate(self.second(self.first(x, w, self.noise), w))
        y = ops.filtered_lrelu(self.blur(y), self.blur.kernel, self.blur.kernel, up=2, down=2, padding=3)
        return ops.bias_act(y, act="swish")


def test_exports_run_elsewhere():
    """In plain PyTorch's operators: torch.export for any batch, and ONNX."""
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    torch.manual_seed(0)
    network = Small().eval()
    nn.init.ones_(network.first.noise_strength)
    batch = torch.export.Dim("N", min=1)
    example = (torch.randn(2, 3, 8, 8), torch.randn(2, 4))
    with torch.no_grad(), ops.use_impl("reference"):
        program = torch.export.export(network, example, dynamic_shapes={"x": {0: batch}, "w": {0: batch}})
    assert not [node for node in program.graph.nodes if "pggan_fast" in str(node.target)]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    model = torch.onnx.export(program, dynamo=True, input_names=["x", "w"], verbose=False).model_proto
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for n in (1, 5):  # neither is the size that it was exported with
        x, w = torch.randn(n, 3, 8, 8), torch.randn(n, 4)
        expected = network(x, w).detach()
        torch.testing.assert_close(loaded(x, w).detach(), expected, atol=1e-5, rtol=1e-4)
        (y,) = session.run(None, {"x": x.numpy(), "w": w.numpy()})
        np.testing.assert_allclose(y, expected.numpy(), atol=1e-5, rtol=1e-4)


def test_errors():
    with pytest.raises(ValueError, match="^Blur: up is 2 and down is 2, one must be 1$"):
        Blur(up=2, down=2)
