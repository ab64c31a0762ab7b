"""Official options that the golden vectors do not have: ReLU, and the epsilon of networks in fp16.

The official formulas in plain PyTorch and fp64, first held against what TensorFlow computed with the usual options,
then with the others against what we import.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast import Generator
from pggan_fast.interop import from_official, to_gan_zoo, to_pro_gan_pth
from tests.interop.golden import IMAGE_TOLERANCE, assert_close, load, under

Act = Callable[[Tensor], Tensor]
LEAKY, RELU = (lambda x: F.leaky_relu(x, 0.2)), F.relu


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return load("nets_r16_l0_unfused")


class Official:
    """The generator without fused scale and labels, at full resolution; discriminators have neither option."""

    def __init__(self, variables: dict[str, np.ndarray], act: Act, eps: float = 1e-8):
        self.variables = {name: torch.from_numpy(value).double() for name, value in variables.items()}
        self.act, self.eps = act, eps

    def weight(self, name: str, gain: float = math.sqrt(2)) -> Tensor:
        w = self.variables[f"{name}/weight"]
        return w * (gain / math.sqrt(math.prod(w.shape[:-1])))

    def conv(self, x: Tensor, name: str, **gain: float) -> Tensor:
        w = self.weight(name, **gain).permute(3, 2, 0, 1)
        return F.conv2d(x, w, self.variables[f"{name}/bias"], padding=w.shape[-1] // 2)

    def norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + self.eps)

    def generator(self, z: Tensor) -> Tensor:
        x = (self.norm(z) @ self.weight("4x4/Dense", math.sqrt(2) / 4)).view(len(z), -1, 4, 4)
        x = self.norm(self.act(x + self.variables["4x4/Dense/bias"].view(-1, 1, 1)))
        x = self.norm(self.act(self.conv(x, "4x4/Conv")))
        for block in ("8x8", "16x16"):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            for layer in ("Conv0", "Conv1"):
                x = self.norm(self.act(self.conv(x, f"{block}/{layer}")))
        return self.conv(x, "ToRGB_lod0", gain=1.0)


def generated(golden: dict, act: Act, eps: float) -> Tensor:
    latents = torch.from_numpy(golden["latents"]).double()
    return Official(under(golden, "G_var"), act, eps).generator(latents)


def test_the_formulas_are_the_official_ones(golden):
    assert_close(generated(golden, LEAKY, 1e-8).float(), golden["G_out/lod0.0"], IMAGE_TOLERANCE)


@pytest.mark.parametrize(("act", "slope"), [(RELU, 0.0), (LEAKY, 0.2)], ids=["relu", "leaky relu"])
@pytest.mark.parametrize("eps", [1e-8, 1e-4, 0.1])
def test_generators(golden, act, slope, eps):
    expected = generated(golden, act, eps)
    net = from_official(under(golden, "G_var"), slope=slope, pixel_norm_eps=eps).double()
    saved = Generator(**net.options).double()
    saved.load_state_dict(net.state_dict())
    for built in (net, saved):
        images = built(torch.from_numpy(golden["latents"]).double())
        torch.testing.assert_close(images, expected, atol=1e-10, rtol=1e-10)
    assert slope == 0.2 and eps < 1e-4 or (expected - generated(golden, LEAKY, 1e-8)).abs().max() > IMAGE_TOLERANCE


@pytest.mark.parametrize("back", [to_pro_gan_pth, to_gan_zoo])
@pytest.mark.parametrize("option", [{"slope": 0.0}, {"pixel_norm_eps": 1e-4}], ids=str)
def test_others_do_not_have_them(golden, back, option):
    net = from_official(under(golden, "G_var"), **option)
    (name,) = option
    with pytest.raises(ValueError, match=f"has {name}={option[name]}, .* only {name}="):
        back(net)
