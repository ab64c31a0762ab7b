"""The kernels compiled for AMD's GPUs that are not here: each compiles within its target's LDS."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

import pytest
import torch

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import JITFunction, driver  # noqa: E402

from bench.roofline.aot import forget_plans  # noqa: E402
from pggan_fast.kernels import (  # noqa: E402
    bias_act,
    conv,
    conv_tiles,
    conv_weight_gradient,
    fade,
    filtered_lrelu,
    fold,
    resample,
    stddev,
    upfirdn2d,
)
from pggan_fast.kernels.activation import sign_bits_shape  # noqa: E402
from tests.kernels.memory_bound import CASES, EPILOGUE, LAYOUTS  # noqa: E402


class Target(NamedTuple):
    """An architecture: bytes of shared memory (LDS) of a workgroup, and what torch says is its capability."""

    shared: int
    capability: tuple[int, int]
    wave: int


TARGETS = {
    "gfx90a": Target(64 << 10, (9, 0), 64),
    "gfx942": Target(64 << 10, (9, 4), 64),
    "gfx950": Target(160 << 10, (9, 5), 64),
    "gfx1100": Target(64 << 10, (11, 0), 32),
}
MODULES = (bias_act, conv, conv_weight_gradient, fade, filtered_lrelu, fold, resample, stddev, upfirdn2d)
EVERY = "PGGAN_FAST_TEST_KERNELS" in os.environ
CHECKED = list(TARGETS) if EVERY else ["gfx942"]
# Registers that a kernel may spill, few of 256: upfirdn2d's contiguous taps, weight gradients in fp32 on gfx1100.
SPILLED = 8
HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float32, torch.float64


class Compiled(NamedTuple):
    kernel: str
    shared_bytes: int
    spilled: int  # registers, each to memory of a thread's own


class _Driver:
    def __init__(self, arch: str):
        self.arch = arch

    def get_current_device(self) -> str:
        return self.arch

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("hip", self.arch, TARGETS[self.arch].wave)


@contextmanager
def compiling_for(arch: str) -> Iterator[list[Compiled]]:
    """Inside, launches compile for `arch` instead; meta tensors will do. Yields what came of them."""
    found: list[Compiled] = []

    def compile_one(kernel: JITFunction, grid: tuple, *args, **options) -> None:
        compiled = kernel.warmup(*args, grid=grid, **options, enable_fp_fusion=True)
        spills = map(int, re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", compiled.asm["amdgcn"]))
        found.append(Compiled(kernel.fn.__module__ + "." + kernel.__name__, compiled.metadata.shared, sum(spills)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_tiles, "on_hip", lambda: True)
        patch.setattr(conv_tiles, "capability", lambda: TARGETS[arch].capability)
        patch.setattr(driver, "_active", _Driver(arch))
        patch.setattr(torch.backends.cudnn, "allow_tf32", True)
        for module in MODULES:
            patch.setattr(module, "launch", compile_one)
        forget_plans()
        try:
            yield found
        finally:
            forget_plans()


def images(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)


def convolutions(channels: int, dtype: torch.dtype) -> None:
    """Every launch of a layer's forward, gradients and second order, of up and of down too."""
    x, weight = images(4, channels, 64, 64, dtype=dtype), images(channels, channels, 3, 3, dtype=dtype)
    low, folded = images(4, channels, 32, 32, dtype=dtype), images(channels, channels, 4, 4, dtype=dtype)
    wide = images(channels, channels, 3, 3, dtype=torch.promote_types(dtype, SINGLE))
    sign_bits = torch.empty(sign_bits_shape(x), dtype=torch.int32, device="meta")
    conv.convolve(x, weight, size=(64, 64), padding=1, negative_slope=0.2, pixel_norm=True)
    conv.convolve(x, weight, size=(64, 64), padding=1, negative_slope=0.2, keep_sign_bits=True)
    conv.convolve(x, weight, size=(64, 64), padding=1, negative_slope=0.2, activation_mask=sign_bits)
    conv.convolve(x, weight, size=(64, 64), padding=1, transposed=True)
    conv.convolve(x, folded, size=(32, 32), padding=1, stride=2, negative_slope=0.2, keep_sign_bits=True)
    options = dict(padding=1, stride=2, transposed=True, negative_slope=0.2, pixel_norm=True)
    conv.convolve(low, folded, size=(64, 64), **options)
    conv_weight_gradient.weight_gradient(x, x, wide, padding=1)
    conv_weight_gradient.weight_gradient(low, x, wide, stride=2, padding=1, fold=0.25)
    conv_weight_gradient.weight_gradient(x, low, wide, stride=2, padding=1, transposed=True, fold=1.0)
    bias_act.backward_by_signs(x, sign_bits, *EPILOGUE, True)


def rgb(dtype: torch.dtype) -> None:
    """The 1 x 1 convolutions to and from 3 channels."""
    x, y = images(4, 64, 64, 64, dtype=dtype), images(4, 3, 64, 64, dtype=dtype)
    conv.convolve(x, images(3, 64, 1, 1, dtype=dtype), size=(64, 64))
    conv.convolve(y, images(64, 3, 1, 1, dtype=dtype), size=(64, 64), negative_slope=0.2, keep_sign_bits=True)
    conv_weight_gradient.weight_gradient(y, x, images(3, 64, 1, 1, dtype=torch.promote_types(dtype, SINGLE)))


def memory_bound(dtype: torch.dtype, layout: str, every: bool) -> None:
    """Every op, at the middle one of its shapes, or at every shape."""
    memory_format = LAYOUTS[layout]

    def make(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=memory_format)

    make.dtype = dtype
    make.factors = lambda n, h, w: torch.empty(n, 1, h, w, device="meta")
    if dtype == DOUBLE:
        make.factors = lambda n, h, w: torch.empty(n, 1, h, w, device="meta", dtype=DOUBLE)
    for case in (c for c in CASES if every or c.is_typical):
        case.call(make, case.shape)
    weight = torch.empty(32, 32, 3, 3, device="meta")
    for transposed in (False, True):
        fold.fold(weight, 1.0, transposed, dtype, layout == "channels_last")


CASES_OF: dict[str, Callable[[], None]] = {
    "memory-bound, bf16, channels_last": lambda: memory_bound(HALF, "channels_last", EVERY),
    "RGB, bf16": lambda: rgb(HALF),
    "convolutions, bf16, 64 channels": lambda: convolutions(64, HALF),
    "convolutions, bf16, 512 channels": lambda: convolutions(512, HALF),
    "convolutions, fp32, 64 channels": lambda: convolutions(64, SINGLE),
}
if EVERY:
    CASES_OF |= {
        "memory-bound, bf16, contiguous": lambda: memory_bound(HALF, "contiguous", True),
        "memory-bound, fp16, channels_last": lambda: memory_bound(torch.float16, "channels_last", True),
        "memory-bound, fp32, channels_last": lambda: memory_bound(SINGLE, "channels_last", True),
        "memory-bound, fp32, contiguous": lambda: memory_bound(SINGLE, "contiguous", True),
        "memory-bound, fp64, channels_last": lambda: memory_bound(DOUBLE, "channels_last", False),
        "RGB, fp32": lambda: rgb(SINGLE),
        "convolutions, bf16, 16 channels": lambda: convolutions(16, HALF),
        "convolutions, fp16, 128 channels": lambda: convolutions(128, torch.float16),
        "convolutions, fp32, 512 channels": lambda: convolutions(512, SINGLE),
        "convolutions, fp64, 64 channels": lambda: convolutions(64, DOUBLE),
    }


@pytest.mark.parametrize("arch", CHECKED)
@pytest.mark.parametrize("case", CASES_OF)
def test_kernels_compile_within_shared_memory(case, arch):
    with compiling_for(arch) as found:
        CASES_OF[case]()
    assert len(found) >= 3
    assert all(launch.shared_bytes <= TARGETS[arch].shared for launch in found), found
    if "fp64" not in case:  # whose numbers take two registers each, and which nobody trains in
        assert not [launch for launch in found if launch.spilled > SPILLED]


@pytest.mark.parametrize("arch", CHECKED)
def test_no_kernel_is_left_out(arch):
    """Those of every module that launches one, by the cases above."""
    with mock.patch.object(JITFunction, "warmup", side_effect=lambda *a, **o: _nothing()), compiling_for(arch) as found:
        for case in CASES_OF.values():
            case()
    everything = [value for module in MODULES for value in vars(module).values() if isinstance(value, JITFunction)]
    kernels = {f"{k.fn.__module__}.{k.__name__}" for k in everything if k.__name__.endswith("_kernel")}
    assert kernels <= {launch.kernel for launch in found}


def _nothing():
    return mock.Mock(asm={"amdgcn": ""}, metadata=mock.Mock(shared=0))
