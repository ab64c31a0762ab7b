"""filtered_lrelu beyond the matrix: its mask, what takes three passes, the bias, derivatives of any order."""

import pytest
import torch

from pggan_fast import _native, ops, reference
from pggan_fast.ops.filtered_lrelu import _grid, _packed, _unpacked
from tests.ops.implementations import composite_kernels
from tests.tolerances import EXACT, GRADCHECK

NATIVE = pytest.mark.skipif(not _native.cpu_available, reason=_native.cpu_reason)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def arguments(up: int, down: int, dtype: torch.dtype = torch.float64) -> tuple:
    """The op's arguments, for an image whose grid is no multiple of anything."""
    x, bias = random(2, 3, 9, 21).to(dtype), random(3)
    fu, fd = random(6 * up).float(), random(6 * down - 1).float()
    return (x, bias, fu, fd, up, down, 7, 9, 12, 11, False, 1.3, 0.2, 0.9)


@NATIVE
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 2), (4, 2), (2, 4), (3, 2)], ids=str)
def test_the_mask_is_the_composites(implementation, up, down):
    """The same bytes on every device: [N, C, rows / 4, lcm(up, down), columns / lcm]."""
    op = torch.ops.pggan_fast.filtered_lrelu
    with composite_kernels():
        y, expected = op(*arguments(up, down))
    with implementation.active():
        actual_y, mask = op(*arguments(up, down))
    grid_h, grid_w = _grid(y, arguments(up, down)[3], down)
    shown = _unpacked(mask, grid_h, grid_w)
    assert torch.equal(shown, _unpacked(expected, grid_h, grid_w))
    assert set(shown.unique().tolist()) == {0, 1, 2, 3}
    torch.testing.assert_close(actual_y, y, **EXACT)


def test_packing_and_back():
    bits = torch.randint(4, (2, 3, 7, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for step in (1, 2, 3, 4):
        mask = _packed(bits, step)
        assert list(mask.shape) == [2, 3, 2, step, -(-11 // step)]
        assert torch.equal(_unpacked(mask, 7, 11), bits)


@NATIVE
@pytest.mark.parametrize(
    ("fu", "fd", "options"),
    [
        ((3, 4), (2, 2), dict(up=2, down=2)),
        ((40,), (3,), dict(up=2, down=2)),
        ((3,), (2, 5), dict(up=2)),
        ((6,), (6,), dict(up=5, down=2)),
    ],
    ids=["2d", "long", "one_2d", "up_5"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_three_passes(fu, fd, options, dtype):
    x, bias = random(1, 2, 30, 31).to(dtype), random(2)
    filters, options = [random(*f).float() for f in (fu, fd)], dict(padding=4, clamp=0.7, **options)
    actual = ops.filtered_lrelu(x, *filters, bias, **options, impl="native")
    expected = ops.filtered_lrelu(x.double(), *filters, bias, **options, impl="reference")
    error = 1e-12 if dtype == torch.float64 else 2**-8  # rounded once
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=error, atol=error)


@NATIVE
def test_one_pass_runs_one_op():
    from tests.ops.test_dispatch import FusedOps

    x, _, fu, fd, *_ = arguments(2, 2)
    x.requires_grad_()
    with FusedOps() as forward:
        y = ops.filtered_lrelu(x, fu, fd, up=2, down=2, padding=9)
    with FusedOps() as backward:
        y.sum().backward()
    assert (forward.seen, backward.seen) == (["filtered_lrelu"], ["filtered_lrelu_masked"])


@NATIVE
@pytest.mark.parametrize("layout", FORMATS)
def test_gradients_of_x_and_bias(layout):
    _, _, fu, fd, *_ = arguments(2, 2)
    x, bias = random(2, 3, 4, 5).contiguous(memory_format=FORMATS[layout]).requires_grad_(), random(3).requires_grad_()

    def function(x, bias):
        return ops.filtered_lrelu(x, fu, fd, bias, up=2, down=2, padding=11, clamp=3.0, impl="native")

    assert torch.autograd.gradcheck(function, (x, bias), fast_mode=True, check_forward_ad=True, **GRADCHECK)
    assert torch.autograd.gradgradcheck(function, (x, bias), fast_mode=True, **GRADCHECK)

    def first(x, bias):
        y = function(x, bias) ** 3
        return torch.autograd.grad(y.sum(), (x, bias), create_graph=True)

    assert torch.autograd.gradgradcheck(first, (x, bias), fast_mode=True, **GRADCHECK), "third order"


@NATIVE
def test_a_mask_is_kept_for_derivatives_alone():
    x, bias, fu, fd, *rest = arguments(2, 2)
    op = torch.ops.pggan_fast.filtered_lrelu
    y, mask = op(x.requires_grad_(), bias, fu, fd, *rest, False)
    assert mask.numel() == 0
    with pytest.raises(RuntimeError, match="keep_mask=False"):
        y.sum().backward()


@NATIVE
def test_infinities_and_nan_pass_as_in_plain_pytorch():
    x = random(1, 1, 4, 4)
    x[0, 0, 1, 1], x[0, 0, 3, 2], x[0, 0, 0, 3] = float("inf"), float("-inf"), float("nan")
    for slope, clamp in ((0.0, None), (0.2, 2.0), (0.0, 2.0)):
        options = dict(slope=slope, clamp=clamp)
        expected = reference.filtered_lrelu(x, **options)
        torch.testing.assert_close(ops.filtered_lrelu(x, **options, impl="native"), expected, equal_nan=True)


@NATIVE
def test_masks_of_another_size_are_refused():
    x, mask = random(1, 1, 4, 4), torch.zeros(1, 1, 1, 1, 3, dtype=torch.uint8)
    one = torch.ones(1)
    with pytest.raises(RuntimeError, match="the mask is not one of this size"):
        torch.ops.pggan_fast.filtered_lrelu_masked(x, mask, one, one, 1, 1, 0, 0, 0, 0, 4, 4, 4, 4)
