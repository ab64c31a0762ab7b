"""Small networks of the StyleGAN2-ADA kind over functions that have its names and parameters, written from the papers.

The functions are plain PyTorch; on a GPU theirs would be extensions that TorchDynamo cannot look into.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def upfirdn2d(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """[N, C, H, W] with zeros put in, padded, filtered by f [kh, kw] or [k], and every `down`-th pixel kept."""
    assert isinstance(x, torch.Tensor) and impl in ("ref", "cuda")
    up, down = ((v, v) if isinstance(v, int) else tuple(v) for v in (up, down))
    sides = [padding] * 4 if isinstance(padding, int) else list(padding)
    sides = [sides[0], sides[0], sides[1], sides[1]] if len(sides) == 2 else sides
    f = torch.ones(1, 1) if f is None else f
    f = (torch.outer(f, f) if f.ndim == 1 else f).to(x.dtype)
    n, c, h, w = x.shape
    x = F.pad(x.reshape(n, c, h, 1, w, 1), [0, up[0] - 1, 0, 0, 0, up[1] - 1]).reshape(n, c, h * up[1], w * up[0])
    f = f * gain if flip_filter else f.flip([0, 1]) * gain
    x = F.conv2d(F.pad(x, sides), f[None, None].repeat(c, 1, 1, 1), groups=c)
    return x[:, :, :: down[1], :: down[0]]


def filter2d(x, f, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Filter to the same size."""
    fh, fw = f.shape[0], f.shape[-1]
    sides = [padding + fw // 2, padding + (fw - 1) // 2, padding + fh // 2, padding + (fh - 1) // 2]
    return upfirdn2d(x, f, padding=sides, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(x, f, up=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Filter to `up` times the size."""
    fh, fw = f.shape[0], f.shape[-1]
    sides = [(fw + up - 1) // 2, (fw - up) // 2, (fh + up - 1) // 2, (fh - up) // 2]
    sides = [side + padding for side in sides]
    return upfirdn2d(x, f, up=up, padding=sides, flip_filter=flip_filter, gain=gain * up * up, impl=impl)


def downsample2d(x, f, down=2, padding=0, flip_filter=False, gain=1, impl="cuda"):
    """Resembles theirs, but is another function: it is shifted by a pixel, and so must stay what it is."""
    sides = [padding + f.shape[-1] // 2 + 1, padding, padding + f.shape[0] // 2 + 1, padding]
    return upfirdn2d(x, f, down=down, padding=sides, flip_filter=flip_filter, gain=gain, impl=impl)


ACTS = {
    "linear": (lambda x, a: x, 1.0, 0.0),
    "relu": (lambda x, a: F.relu(x), math.sqrt(2), 0.0),
    "lrelu": (F.leaky_relu, math.sqrt(2), 0.2),
    "tanh": (lambda x, a: torch.tanh(x), 1.0, 0.0),
    "swish": (lambda x, a: torch.sigmoid(x) * x, math.sqrt(2), 0.0),
}


def bias_act(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None, impl="cuda"):
    """gain * act(x + b), between -clamp and clamp."""
    assert isinstance(x, torch.Tensor) and (clamp is None or clamp >= 0)
    function, usual_gain, usual_alpha = ACTS[act]
    if b is not None:
        x = x + b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    x = function(x, usual_alpha if alpha is None else alpha) * (usual_gain if gain is None else gain)
    return x if clamp is None else x.clamp(-clamp, clamp)


def modulated_conv2d(
    x,
    weight,
    styles,
    noise=None,
    up=1,
    down=1,
    padding=0,
    resample_filter=None,
    demodulate=True,
    flip_weight=True,
    fused_modconv=True,
):
    """Each sample convolved with weight * styles, demodulated, and resampled by a filter."""
    n = x.shape[0]
    w = weight[None] * styles.reshape(n, 1, -1, 1, 1)
    if demodulate:
        w = w * (w.square().sum([2, 3, 4], keepdim=True) + 1e-8).rsqrt()
    w = w if flip_weight else w.flip([3, 4])
    if up > 1:
        k = resample_filter.shape[0]
        sides = [(k + up - 1) // 2 + padding, (k - up) // 2 + padding]
        x = upfirdn2d(x, resample_filter, up=up, padding=[sides[0], sides[1]] * 2, gain=up * up)
    elif down > 1:
        k = resample_filter.shape[0]
        sides = [(k - down + 1) // 2 + padding, (k - down) // 2 + padding]
        x = upfirdn2d(x, resample_filter, padding=[sides[0], sides[1]] * 2)
    sides = padding if up == down == 1 else 0
    y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), w.flatten(0, 1), stride=down, padding=sides, groups=n)
    y = y.reshape(n, -1, *y.shape[2:])
    return y if noise is None else y + noise


class Dense(nn.Module):
    def __init__(self, inputs: int, outputs: int, act: str = "linear", bias: float = 0.0):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.full([outputs], bias))
        self.act, self.scale = act, 1 / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return bias_act(x.matmul((self.weight * self.scale).t()), self.bias, act=self.act)


class Layer(nn.Module):
    def __init__(self, width: int, outputs: int, k: int = 3, up: int = 1):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, width, k, k)), nn.Parameter(torch.zeros(outputs))
        self.affine, self.up, self.padding = Dense(8, width, bias=1.0), up, k // 2
        self.register_buffer("filter", torch.tensor([[1.0, 3, 3, 1]]).t() * torch.tensor([1.0, 3, 3, 1]) / 64)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        options = dict(up=self.up, padding=self.padding, resample_filter=self.filter)
        if self.weight.shape[-1] == 1:
            y = modulated_conv2d(x, self.weight / 4, self.affine(w), demodulate=False)
            return bias_act(y, self.bias, clamp=256)
        y = modulated_conv2d(x, self.weight, self.affine(w), **options)
        return bias_act(y, self.bias, act="lrelu", clamp=256)


class Synthesis(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.mapping = nn.Sequential(Dense(8, 8, "lrelu"), Dense(8, 8, "lrelu"))
        self.const = nn.Parameter(torch.randn(width, 4, 4))
        self.first, self.second = Layer(width, width), Layer(width, width, up=2)
        self.rgb1, self.rgb2 = Layer(width, 3, k=1), Layer(width, 3, k=1)

    def forward(self, z: Tensor) -> Tensor:
        w = self.mapping(z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt())
        x = self.first(self.const[None].repeat(z.shape[0], 1, 1, 1), w)
        image = upsample2d(self.rgb1(x, w), self.second.filter)
        return image + self.rgb2(self.second(x, w), w)


class Down(nn.Module):
    """The discriminator's block, whose downsampling is not theirs."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(width, 3, 1, 1)), nn.Parameter(torch.zeros(width))
        self.register_buffer("filter", torch.ones(4, 4) / 16)

    def forward(self, image: Tensor) -> Tensor:
        x = bias_act(F.conv2d(image, self.weight), self.bias, act="lrelu", gain=1)
        return downsample2d(filter2d(x, self.filter), self.filter)
