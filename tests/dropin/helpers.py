"""What the tests of drop-in acceleration share."""

import pytest
import torch
from torch import nn

from pggan_fast import ops
from tests.dropin.progressive import EqualConv, UpBlock

X = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
# fp32 through a few layers.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def block(**options) -> nn.Module:
    torch.manual_seed(1)
    return UpBlock(8, 8, lambda i, o: EqualConv(i, o, 3, padding=1, **options))


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the fused functions, as they get called."""
    called = []
    for name in ("equalized_conv2d", "bias_act", "minibatch_stddev"):
        original = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, _f=original, _n=name, **k: called.append(_n) or _f(*a, **k))
    return called
