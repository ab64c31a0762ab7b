"""CUDA kernels of upfirdn2d for three and for four taps, on tensors of vectors: values, and what they reach."""

import pytest
import torch

from pggan_fast import reference
from tests.cuda_on_cpu import build

# Of the largest output: a rounding of the result, or the sums' in fp32.
ALLOWED = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-20}
PADDINGS = {
    (3, 1, 1): (1, 1),
    (3, 2, 1): (2, 0),
    (3, 1, 2): (1, 0),
    (4, 1, 1): (2, 1),
    (4, 2, 1): (2, 1),
    (4, 1, 2): (1, 1),
}


@pytest.fixture
def upfirdn2d():
    build.load()
    torch.manual_seed(1)
    return torch.ops.pggan_fast_cuda_on_cpu.upfirdn2d


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", ALLOWED, ids=str)
@pytest.mark.parametrize(("taps", "up", "down"), PADDINGS)
def test_values(upfirdn2d, taps, up, down, dtype, memory_format):
    """Images of one tile and of several, filters of one axis and of two, in both directions."""
    x0, x1 = PADDINGS[taps, up, down]
    for size in (16, 48):
        x = torch.randn(2, 16, size, size).to(dtype).contiguous(memory_format=memory_format)
        for f, flip in ((torch.randn(taps), False), (torch.randn(taps, taps), True)):
            found = upfirdn2d(x, f, up, up, down, down, x0, x1, x1, x0, flip, 1.3)
            options = {"up": up, "down": down, "padding": (x0, x1, x1, x0), "flip_filter": flip, "gain": 1.3}
            expected = reference.upfirdn2d(x.double(), f.double(), **options)
            assert found.shape == expected.shape and found.is_contiguous(memory_format=memory_format)
            assert (found.double() - expected).abs().max() <= ALLOWED[dtype] * expected.abs().max()


@pytest.mark.parametrize("up", [1, 2])
def test_what_no_tap_reaches_is_not_read(upfirdn2d, up):
    """Three taps over zeros: an output with one tap does not multiply its neighbour by nothing, which could be Inf."""
    x, f = torch.zeros(1, 8, 16, 16), torch.tensor([1.0, 2.0, 1.0])
    x[0, 0, 5, 5] = float("inf")
    found = upfirdn2d(x, f, up, up, 1, 1, 1, 1, 1, 1)
    assert torch.equal(found.isinf(), reference.upfirdn2d(x, f, up=up, padding=1).isinf())
    assert found.isinf().sum() == 9 and not found.isnan().any()
