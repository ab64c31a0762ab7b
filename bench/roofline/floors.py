"""Four lower bounds of a launch's time, and which of them binds it.

Each is work over the rate that a GPU reaches (`pggan_fast.kernels.gpu_limits`): bytes of memory, bytes that
multiprocessors fetch through L2, products on tensor cores, and instructions. Latency, barriers and the last, partly
filled wave come on top: no launch is faster, most are slower.
"""

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from bench.roofline import sass
from bench.roofline.aot import assumed_gpu, inspect
from bench.roofline.counted import (
    FUSED,
    HALO_BORDER,
    HALO_FP32_INSTRUCTIONS,
    HALO_GRADIENT_INSTRUCTIONS,
    HALO_INSTRUCTIONS,
    HALO_PRODUCTS,
    PASS_INSTRUCTIONS,
)
from bench.traffic.count import Call
from bench.traffic.kernels import HaloLaunch, TritonLaunch
from bench.traffic.step import step_traffic
from pggan_fast.kernels.gpu_limits import GPULimits

CUDNN_SHARE = 0.7
"""The part of a large matrix product's rate that torch's convolutions and products are taken to reach."""

WARP_PRODUCT_SHARE = 0.62
"""The part of the rate of capability 9.0 that a single warp's products (mma.sync) reach; assumed, from publications."""


LIMITS = ("hbm", "l2", "tensor", "issue")


class Floor(NamedTuple):
    """Seconds of one launch, at least."""

    name: str
    of: str
    """The shapes of what it works on: `bench.traffic.count.Call`."""
    launches: int
    hbm: float
    l2: float
    tensor: float
    issue: float
    registers: int = 0
    shared_bytes: int = 0
    waves: float = 0.0

    @property
    def seconds(self) -> float:
        return max(getattr(self, limit) for limit in LIMITS)

    @property
    def bound(self) -> str:
        return max(LIMITS, key=lambda limit: getattr(self, limit))


def step_floors(
    resolution: int,
    batch: int,
    gpu: GPULimits,
    *,
    impl: str = "auto",
    bf16: bool = True,
    progress: Callable[[list[Call]], Iterable[Call]] = iter,
) -> list[Floor]:
    """Return the floors of all launches of a training step of the paper's networks."""
    return [floor(call, gpu) for call in progress(step_traffic(impl, resolution, batch, bf16).calls)]


def floor(call: Call, gpu: GPULimits) -> Floor:
    """Return the floors of a counted call. Without its machine code: of its bytes and its operations alone."""
    hbm = call.bytes / gpu.hbm_bytes_per_second
    if isinstance(call.launch, HaloLaunch):
        return _halo_floor(call, call.launch, gpu)
    if not isinstance(call.launch, TritonLaunch):
        tensor = call.operations / (CUDNN_SHARE * gpu.half_flops)
        issue = PASS_INSTRUCTIONS.get(call.name, 0.0) * call.bytes / sass.WARP / gpu.issue_per_second
        return Floor(call.name, call.of, call.launches, hbm, 0.0, tensor, issue)
    launch, capability = call.launch, 10 * gpu.capability[0] + gpu.capability[1]
    code = _compiled(Signature(launch), capability)
    work = sass.work(code.sass, *_loop(launch))
    warps = math.prod(launch.grid) * code.warps
    products = 2 * warps * work.multiplications
    share = 1.0 if work.is_group_wide or gpu.capability < (9, 0) else WARP_PRODUCT_SHARE
    resident = gpu.resident_blocks(code.registers, code.shared_bytes, code.warps)
    rate = gpu.tf32_flops if launch.args[0].dtype == torch.float32 else gpu.half_flops
    return Floor(
        call.name,
        call.of,
        call.launches,
        hbm,
        warps * work.bytes / gpu.l2_bytes_per_second,
        products / (share * rate),
        warps * work.instructions / gpu.issue_per_second,
        code.registers,
        code.shared_bytes,
        math.prod(launch.grid) / (gpu.multiprocessors * resident),
    )


def _halo_floor(call: Call, launch: HaloLaunch, gpu: GPULimits) -> Floor:
    share = WARP_PRODUCT_SHARE if gpu.capability >= (9, 0) else 1.0
    instructions = _halo_instructions(launch)
    return Floor(
        call.name,
        call.of,
        call.launches,
        call.bytes / gpu.hbm_bytes_per_second,
        HALO_BORDER * call.bytes / gpu.l2_bytes_per_second,
        launch.operations / (share * gpu.flops(launch.dtype)),
        launch.pixels / 16 * instructions / gpu.issue_per_second,
    )


def _halo_instructions(launch: HaloLaunch) -> float:
    """Return a warp's instructions for 16 pixels of a launch."""
    is_gradient = "gradient" in launch.fused
    instance = launch.kind, launch.c_in, launch.c_out
    if launch.dtype.itemsize == 4:
        counted = HALO_FP32_INSTRUCTIONS["weight gradient" if is_gradient else launch.fused]
        return counted * max(1.0, launch.operations / (2.0 * launch.pixels * HALO_PRODUCTS))
    if is_gradient:
        return HALO_GRADIENT_INSTRUCTIONS[instance]["masked" in launch.fused]
    return HALO_INSTRUCTIONS[instance][FUSED.index(launch.fused)]


def _loop(launch: TritonLaunch) -> tuple[float, float | None]:
    """(Trips of the kernel's loop, multiplications of a warp on tensor cores)."""
    given = launch.named
    if launch.kernel.__name__ == "convolution_kernel":
        phases = given["STRIDE"] if given["TRANSPOSED"] else 1
        steps = math.ceil(given["K"] / phases) ** 2 * math.ceil(given["C_IN"] / given["BLOCK_IN"])
        block = given["BLOCK_IN"] * given["BLOCK_OUT"]
    elif launch.kernel.__name__ == "weight_gradient_kernel":
        steps = math.ceil(given["tiles"] / given["splits"])
        block = given["BLOCK_A"] * given["BLOCK_B"]
    else:
        # Tiles that a program takes one after the other, where it counts them.
        return (given["tiles"] / launch.grid[0] if "tiles" in given else _trips(given)), None
    pixels = given["TILE_N"] * given["TILE_H"] * given["TILE_W"]
    return steps, steps * pixels * block / given["num_warps"]


def _trips(given: dict) -> float:
    """Trips of a memory-bound kernel's loop: what its counts say, and 1 where there is none."""
    for count, block in (("splits", "BLOCK_SPLITS"), ("count", "BLOCK_R"), ("C", "BLOCK_C"), ("blocks", "BLOCK")):
        if count in given and block in given:
            return math.ceil(given[count] / given[block])
    return 1


class Code(NamedTuple):
    """One kernel's machine code and what a block of it takes."""

    sass: str
    warps: int
    registers: int
    shared_bytes: int
    local_bytes: int


class Signature:
    """A launch, equal to those that Triton compiles alike: types, constants, and which numbers are 1 or 16 times n."""

    def __init__(self, launch: TritonLaunch):
        self.launch = launch
        self.key = launch.kernel.__name__, tuple(map(_kind, launch.args)), tuple(launch.options.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Signature) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _kind(argument: object) -> object:
    if isinstance(argument, Tensor):
        return argument.dtype
    return (argument == 1, argument % 16 == 0) if isinstance(argument, int) else type(argument)


@cache
def _compiled(signature: Signature, capability: int) -> Code:
    launch = signature.launch
    with assumed_gpu(capability):
        compiled = launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.options)
    (registers, local_bytes), code = inspect(compiled.asm["cubin"])
    return Code(code, compiled.metadata.num_warps, registers, compiled.metadata.shared, local_bytes)
