"""Limits of the GPUs that the roofline and the choice of a convolution's backend are computed for: one table.

Bytes per second of HBM are what a large copy reaches, reads and writes counted; FLOP/s are what a large dense matrix
product reaches, a multiply-add being two. `measured` names the figures that were measured; the rest are the vendor's
data sheet times the share that the measured GPU reaches of its own (a copy 90%, a product 80%), and L2 is assumed.
"""

from typing import NamedTuple

import torch


class GPULimits(NamedTuple):
    """Rates and sizes of one GPU."""

    name: str  # as it stands in the name that the driver gives
    capability: tuple[int, int]
    multiprocessors: int
    clock_hz: float
    hbm_bytes_per_second: float
    l2_bytes_per_second: float
    half_flops: float  # bf16 and fp16 with fp32 accumulation, on tensor cores
    tf32_flops: float
    fp32_flops: float  # without tensor cores
    l2_bytes: int
    shared_bytes: int  # of a multiprocessor
    block_shared_bytes: int  # that one block may have
    registers: int = 65536  # of a multiprocessor
    threads: int = 2048
    measured: frozenset[str] = frozenset()

    def flops(self, dtype: torch.dtype, tf32: bool = True) -> float:
        """Multiplications and additions a second in this dtype; fp32 on tensor cores where `tf32`."""
        if dtype.itemsize == 2:
            return self.half_flops
        if dtype == torch.float64:
            return self.fp32_flops / 2 if self.capability in ((8, 0), (9, 0)) else self.fp32_flops / 64
        return self.tf32_flops if tf32 else self.fp32_flops

    def resident_blocks(self, registers: int, shared_bytes: int, warps: int) -> int:
        """Return how many blocks a multiprocessor holds at once, by the registers of a thread, shared memory and warps.

        Registers are given out to warps by 256, and 1 KB of a block's shared memory is the system's (CUDA programming
        guide, occupancy). At least 1: whatever runs at all has room for one.
        """
        by_registers = self.registers // (max(1, -(-registers * 32 // 256)) * 256 * warps)
        return max(1, min(self.threads // (32 * warps), by_registers, self.shared_bytes // (shared_bytes + 1024), 32))

    @property
    def issue_per_second(self) -> float:
        """Instructions of a warp that all multiprocessors start in a second, four to a clock each."""
        return 4 * self.multiprocessors * self.clock_hz


H200 = GPULimits(
    name="H200",
    capability=(9, 0),
    multiprocessors=132,
    clock_hz=1.755e9,
    hbm_bytes_per_second=4.3e12,
    l2_bytes_per_second=6e12,
    half_flops=790e12,
    tf32_flops=395e12,
    fp32_flops=59e12,
    l2_bytes=50 << 20,
    shared_bytes=228 << 10,
    block_shared_bytes=227 << 10,
    measured=frozenset({"hbm_bytes_per_second", "half_flops"}),
)
H100 = H200._replace(name="H100", hbm_bytes_per_second=3.0e12, measured=frozenset())
A100 = GPULimits(
    name="A100",
    capability=(8, 0),
    multiprocessors=108,
    clock_hz=1.41e9,
    hbm_bytes_per_second=1.8e12,
    l2_bytes_per_second=4.5e12,
    half_flops=250e12,
    tf32_flops=125e12,
    fp32_flops=19e12,
    l2_bytes=40 << 20,
    shared_bytes=164 << 10,
    block_shared_bytes=163 << 10,
)
RTX_4090 = GPULimits(
    name="RTX 4090",
    capability=(8, 9),
    multiprocessors=128,
    clock_hz=2.52e9,
    hbm_bytes_per_second=0.91e12,
    l2_bytes_per_second=4.5e12,
    half_flops=132e12,
    tf32_flops=66e12,
    fp32_flops=66e12,
    l2_bytes=72 << 20,
    shared_bytes=100 << 10,
    block_shared_bytes=99 << 10,
    threads=1536,
)

GPUS = {gpu.name: gpu for gpu in (A100, H100, H200, RTX_4090)}
"""{name: limits}"""

MODELLED = H200
"""The GPU that is computed for where there is none, or one that the table does not have."""


def limits_of(device_name: str) -> GPULimits:
    """Return the limits of the GPU that the driver names so ("NVIDIA H100 80GB HBM3"), else those of `MODELLED`."""
    return next((gpu for name, gpu in GPUS.items() if name in device_name), MODELLED)


def limits_of_device(index: int) -> GPULimits:
    """Return the limits of a GPU that is here: rates by its name, sizes as the driver states them."""
    stated = torch.cuda.get_device_properties(index)
    return limits_of(stated.name)._replace(
        multiprocessors=stated.multi_processor_count,
        shared_bytes=stated.shared_memory_per_multiprocessor,
        registers=stated.regs_per_multiprocessor,
        threads=stated.max_threads_per_multi_processor,
    )
