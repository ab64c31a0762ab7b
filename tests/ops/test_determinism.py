"""The same bits every time, with any number of threads: resuming a run relies on it."""

import pytest
import torch

from tests.ops.implementations import IMPLEMENTATIONS
from tests.ops.samples import SAMPLES, laid_out

FUSED = IMPLEMENTATIONS["torch_ops"]  # the best kernels there are here

# Convolutions are torch's own, and so is their determinism.
LARGE = [
    s
    for s in SAMPLES
    if "weight" not in s.shapes and sum(t.numel() for t in s.tensors(torch.float32).values()) > 50_000
]


def _bits(function, sample, layout, dtype) -> list[torch.Tensor]:
    """The result and the gradients of both orders; alpha's, which nobody trains, is a sum of torch's."""
    tensors = [laid_out(t, layout) for t in sample.tensors(dtype).values()]
    inputs = [t.requires_grad_() for t in tensors if t.is_floating_point() and t.ndim]
    y = function(*tensors, **sample.options)
    if not y.requires_grad:
        return [y]
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(8)).to(y.dtype).requires_grad_()
    first = torch.autograd.grad(y, inputs, dy, create_graph=True)
    penalty = sum(t.double().square().sum() for t in first)
    return [y, *first, *torch.autograd.grad(penalty, [dy, *inputs], materialize_grads=True)]


def test_the_samples_are_of_every_family():
    families = {"bias_act", "upsample2x", "downsample2x", "fade_in", "fade_reals", "minibatch_stddev"}
    assert {s.op for s in LARGE} == families


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sample", LARGE, ids=str)
def test_bits_do_not_depend_on_threads(threads, sample, layout):
    function = FUSED.function(sample.op)
    for dtype in (torch.float32, torch.bfloat16):
        torch.set_num_threads(1)
        expected = _bits(function, sample, layout, dtype)
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for actual, e in zip(_bits(function, sample, layout, dtype), expected, strict=True):
                assert torch.equal(actual, e), f"{dtype}, {count} threads"
