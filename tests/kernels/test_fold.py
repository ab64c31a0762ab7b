"""Folded weights and the adjoint, in Triton's interpreter, against the shifts written out in plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.guards import guarded_allocations
from tests.ops.samples import laid_out

pytest.importorskip("triton")
from pggan_fast.kernels import fold  # noqa: E402


def folded(weight: torch.Tensor, scale: float, transposed: bool) -> torch.Tensor:
    shifts = [F.pad(weight, (j, 1 - j, i, 1 - i)) for i in (0, 1) for j in (0, 1)]
    total = scale * torch.stack(shifts).sum(0)
    return total.flip(2, 3).transpose(0, 1) if transposed else total


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(7, 5, 3, 3), (1, 3, 1, 1), (40, 33, 4, 4)], ids=str)
def test_fold_and_its_adjoint(shape, channels_last, transposed):
    random = torch.Generator().manual_seed(1)
    for layout in ("contiguous", "sliced_channels_last"):
        weight = torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()
        expected = folded(weight, 0.3, transposed)
        gradient = torch.randn(expected.shape, generator=random, dtype=torch.float64)
        (adjoint,) = torch.autograd.grad(expected, weight, gradient)
        source = laid_out(weight.detach(), layout)
        layouts = {False: torch.contiguous_format, True: torch.channels_last}
        with guarded_allocations():
            made = fold.fold(source, 0.3, transposed, torch.float64, channels_last)
            back = fold.unfold(laid_out(gradient, layout), 0.3, transposed, torch.float64, channels_last)
        for actual, expected_values in ((made, expected.detach()), (back, adjoint)):
            torch.testing.assert_close(actual, expected_values)
            assert actual.is_contiguous(memory_format=layouts[channels_last])
    half = fold.fold(weight.detach().float(), 0.3, transposed, torch.float16, channels_last)
    # Summed in fp32, rounded once.
    torch.testing.assert_close(half, folded(weight.detach().float(), 0.3, transposed).half(), rtol=2**-10, atol=2**-24)
