"""The table of what GPUs can do: units, and which figures are measured."""

import pytest
import torch

pytest.importorskip("triton")
from pggan_fast.kernels.gpu_limits import GPUS, H200, MODELLED, GPULimits, limits_of  # noqa: E402


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda gpu: gpu.name)
def test_figures_are_of_one_unit(gpu):
    assert 1e11 < gpu.hbm_bytes_per_second < gpu.l2_bytes_per_second < 1e13
    # Multiply-adds that a multiprocessor does in a clock in half precision (data sheets).
    peak = gpu.multiprocessors * gpu.clock_hz * 2 * {(8, 0): 1024, (8, 9): 256, (9, 0): 2048}[gpu.capability]
    assert 0.7 < gpu.half_flops / peak < 1
    assert gpu.tf32_flops == gpu.half_flops / 2 == gpu.flops(torch.float32)
    assert gpu.flops(torch.bfloat16) == gpu.flops(torch.float16) == gpu.half_flops
    assert gpu.flops(torch.float64) < gpu.flops(torch.float32, tf32=False) <= gpu.tf32_flops
    assert gpu.measured <= set(GPULimits._fields)


def test_a_gpu_is_found_by_the_drivers_name():
    assert limits_of("NVIDIA H200") is H200 and H200.measured
    assert limits_of("NVIDIA A100-SXM4-80GB").multiprocessors == 108
    assert limits_of("NVIDIA GeForce RTX 4090").capability == (8, 9)
    assert limits_of("something new") is MODELLED
