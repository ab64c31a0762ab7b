"""How many bytes each kernel moves, as the harness counts them, over those it cannot do without."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.workload import LAYOUTS
from tests.ops.op_calls import CALLS, Make

# Biases, factors and partial sums beside the tensors.
ALLOWED = 1.05
EPILOGUE = (0.7, "lrelu", 0.2, 1.3)
SHAPES = [(1, 1024, 16, 16), (1, 512, 16, 16), (2, 64, 32, 32), (1, 16, 64, 64), (2, 3, 64, 64), (1, 37, 65, 33)]
# A column of so many channels does not fit in a block's registers.
WIDE = (1, 8200, 2, 4)


def moved(call) -> int:
    """The bytes that a call's launches read and write."""
    controls = build.load()
    controls.take_launches()
    call()
    return sum(launch.loaded + launch.stored for launch in controls.take_launches())


@pytest.fixture(params=["contiguous", "channels_last"])
def memory_format(request) -> torch.memory_format:
    build.load()
    return {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("pixel_norm", [False, True])
def test_bias_act(shape, dtype, memory_format, pixel_norm):
    ops = torch.ops.pggan_fast_cuda_on_cpu
    x = torch.randn(shape, dtype=dtype).contiguous(memory_format=memory_format)
    bias, size = torch.randn(shape[1]), x.numel() * x.element_size()
    options = (*EPILOGUE, pixel_norm)
    y, r = ops.bias_act(x, bias, *options)
    factors = r.numel() * r.element_size()  # 0 without pixel norm
    r = r if pixel_norm else None
    assert moved(lambda: ops.bias_act(x, bias, *options)) <= ALLOWED * (2 * size + factors)
    in_place = y.clone(memory_format=torch.preserve_format)
    assert moved(lambda: ops.bias_act_(in_place, bias, *options)) <= ALLOWED * (2 * size + factors)
    assert moved(lambda: ops.bias_act_backward(x, None, y, r, *options, True)) <= ALLOWED * (3 * size + factors)
    tensors = 5 if pixel_norm else 3
    second = moved(lambda: ops.bias_act_double_backward(x, bias, x, r, y, r, *options))
    assert second <= ALLOWED * (tensors * size + 4 * factors)


def test_pixel_norm_of_more_channels_reads_twice(memory_format):
    ops = torch.ops.pggan_fast_cuda_on_cpu
    x, bias = torch.randn(WIDE).contiguous(memory_format=memory_format), torch.randn(WIDE[1])
    size, options = x.numel() * x.element_size(), (*EPILOGUE, True)
    y, r = ops.bias_act(x, bias, *options)
    calls = {
        3: lambda: ops.bias_act(x, None, *options),
        5: lambda: ops.bias_act_backward(x, None, y, r, *options, False),
        8: lambda: ops.bias_act_double_backward(x, None, x, None, y, r, *options),
    }
    for tensors, call in calls.items():
        assert tensors * size < moved(call) <= ALLOWED * tensors * size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 16, 32, 32), (2, 3, 32, 32)], ids=str)
def test_resampling_moves_nothing_twice(shape, dtype, memory_format):
    ops = torch.ops.pggan_fast_cuda_on_cpu
    high = torch.randn(shape, dtype=dtype).contiguous(memory_format=memory_format)
    low = ops.downsample2x(high)
    small, large = (t.numel() * t.element_size() for t in (low, high))
    alpha = torch.tensor(0.3)
    assert moved(lambda: ops.upsample2x(low)) == small + large
    assert moved(lambda: ops.downsample2x(high)) == small + large
    assert moved(lambda: ops.fade_in(low, high, alpha)) == small + 2 * large
    assert moved(lambda: ops.fade_in_backward(high, alpha)) == small + 2 * large
    assert moved(lambda: ops.blend_backward(high, alpha)) == 3 * large
    assert moved(lambda: ops.fade_reals(high, alpha, 0.0, dtype)) == 2 * large
    images = torch.zeros(shape, dtype=torch.uint8).contiguous(memory_format=memory_format)
    assert moved(lambda: ops.fade_reals(images, alpha, 0.0, dtype)) == images.numel() + large


def halo(size: int, tile: int, up: int, down: int, vector: int, taps: int) -> float:
    """Inputs of a row that tiles of outputs load, over those that there are."""
    tiles, patch = -(-size * up // down // tile), ((tile - 1) * down + taps - 1) // up + 1
    return tiles * (patch + vector) / size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("taps", "up", "down", "padding"),
    [
        (4, 1, 1, (2, 1)),
        (4, 2, 1, (2, 1)),
        (4, 1, 2, (1, 1)),
        (3, 1, 1, (1, 1)),
        (3, 2, 1, (2, 0)),
        (3, 1, 2, (1, 0)),
    ],
    ids=str,
)
def test_upfirdn2d_of_few_taps(taps, up, down, padding, dtype, memory_format):
    """Nothing is read twice but the border of tiles, which several of them load; images of one tile have none."""
    op, f = torch.ops.pggan_fast_cuda_on_cpu.upfirdn2d, torch.randn(taps, taps)
    for size in (16, 64, 256):
        x = torch.randn(1, 8, size, size, dtype=dtype).contiguous(memory_format=memory_format)
        call = lambda x=x: op(x, f, up, up, down, down, *padding, *padding)  # noqa: E731
        y, read = call(), x.numel() * x.element_size()
        # Tiles have 16 x 32 outputs at least.
        vector = 16 // x.element_size()
        border = 1.0 if size <= 16 else halo(size, 16, up, down, 0, taps) * halo(size, 32, up, down, vector, taps)
        # Every block reads the filter; there are at least as many as planes.
        coefficients = 64 * (y.numel() / 512 + 8)
        assert moved(call) <= ALLOWED * (read * border + y.numel() * y.element_size() + coefficients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [16, 64])
def test_filtered_lrelu_moves_no_grid(size, dtype):
    """Image, result and 2 bits of each value of the grid; inputs and bits on the border of tiles by several of them."""
    build.load()
    ops, f = torch.ops.pggan_fast_cuda_on_cpu, torch.randn(12)
    x, bias = torch.randn(1, 8, size, size, dtype=dtype), torch.randn(8)
    call = lambda keep: ops.filtered_lrelu(x, bias, f, f, 2, 2, 11, 10, 11, 10, False, 1.4, 0.2, 1.0, keep)  # noqa: E731
    y, mask = call(True)
    grid = 2 * (size - 1) + 12
    # Tiles of 24 x 32 outputs, and 11 values of the grid around each: 6 inputs.
    border = 1.0 if size == 16 else (24 + 13) / 24 * (32 + 13) / 32
    filters = 2 * 48 * 8 * (-(-size // 24) * -(-size // 32)) + 400
    image, result = x.numel() * x.element_size(), y.numel() * y.element_size()
    assert moved(lambda: call(False)) <= ALLOWED * (image * border + result + filters)
    assert moved(lambda: call(True)) <= ALLOWED * (image * border + result + filters) + mask.numel()
    back = (f, f, 2, 2, 0, 0, 11, 11, grid, grid, size, size, True, 5.6, 0.2)
    backward = moved(lambda: ops.filtered_lrelu_masked(y, mask, *back))
    assert backward <= ALLOWED * (border * (result + mask.numel()) + image + filters)


@pytest.mark.parametrize("strided", [True, False])
def test_minibatch_stddev(memory_format, strided):
    ops = torch.ops.pggan_fast_cuda_on_cpu
    x = torch.randn(8, 512, 8, 8).contiguous(memory_format=memory_format)
    options = (4, 1, 1e-8, strided, 0)
    y = ops.minibatch_stddev(x, *options)
    small, large = (t.numel() * t.element_size() for t in (x, y))
    assert moved(lambda: ops.minibatch_stddev(x, *options)) <= ALLOWED * (small + large)
    assert moved(lambda: ops.minibatch_stddev_backward(y, x, *options)) <= ALLOWED * (2 * small + large)
    assert moved(lambda: ops.minibatch_stddev_double_backward(x, y, x, *options)) <= ALLOWED * (3 * small + large)


def test_minibatch_stddev_of_a_larger_group_reads_three_times(memory_format):
    """The samples beyond the fourth, for their mean, their deviation, and the result."""
    ops = torch.ops.pggan_fast_cuda_on_cpu
    x = torch.randn(16, 128, 8, 8).contiguous(memory_format=memory_format)
    options = (16, 1, 1e-8, True, 0)
    y = ops.minibatch_stddev(x, *options)
    small, large = (t.numel() * t.element_size() for t in (x, y))
    beyond = small * 12 / 16
    calls = {
        small + large + 2 * beyond: lambda: ops.minibatch_stddev(x, *options),
        2 * small + large + 2 * beyond: lambda: ops.minibatch_stddev_backward(y, x, *options),
        3 * small + large + 4 * beyond: lambda: ops.minibatch_stddev_double_backward(x, y, x, *options),
    }
    for expected, call in calls.items():
        assert expected < moved(call) <= ALLOWED * expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", [c for c in CALLS if c.has_gpu_kernel], ids=str)
def test_nothing_is_copied_before_or_after(call, layout):
    """A tensor in either layout is read and written where it is: torch only allocates.

    filtered_lrelu takes planes; a channels_last image, smaller than the grid by up**2, is copied to them and back.
    """
    if call.op.startswith("filtered_lrelu"):
        layout = "contiguous"
    build.load()
    arguments = call.arguments(Make(torch.float32, layout))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        getattr(torch.ops.pggan_fast_cuda_on_cpu, call.op)(*arguments)
    names = {event.name for event in seen.events()} - {f"pggan_fast_cuda_on_cpu::{call.op}"}
    assert {name for name in names if not name.startswith(("aten::empty", "aten::new_empty", "aten::view"))} == set()
