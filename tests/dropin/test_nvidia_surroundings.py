"""NVIDIA's networks around their ops: gains that are numbers of NumPy."""

import copy

import numpy as np
import torch
from torch import nn

from pggan_fast import accelerate, explain
from tests.dropin import nvidia_like
from tests.dropin.helpers import EXACT, X, assert_same, results


class Activated(nn.Module):
    """A convolution and bias_act, whose gain is a number of NumPy times an argument, as `def_gain` of theirs is."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bias = nn.Parameter(torch.randn(8))
        self.act_gain = np.sqrt(2)

    def forward(self, x, gain=1):
        return nvidia_like.bias_act(self.conv(x), self.bias, act="lrelu", gain=self.act_gain * gain, clamp=2)


def test_a_gain_of_numpy():
    model = Activated().double()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    assert_same(results(fast, (X.double(), 0.7)), results(model, (X.double(), 0.7)), EXACT)
    assert {row.what for row in explain(fast).replaced} == {"bias_act"}
    assert len(explain(fast).graphs) == 1 and not explain(fast).reasons
