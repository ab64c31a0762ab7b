"""Chains in whose middle autocast or gradients are switched, and memory that a checkpoint writes over."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pggan_fast import accelerate, explain
from tests.dropin.helpers import CLOSE, X, always_fuse


class Written(nn.Module):
    def __init__(self, body: Callable[["Written", Tensor], Tensor]):
        super().__init__()
        self.conv, self.body = nn.Conv2d(8, 8, 3, padding=1), body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def conv_autocast(m: Written, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = m.conv(x)
    return F.leaky_relu(y, 0.2)


def activation_autocast(m: Written, x: Tensor) -> Tensor:
    y = m.conv(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = F.leaky_relu(y, 0.2)
        return F.conv2d(y, m.conv.weight)


def conv_no_grad(m: Written, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.conv(x)
    return F.leaky_relu(y, 0.2) * m.conv.bias.view(1, -1, 1, 1)


def activation_no_grad(m: Written, x: Tensor) -> Tensor:
    y = m.conv(x)
    with torch.no_grad():
        z = F.leaky_relu(y, 0.2)
    return z + x


def upsampled_no_grad(m: Written, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = F.interpolate(x, scale_factor=2)
    return F.leaky_relu(m.conv(x), 0.2)


def weight_no_grad(m: Written, x: Tensor) -> Tensor:
    with torch.no_grad():
        weight = m.conv.weight * 0.5
    return F.leaky_relu(F.conv2d(F.interpolate(x, scale_factor=2), weight, m.conv.bias, padding=1), 0.2)


def norm_no_grad(m: Written, x: Tensor) -> Tensor:
    y = F.leaky_relu(m.conv(x), 0.2)
    with torch.no_grad():
        factor = (y.square().mean(1, keepdim=True) + 1e-8).rsqrt()
    return y * factor


def pooled_no_grad(m: Written, x: Tensor) -> Tensor:
    y = m.conv(x)
    with torch.no_grad():
        y = F.avg_pool2d(y, 2)
    return y * m.conv.bias.view(1, -1, 1, 1)


def deviation_no_grad(m: Written, x: Tensor) -> Tensor:
    y = m.conv(x)
    with torch.no_grad():
        std = (y.var(0, unbiased=False) + 1e-8).sqrt().mean().view(1, 1, 1, 1).expand(y.shape[0], 1, *y.shape[2:])
    return torch.cat([y, std], 1)


def checkpoint_overwrites(m: Written, x: Tensor) -> Tensor:
    bias = m.conv.bias * 1
    y = F.conv2d(x, m.conv.weight, padding=1) + bias.view(1, -1, 1, 1)
    checkpoint(lambda b: b.add_(1), bias, use_reentrant=False)
    return F.leaky_relu(y, 0.2)


BODIES = (conv_autocast, activation_autocast, conv_no_grad, activation_no_grad, upsampled_no_grad, weight_no_grad)
BODIES += (norm_no_grad, pooled_no_grad, deviation_no_grad, checkpoint_overwrites)


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_modes(body, monkeypatch):
    always_fuse(monkeypatch)
    torch.manual_seed(0)
    model = Written(body)
    fast = accelerate(copy.deepcopy(model), inplace=True)
    for i in range(2):
        assert i == 0 or "rewriting failed" not in str(explain(fast))
        found = []
        for net in (fast, model):
            x = X.clone().requires_grad_()
            y = net(x)
            found.append([y, *torch.autograd.grad(y.float().sum(), [x, *net.parameters()], allow_unused=True)])
        assert [t is None for t in found[0]] == [t is None for t in found[1]]
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, **({} if b is not None and b.dtype == torch.bfloat16 else CLOSE))
