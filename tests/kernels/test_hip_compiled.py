"""The kernels compiled for AMD's GPUs that are not here: each compiles, and fits the shared memory of its target."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.runtime import JITFunction, driver  # noqa: E402

from pggan_fast.kernels import bias_act, conv, conv_tiles, conv_weight_gradient, fade, fold, resample, stddev  # noqa: E402
from pggan_fast.kernels.activation import sign_bits_shape  # noqa: E402

# Bytes of shared memory (LDS) of a workgroup, by the architecture.
SHARED = {"gfx90a": 64 << 10, "gfx942": 64 << 10, "gfx950": 160 << 10, "gfx1100": 64 << 10}
EVERY = "PGGAN_FAST_TEST_KERNELS" in os.environ
TARGETS = list(SHARED) if EVERY else ["gfx942"]
EPILOGUE = (0.1, "lrelu", 0.2, 1.0)


class _Driver:
    def __init__(self, arch: str):
        self.arch = arch

    def get_current_device(self) -> str:
        return self.arch

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("hip", self.arch, 32 if self.arch.startswith("gfx1") else 64)


def images(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)


def convolutions(channels: int, dtype: torch.dtype) -> None:
    x, weight = images(4, channels, 64, 64, dtype=dtype), images(channels, channels, 3, 3, dtype=dtype)
    wide = images(channels, channels, 3, 3, dtype=torch.float32)
    conv.convolve(x, weight, size=(64, 64), padding=1, negative_slope=0.2, pixel_norm=True)
    conv.convolve(x, weight, size=(64, 64), padding=1, negative_slope=0.2, keep_sign_bits=True)
    conv.convolve(x, weight, size=(64, 64), padding=1, transposed=True)
    conv_weight_gradient.weight_gradient(x, x, wide, padding=1)


def memory_bound(dtype: torch.dtype) -> None:
    x, low = images(4, 64, 64, 64, dtype=dtype), images(4, 64, 32, 32, dtype=dtype)
    r = torch.empty(4, 1, 64, 64, device="meta")
    bias_act.forward(x, None, *EPILOGUE, True, 1e-8)
    bias_act.backward(x, None, x, r, *EPILOGUE, True, True)
    sign_bits = torch.empty(sign_bits_shape(x), dtype=torch.int32, device="meta")
    bias_act.backward_by_signs(x, sign_bits, *EPILOGUE, True)
    bias_act.double_backward(x, None, x, None, x, r, *EPILOGUE, True)
    resample.upsample(low, 1.0, 0, 0)
    fade.fade_in(low, x, None, 0.5)
    stddev.forward(x, 4, 1, 1e-8, True, 0)
    fold.fold(torch.empty(32, 32, 3, 3, device="meta"), 1.0, True, dtype, True)


CASES = {
    "memory-bound": lambda: memory_bound(torch.bfloat16),
    "convolutions, bf16, 64 channels": lambda: convolutions(64, torch.bfloat16),
    "convolutions, bf16, 512 channels": lambda: convolutions(512, torch.bfloat16),
    "convolutions, fp32, 64 channels": lambda: convolutions(64, torch.float32),
}


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_kernels_compile_within_shared_memory(monkeypatch, case, arch):
    found: list[tuple[str, int]] = []

    def compile_one(kernel, grid, *args, **options) -> None:
        compiled = kernel.warmup(*args, grid=grid, **options)
        found.append((kernel.__name__, compiled.metadata.shared))

    monkeypatch.setattr(conv_tiles, "on_hip", lambda: True)
    monkeypatch.setattr(driver, "_active", _Driver(arch))
    for module in (bias_act, conv, conv_weight_gradient, fade, fold, resample, stddev):
        monkeypatch.setattr(module, "launch", compile_one)
    for plans in (conv._cached_plan, conv_weight_gradient._cached_plan):
        plans.cache_clear()
    assert isinstance(conv.convolution_kernel, JITFunction)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    CASES[case]()
    for plans in (conv._cached_plan, conv_weight_gradient._cached_plan):
        plans.cache_clear()
    assert len(found) >= 4
    assert all(shared <= SHARED[arch] for _, shared in found), found
