"""The table of what GPUs can do: units, and which figures are measured."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")
from pggan_fast.kernels.gpu_limits import (  # noqa: E402
    GPUS,
    H200,
    MODELLED,
    RTX_4090,
    GPULimits,
    limits_of,
    limits_of_device,
)


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


def test_sizes_are_the_drivers_and_rates_those_of_the_name(monkeypatch):
    """A GPU that the table does not have keeps the modelled rates, but not its number of multiprocessors."""
    stated = SimpleNamespace(
        name="NVIDIA GeForce RTX 3060",
        multi_processor_count=28,
        shared_memory_per_multiprocessor=100 << 10,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=1536,
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: stated)
    found = limits_of_device(0)
    assert (found.multiprocessors, found.shared_bytes, found.threads) == (28, 100 << 10, 1536)
    assert found.hbm_bytes_per_second == MODELLED.hbm_bytes_per_second


@pytest.mark.parametrize(
    ("gpu", "registers", "shared", "warps", "blocks"),
    [
        (H200, 126, 64 << 10, 8, 2),  # by registers, given out to a warp by 256
        (H200, 129, 0, 8, 1),
        (H200, 47, 27 << 10, 4, 8),  # by shared memory, with 1 KB of the system's
        (H200, 16, 0, 8, 8),  # by threads
        (RTX_4090, 16, 0, 8, 6),
        (H200, 16, 0, 1, 32),  # by blocks
        (H200, 255, 0, 16, 1),  # more than there are: what runs at all has room
    ],
)
def test_blocks_of_a_multiprocessor(gpu, registers, shared, warps, blocks):
    """The counts are those of NVIDIA's occupancy calculator."""
    assert gpu.resident_blocks(registers, shared, warps) == blocks
