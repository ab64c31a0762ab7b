"""Whether a convolution, in each of its three directions, goes to cuDNN or to a kernel of ours.

What `tune` measured on this GPU goes before all else. From 64 channels on cuDNN takes the rest, since L2 binds Triton's
tiles there; below, the roofline of this GPU decides.
"""

from pggan_fast.kernels import conv_tiles, conv_weight_tiles
from pggan_fast.kernels.conv_table import measurement
from pggan_fast.kernels.conv_tiles import MOST_NORMED_CHANNELS, Problem, Tile, default_tile, limits, on_tensor_cores
from pggan_fast.kernels.conv_weight_tiles import WeightProblem, WeightTile, default_weight_tile

CUDNN_CHANNELS = 64
"""From so many channels on, cuDNN takes a convolution that was not measured."""

CUDNN_EFFICIENCY = 0.7
"""Share of a dense product's FLOP/s that cuDNN is taken to reach where it is bound by arithmetic."""

CUDNN_TILE = Tile(1, 8, 16, 32, 128, 8, 4)
CUDNN_WEIGHT_TILE = WeightTile(1, 4, 8, 128, 128, 8, 4)
"""Tiles that cuDNN is taken to use: its taps come through L2 as ours do, and few channels are padded to a tile."""

WEIGHT_INSTRUCTIONS = 241
"""Instructions of a warp for a step of the weight gradient's loop, counted in the code for capability 9.0.

That of 16 channels in bf16; with other dtypes and up to 63 channels, folded weights included, they are 183 to 261.
"""

LAUNCH_SECONDS = 3e-6


def is_own_faster(problem: Problem, epilogue_follows: bool = True) -> bool:
    """Whether our launch beats cuDNN's convolution and the launch of the epilogue, if one follows it."""
    if problem.pixel_norm and problem.c_out > MOST_NORMED_CHANNELS:
        return False
    if not on_tensor_cores(problem.dtype):
        return False
    if found := measurement(problem):
        return found["faster"]
    if max(problem.c_in, problem.c_out) >= CUDNN_CHANNELS:
        return False
    epilogue = epilogue_seconds(problem) if epilogue_follows else 0
    return own_seconds(problem, default_tile(problem)) < cudnn_seconds(problem) + epilogue


def is_own_weight_gradient_faster(problem: WeightProblem) -> bool:
    """Whether our launches beat cuDNN's weight gradient."""
    if not on_tensor_cores(problem.dtype):
        return False
    if found := measurement(problem):
        return found["faster"]
    if max(problem.c_a, problem.c_b) >= CUDNN_CHANNELS:
        return False
    return own_weight_seconds(problem) < cudnn_weight_seconds(problem)


def own_seconds(problem: Problem, tile: Tile) -> float:
    """Return the largest of our launch's times for HBM, for L2 and for tensor cores, on as many as it keeps busy."""
    gpu = limits()
    hbm = problem.in_bytes + problem.weight_bytes + problem.out_bytes
    busy = min(1.0, conv_tiles.programs(problem, tile) / gpu.multiprocessors)
    arithmetic = problem.operations / gpu.flops(problem.dtype)
    l2 = conv_tiles.l2_bytes(problem, tile) / gpu.l2_bytes_per_second
    return max(hbm / gpu.hbm_bytes_per_second, l2, arithmetic) / busy


def cudnn_seconds(problem: Problem) -> float:
    """Return the same of cuDNN's convolution alone."""
    gpu = limits()
    hbm = problem.in_bytes + problem.weight_bytes + problem.out_bytes
    arithmetic = problem.operations / (gpu.flops(problem.dtype) * CUDNN_EFFICIENCY)
    l2 = conv_tiles.l2_bytes(problem, CUDNN_TILE) / gpu.l2_bytes_per_second
    return max(hbm / gpu.hbm_bytes_per_second, l2, arithmetic)


def epilogue_seconds(problem: Problem) -> float:
    """Return the time of the launch that reads and writes the output once more; a small one is still in L2."""
    gpu = limits()
    in_cache = 2 * problem.out_bytes <= gpu.l2_bytes
    return LAUNCH_SECONDS + 2 * problem.out_bytes / (gpu.l2_bytes_per_second if in_cache else gpu.hbm_bytes_per_second)


def own_weight_seconds(problem: WeightProblem) -> float:
    """Return the largest of our launch's times for HBM, L2, tensor cores and instructions."""
    gpu, tile = limits(), default_weight_tile(problem)
    l2 = conv_weight_tiles.l2_bytes(problem, tile)
    steps = l2 / ((tile.block_a + tile.block_b) * tile.n * tile.h * tile.w * problem.dtype.itemsize)
    return max(
        problem.read_bytes / gpu.hbm_bytes_per_second,
        l2 / gpu.l2_bytes_per_second,
        problem.operations / gpu.flops(problem.dtype),
        steps * tile.warps * WEIGHT_INSTRUCTIONS / gpu.issue_per_second,
    )


def cudnn_weight_seconds(problem: WeightProblem) -> float:
    """Return the same of cuDNN's, of whose instructions nothing is known."""
    gpu = limits()
    arithmetic = problem.operations / (gpu.flops(problem.dtype) * CUDNN_EFFICIENCY)
    l2 = conv_weight_tiles.l2_bytes(problem, CUDNN_WEIGHT_TILE) / gpu.l2_bytes_per_second
    return max(problem.read_bytes / gpu.hbm_bytes_per_second, l2, arithmetic)
