"""Every launch: on the device of its tensors, whichever op it is of, and planned once."""

import inspect
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

pytest.importorskip("triton")
from pggan_fast.kernels import (
    bias_act,
    conv,
    conv_weight_gradient,
    fade,
    filtered_lrelu,
    flat_rows,
    fold,
    resample,
    stddev,
    tensors,
    upfirdn2d,
)  # noqa: E402
from pggan_fast.kernels.gpu_limits import MODELLED  # noqa: E402
from pggan_fast.ops import conv_fused  # noqa: E402
from pggan_fast.ops import sign_bits as sign_bits_ops  # noqa: E402


class Kernel:
    """Stands for a compiled kernel: records the current device, the grid and the options of its launches."""

    def __init__(self, current: list[int]):
        self.current, self.launches = current, []

    def __getitem__(self, grid):
        return lambda *args, **options: self.launches.append((self.current[-1], grid, options))


@pytest.fixture
def launches(monkeypatch):
    """Two GPUs that are not here, the first of them current; yields the stand-in for every kernel."""
    current = [0]

    @contextmanager
    def device(index):
        current.append(index)
        yield
        current.pop()

    kernel = Kernel(current)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(tensors, "Tensor", FakeTensor)  # for tensors that torch.compile does not trace
    for module in (bias_act, conv, conv_weight_gradient, fade, stddev):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, kernel)
    with FakeTensorMode():
        yield kernel


def empty(*shape: int, device: str = "cuda:1", dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    t = torch.empty(shape, device=device, dtype=dtype)
    return t.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else t


def calls(device: str) -> None:
    x, weight, bias = (empty(*s, device=device) for s in ((2, 16, 32, 32), (16, 16, 3, 3), (16,)))
    epilogue = (1.0, "lrelu", 0.2, 1.0)
    _, _, sign_bits = conv_fused.forward(x, weight, bias, (1, 1, 1), (*epilogue, False, 1e-8), keep_sign_bits=True)
    sign_bits_ops.activation_backward(x, sign_bits, (*epilogue, False), True, "triton")
    conv_fused.gradients(x, x, weight, (1, 1, 1), (True, True))
    bias_act.forward(x, bias, *epilogue, True, 1e-8)
    fade.fade_in_backward(x, None, 0.5)
    stddev.forward(x, 2, 1, 1e-8, True, 0)


@pytest.mark.parametrize("index", [0, 1])
def test_kernels_run_on_the_device_of_their_tensors(launches, index):
    """Also the convolution of the native namespace, which calls Triton's host functions and no op of Triton's."""
    calls(f"cuda:{index}")
    assert len(launches.launches) == 10
    assert {device for device, _, _ in launches.launches} == {index}


def test_fused_multiply_adds_are_asked_for(launches):
    calls("cuda:1")
    assert all(options["enable_fp_fusion"] for _, _, options in launches.launches)


def test_no_grid_is_larger_than_a_gpu_allows(launches):
    """A map of 2048 x 2048 pixels: 65,536 programs in y would be one too many."""
    stddev.forward(empty(4, 8, 2048, 2048), 4, 1, 1e-8, True, 0)
    for _, grid, _ in launches.launches:
        assert grid[0] < 2**31 and all(n <= 65535 for n in grid[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_scalars_are_passed_in_fp32_unless_the_tensors_are_fp64(launches, dtype):
    with mock.patch.object(bias_act, "launch") as launch:
        bias_act.forward(empty(2, 16, 8, 8, dtype=dtype), None, 0.1, "lrelu", 0.2, 1.0, False, 1e-8)
    scalars = launch.call_args.args[6:10]
    assert {type(s) for s in scalars} == ({int} if dtype == torch.float64 else {float})


def test_a_launch_that_was_planned_before_searches_nothing():
    """The host's time of a launch: on the way to it, no tile, grid or size is computed again."""
    x, weight = torch.zeros(1, 16, 8, 8), torch.zeros(16, 16, 3, 3)
    seen: list[str] = []

    def see(frame, event, argument):
        if event == "call":
            seen.append(frame.f_code.co_name)

    def run():
        conv.convolve(x, weight, size=(8, 8), padding=1)
        conv_weight_gradient.weight_gradient(x, x, weight, padding=1)

    with mock.patch.object(conv, "launch"), mock.patch.object(conv_weight_gradient, "launch"):
        conv._cached_plan.cache_clear()
        run()
        sys.setprofile(see)
        try:
            run()
        finally:
            sys.setprofile(None)
    assert {"convolve", "weight_gradient"} <= set(seen)
    assert not {"_make_plan", "default_tile", "choose_tile", "programs", "tile_shape", "next_power_of_2"} & set(seen)


@pytest.mark.parametrize(("n_regs", "shared", "warps", "resident"), [(126, 64 << 10, 8, 2), (47, 27 << 10, 4, 8)])
def test_a_weight_gradient_fills_one_wave_by_the_registers_of_its_kernel(
    launches, monkeypatch, n_regs, shared, warps, resident
):
    """Two programs to a multiprocessor where registers allow no third, which would wait for a second wave; or eight."""
    seen = []

    def compiled(kernel, grid, *args, **options):
        seen.append(options)
        return SimpleNamespace(n_regs=n_regs, metadata=SimpleNamespace(shared=shared, num_warps=warps))

    monkeypatch.setattr(conv_weight_gradient, "Tensor", FakeTensor)
    monkeypatch.setattr(conv_weight_gradient, "JITFunction", Kernel)
    monkeypatch.setattr(conv_weight_gradient, "compiled", compiled)
    monkeypatch.setattr(conv_weight_gradient, "_resident", {})
    x, weight = empty(4, 16, 512, 512), empty(16, 16, 3, 3)
    for _ in range(2):
        conv_weight_gradient.weight_gradient(x, x, weight, padding=1)
    (_, grid, options), (_, again, _) = [launch for launch in launches.launches if "TILE_N" in launch[2]]
    programs = grid[0] * grid[1] * grid[2]
    assert grid == again and len(seen) == 1
    assert 0.98 < programs / (resident * MODELLED.multiprocessors) <= 1
    assert seen[0].items() <= options.items()


@pytest.mark.parametrize(
    "module",
    [bias_act, conv, conv_weight_gradient, fade, filtered_lrelu, flat_rows, fold, resample, stddev, upfirdn2d],
)
def test_no_host_function_calls_tritons_arithmetic(module):
    """`triton.cdiv` and `triton.next_power_of_2` take microseconds a call."""
    source = inspect.getsource(module)
    assert "triton.cdiv" not in source and "triton.next_power_of_2" not in source
