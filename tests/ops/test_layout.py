"""Copies from contiguous to channels_last and back: every value in its place, at any size, in the layout asked for."""

import pytest
import torch

from pggan_fast.ops.layout import to_layout
from tests.ops.samples import DTYPES

# Whole squares of every vector width, sizes that fill none, one channel, one pixel, many pixels of few channels.
SHAPES = [
    (2, 16, 4, 4),
    (3, 64, 9, 11),
    (2, 3, 5, 7),
    (1, 33, 70, 1),
    (2, 1, 3, 3),
    (2, 5, 1, 1),
    (1, 2, 40, 50),
    (0, 4, 2, 2),
]
MEMORY = {True: torch.channels_last, False: torch.contiguous_format}


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copy(dtype, shape, channels_last):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = values.contiguous(memory_format=MEMORY[not channels_last])
    y = to_layout(x, channels_last)
    assert torch.equal(y, values) and y.dtype == dtype
    assert y.data_ptr() != x.data_ptr() or not x.numel()
    assert y.stride() == torch.empty_like(values, memory_format=MEMORY[channels_last]).stride()


@pytest.mark.parametrize("channels_last", [True, False])
def test_other_strides_too(channels_last):
    x = torch.randn(2, 6, 8, 10)[:, ::2, 1:]
    y = to_layout(x, channels_last)
    assert torch.equal(y, x) and y.is_contiguous(memory_format=MEMORY[channels_last])


def test_nan_and_infinity_are_copied_bit_for_bit():
    x = torch.tensor([0x7FC00001, 0x7F800000, -1, 1], dtype=torch.int32).view(torch.float32).repeat(1, 16, 4, 1)
    assert torch.equal(to_layout(x, True).view(torch.int32), x.view(torch.int32))
