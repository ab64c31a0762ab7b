"""NVIDIA's networks around their ops: gains that are numbers of NumPy, and contexts that suppress warnings."""

import contextlib
import copy
import warnings

import numpy as np
import pytest
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


class Halved(Activated):
    """Its gain is computed in the call, as in the blocks of NVIDIA's discriminators."""

    def forward(self, x):
        return super().forward(x, gain=np.sqrt(0.5)) * np.sqrt(0.5)


def test_numpys_function_of_a_number():
    model = Halved().double()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    assert_same(results(fast, (X.double(),)), results(model, (X.double(),)), EXACT)
    assert {row.what for row in explain(fast).replaced} == {"bias_act"}
    assert len(explain(fast).graphs) == 1 and not explain(fast).reasons


@contextlib.contextmanager
def suppress_tracer_warnings():
    quiet = ("ignore", None, torch.jit.TracerWarning, None, 0)
    warnings.filters.insert(0, quiet)
    yield
    warnings.filters.remove(quiet)


class SuppressTracerWarnings(warnings.catch_warnings):
    """The same as in StyleGAN2-ADA, where it is a class."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)
        return self


SuppressTracerWarnings.__name__ = "suppress_tracer_warnings"


class Quiet(nn.Module):
    """A layer that reads a size with the tracer's warnings suppressed, as NVIDIA's networks do."""

    def __init__(self, suppress):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bias = nn.Parameter(torch.randn(8))
        self.suppress = suppress

    def forward(self, x):
        with self.suppress():
            n = int(x.shape[0])
        return nvidia_like.bias_act(self.conv(x), self.bias, act="lrelu") / n


@pytest.mark.parametrize("suppress", [suppress_tracer_warnings, SuppressTracerWarnings])
def test_suppressed_warnings(suppress):
    """The calls run, capture once, and leave the filters of warnings as they were."""
    model = Quiet(suppress).double()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    before = list(warnings.filters)
    for _ in range(3):
        torch.testing.assert_close(fast(X.double()), model(X.double()), rtol=EXACT, atol=EXACT)
    assert warnings.filters == before
    assert {row.what for row in explain(fast).replaced} == {"bias_act"}
    assert len(explain(fast).graphs) == 1


class Scaled(nn.Module):
    """A convolution whose weights are scaled by a number of NumPy and cast to what they are, as NVIDIA's are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3))
        self.weight_gain = 1 / np.sqrt(8 * 3**2)

    def forward(self, x):
        weight = (self.weight.to(x.dtype) * self.weight_gain).to(memory_format=torch.preserve_format)
        x = nn.functional.conv2d(x.to(dtype=weight.dtype), weight, padding=1)
        return nn.functional.leaky_relu(x, 0.2) * 2**0.5


def test_weights_times_a_number_of_numpy():
    model = Scaled().double()
    fast = accelerate(copy.deepcopy(model), inplace=True)
    for changed in range(4):  # from the second on it is an input of the graph
        model.weight_gain = fast.weight_gain = model.weight_gain * np.float64(1 + changed)
        assert_same(results(fast, (X.double(),)), results(model, (X.double(),)), EXACT)
    assert {row.what for row in explain(fast).replaced} >= {"equalized conv + lrelu + gain"}
    assert len(explain(fast).graphs) == 2 and not explain(fast).reasons


TELLING_APART = {
    "isinstance": lambda gain: isinstance(gain, np.floating),
    "type": lambda gain: type(gain) is np.float64,
    "repr": lambda gain: repr(gain) != "0.5",
    "power": lambda gain: type(gain**2) is np.float64,
    "hasattr": lambda gain: hasattr(gain, "dtype"),
    "getattr": lambda gain: getattr(gain, "ndim", None) == 0,
}


class Asking(nn.Module):
    """Asks whether its gain is a number of NumPy's, as code does that takes both."""

    def __init__(self, question):
        super().__init__()
        self.gain, self.question = np.float64(0.5), question

    def forward(self, x, gain=None):
        gain = self.gain if gain is None else gain
        return x * 2 if self.question(gain) else x * gain


@pytest.mark.parametrize("given", [(), (np.float64(0.5),)], ids=["attribute", "argument"])
@pytest.mark.parametrize("name", TELLING_APART)
def test_code_that_tells_a_number_of_numpy_from_a_float(name, given):
    model = Asking(TELLING_APART[name])
    fast = accelerate(copy.deepcopy(model), inplace=True)
    for _ in range(2):
        assert torch.equal(fast(X, *given), model(X, *given))


class MinibatchStd(nn.Module):
    """NVIDIA's minibatch deviation, whose sizes of groups are tensors; `written`: and which it changes."""

    def __init__(self, group_size, num_channels, written=False):
        super().__init__()
        self.group_size, self.num_channels, self.written = group_size, num_channels, written

    def forward(self, x):
        n, c, h, w = x.shape
        size = n
        if self.group_size is not None:
            size = torch.min(torch.as_tensor(self.group_size), torch.as_tensor(n))
        y = x.reshape(size, -1, self.num_channels, c // self.num_channels, h, w)
        y = y - y.mean(dim=0)
        y = (y.square().mean(dim=0) + 1e-8).sqrt().mean(dim=[2, 3, 4])
        if self.written:
            size.mul_(2)
        y = y.reshape(-1, self.num_channels, 1, 1).repeat(size, 1, h, w)[:n]
        return torch.cat([x, y], dim=1)


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("group_size", [None, 2, 8])
def test_sizes_that_are_tensors(group_size, num_channels):
    model = nn.Sequential(nn.Conv2d(8, 8, 1), MinibatchStd(group_size, num_channels)).double()
    fast = accelerate(model)
    assert_same(results(fast, (X.double(),)), results(model, (X.double(),)), EXACT)
    assert {row.what for row in explain(fast).replaced} == {"minibatch stddev"}


def test_sizes_that_are_written_over():
    model = nn.Sequential(nn.Conv2d(8, 8, 1), MinibatchStd(2, 1, written=True)).double()
    fast = accelerate(model)
    assert_same(results(fast, (X.double(),)), results(model, (X.double(),)), EXACT)
    assert not explain(fast).replaced
