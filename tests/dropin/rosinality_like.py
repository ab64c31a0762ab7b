"""Small networks of rosinality's StyleGAN2 kind, over functions with its names, written from the papers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function


class Scaled(Function):
    """Stands for an extension's activation: TorchDynamo does not go into it."""

    @staticmethod
    def forward(ctx, u, scale):
        ctx.scale = torch.tensor(
            scale, dtype=torch.float64
        ).item()  # a number out of a tensor, as an extension would take it
        return u * ctx.scale

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.scale, None


def fused_leaky_relu(input, bias=None, negative_slope=0.2, scale=2**0.5):
    """scale * leaky_relu(input + bias), of slope 0.2 whatever is asked for."""
    if bias is not None:
        input = input + bias.view(1, -1, *[1] * (input.ndim - 2))
    return Scaled.apply(F.leaky_relu(input, 0.2), scale)


def upfirdn2d(input, kernel, up=1, down=1, pad=(0, 0)):
    return upfirdn2d_native(input, kernel, up, up, down, down, pad[0], pad[1], pad[0], pad[1])


def upfirdn2d_native(input, kernel, up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1):
    n, c, h, w = input.shape
    x = F.pad(input.reshape(-1, h, 1, w, 1), [0, up_x - 1, 0, 0, 0, up_y - 1]).reshape(-1, 1, h * up_y, w * up_x)
    x = F.pad(x, [pad_x0, pad_x1, pad_y0, pad_y1])
    x = F.conv2d(x, torch.flip(kernel, [0, 1])[None, None].to(x.dtype))[:, :, ::down_y, ::down_x]
    return x.reshape(n, c, x.shape[2], x.shape[3])


class FusedLeakyReLU(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return fused_leaky_relu(x, self.bias, 0.2, 2**0.5)


class ModulatedConv(nn.Module):
    """Up by a transposed convolution of the samples' own weights, then a blur; down by a blur, then a stride."""

    def __init__(self, inputs: int, outputs: int, k: int = 3, resample: str = "", demodulate: bool = True):
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(1, outputs, inputs, k, k)), nn.Linear(8, inputs)
        nn.init.ones_(self.style.bias)
        self.scale, self.resample, self.demodulate = 1 / math.sqrt(inputs * k * k), resample, demodulate
        self.register_buffer("kernel", torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 16)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        n, c, h, w = x.shape
        o, k = self.weight.shape[1], self.weight.shape[3]
        weight = self.scale * self.weight * self.style(style).view(n, 1, c, 1, 1)
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8).view(n, o, 1, 1, 1)
        weight = weight.view(n * o, c, k, k)
        if self.resample == "up":
            weight = weight.view(n, o, c, k, k).transpose(1, 2).reshape(n * c, o, k, k)
            y = F.conv_transpose2d(x.view(1, n * c, h, w), weight, padding=0, stride=2, groups=n)
            return upfirdn2d(y.view(n, o, *y.shape[2:]), self.kernel, pad=(1, 1))
        if self.resample == "down":
            x = upfirdn2d(x, self.kernel, pad=(2, 2))
            y = F.conv2d(x.view(1, n * c, *x.shape[2:]), weight, padding=0, stride=2, groups=n)
            return y.view(n, o, *y.shape[2:])
        y = F.conv2d(x.view(1, n * c, h, w), weight, padding=k // 2, groups=n)
        return y.view(n, o, h, w)


class Styled(nn.Module):
    """Three styled convolutions and the image, with noise of a weight between convolution and activation."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.convs = nn.ModuleList(ModulatedConv(width, width, resample=r) for r in ("", "up", "down"))
        self.acts = nn.ModuleList(FusedLeakyReLU(width) for _ in self.convs)
        self.noise = nn.Parameter(torch.full([1], 0.1))
        self.rgb = ModulatedConv(width, 3, 1, demodulate=False)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        for conv, act in zip(self.convs, self.acts, strict=True):
            y = conv(x, style)
            x = act(y + self.noise * y[:, :1].detach())
        return self.rgb(x, style)
