"""Measures the convolution's kernels on this GPU: `python -m pggan_fast.kernels.tune [--dtype float16] [--batch 4]`.

For each convolution of the paper's networks, forward, input gradient and weight gradient: the fastest tile near the
heuristic's, and whether that beats cuDNN (forward: with bias_act after it). The answers go into a JSON file beside
Triton's cache, one for each GPU and version of Triton, which `impl="auto"` reads in processes started from then on;
removing the file restores the heuristic.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pggan_fast.kernels import bias_act, conv_choice
from pggan_fast.kernels.conv import convolve
from pggan_fast.kernels.conv_table import save, table_path
from pggan_fast.kernels.conv_tiles import Problem, Tile, tile_shape
from pggan_fast.kernels.conv_tiles import default_tile as default_conv_tile
from pggan_fast.kernels.conv_weight_gradient import weight_gradient
from pggan_fast.kernels.conv_weight_tiles import WeightProblem, WeightTile, default_weight_tile

DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32)}


def problems(dtype: torch.dtype, batch: int, top: int = 1024) -> Iterator[Problem | WeightProblem]:
    """The convolutions of both networks up to `top` pixels (paper, table 2), each in its three directions."""
    resolution = 8
    while resolution <= top:
        new, old = (min(8192 * 2 // r, 512) for r in (resolution, resolution // 2))
        size, half = (resolution, resolution), (resolution // 2, resolution // 2)
        folded = dict(k=4, stride=2)
        # Forward: G's two layers, then D's.
        yield Problem(dtype, batch, old, new, *size, **folded, transposed=True, pixel_norm=True)
        yield Problem(dtype, batch, new, new, *size, pixel_norm=True)
        yield Problem(dtype, batch, new, new, *size, variant="signs")
        yield Problem(dtype, batch, new, old, *half, **folded, variant="signs")
        # Input gradients, of which those of G's and of D's second layers are the same.
        yield Problem(dtype, batch, new, new, *size, transposed=True)
        yield Problem(dtype, batch, old, new, *size, **folded, transposed=True)
        yield Problem(dtype, batch, new, old, *half, **folded)
        # Weight gradients.
        yield WeightProblem(dtype, batch, new, new, *size)
        yield WeightProblem(dtype, batch, old, new, *half, stride=2, folded=True)
        yield WeightProblem(dtype, batch, old, new, *half, stride=2, transposed=True, folded=True)
        resolution *= 2


def default_tile(problem: Problem | WeightProblem) -> Tile | WeightTile:
    """Return the heuristic's tile."""
    return default_conv_tile(problem) if isinstance(problem, Problem) else default_weight_tile(problem)


def is_modelled_faster(problem: Problem | WeightProblem) -> bool:
    """Whether `impl="auto"` takes our kernel for such a problem."""
    if isinstance(problem, WeightProblem):
        return conv_choice.is_own_weight_gradient_faster(problem)
    return conv_choice.is_own_faster(problem, epilogue_follows=_has_epilogue(problem))


def _has_epilogue(problem: Problem) -> bool:
    return problem.pixel_norm or problem.variant == "signs"


def neighbours(problem: Problem | WeightProblem, tile: Tile | WeightTile) -> Iterator[Tile | WeightTile]:
    """Tiles that differ from this one in one respect."""
    is_weight = isinstance(problem, WeightProblem)
    size = (problem.h, problem.w) if is_weight else (problem.phase_h, problem.phase_w)
    fewest = 16 if is_weight else 32
    pixels = tile.n * tile.h * tile.w
    for count in (pixels // 2, pixels * 2):
        if fewest <= count <= 256:
            n, h, w = tile_shape(count, *size)
            yield tile._replace(n=n, h=h, w=w)
    blocks = ("block_a", "block_b") if is_weight else ("block_in",)
    channels = (problem.c_a, problem.rows) if is_weight else (problem.c_in,)
    least = (16, problem.room_for_taps if is_weight and problem.folded else 16)
    for name, most, fewest in zip(blocks, channels, least, strict=False):
        block = getattr(tile, name)
        for count in (block // 2, block * 2):
            if max(16, fewest) <= count <= min(256, max(16, most)):
                yield tile._replace(**{name: count})
    for warps in (tile.warps // 2, tile.warps * 2):
        if 2 <= warps <= 8:
            yield tile._replace(warps=warps)
    for stages in (1, 2, 3, 4):
        if stages != tile.stages:
            yield tile._replace(stages=stages)


def descend(problem: Problem | WeightProblem, seconds: Callable) -> tuple[Tile | WeightTile, float]:
    """From the heuristic's tile to neighbours while one is faster: (the tile, its time)."""
    best = default_tile(problem)
    times = {best: seconds(best)}
    while True:
        for tile in neighbours(problem, best):
            if tile not in times:
                times[tile] = seconds(tile)
        fastest = min(times, key=times.__getitem__)
        if times[fastest] >= times[best]:
            return best, times[best]
        best = fastest


def contenders(problem: Problem | WeightProblem) -> tuple[Callable[[Tile], object], Callable[[], object]]:
    """Return (our launch with a tile, torch's convolution and the launch that does the rest), on random numbers."""
    return _weight_contenders(problem) if isinstance(problem, WeightProblem) else _conv_contenders(problem)


def _normal(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=dtype, device="cuda").contiguous(memory_format=torch.channels_last)


def _conv_contenders(p: Problem) -> tuple[Callable[[Tile], object], Callable[[], object]]:
    ratio = (1, p.stride) if p.transposed else (p.stride, 1)
    x = _normal(p.dtype, p.n, p.c_in, p.h * ratio[0] // ratio[1], p.w * ratio[0] // ratio[1])
    weight = _normal(p.dtype, *((p.c_in, p.c_out) if p.transposed else (p.c_out, p.c_in)), p.k, p.k)
    bias, geometry = torch.randn(p.c_out, device="cuda"), dict(stride=p.stride, padding=1)
    options = dict(bias=bias, negative_slope=0.2, pixel_norm=p.pixel_norm, keep_sign_bits=p.variant == "signs")
    options = options if _has_epilogue(p) else {}

    def fused(tile: Tile) -> object:
        return convolve(x, weight, size=(p.h, p.w), transposed=p.transposed, **geometry, **options, tile=tile)

    def split() -> object:
        convolution = torch.nn.functional.conv_transpose2d if p.transposed else torch.nn.functional.conv2d
        y = convolution(x, weight, **geometry)
        return bias_act.forward_in_place(y, bias, 1.0, "lrelu", 0.2, 1.0, p.pixel_norm, 1e-8) if options else y

    return fused, split


def _weight_contenders(p: WeightProblem) -> tuple[Callable[[WeightTile], object], Callable[[], object]]:
    a = _normal(p.dtype, p.n, p.c_a, p.h, p.w)
    b = _normal(p.dtype, p.n, p.c_b, p.h * p.stride, p.w * p.stride)
    c_out, c_in = (p.c_b, p.c_a) if p.transposed else (p.c_a, p.c_b)
    weight = _normal(torch.float32, c_out, c_in, p.k, p.k)
    filters = _normal(p.dtype, p.c_a, p.c_b, p.k + p.folded, p.k + p.folded)
    dz, x = (b, a) if p.transposed else (a, b)
    geometry = dict(stride=p.stride, padding=1)

    def own(tile: WeightTile) -> object:
        fold = 1.0 if p.folded else None
        return weight_gradient(dz, x, weight, **geometry, transposed=p.transposed, fold=fold, tile=tile)

    def split() -> object:
        arguments = ([p.stride] * 2, [1, 1], [1, 1], p.transposed, [0, 0], 1, [False, True, False])
        return torch.ops.aten.convolution_backward(dz, x, filters, None, *arguments)[1]

    return own, split


def measure(problem: Problem | WeightProblem) -> dict:
    """A line of the table."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    fused, split = contenders(problem)

    def seconds(tile: Tile | WeightTile) -> float:
        try:
            return do_bench(lambda: fused(tile)) / 1e3
        except OutOfResources:
            return float("inf")

    tile, best = descend(problem, seconds)
    other = do_bench(split) / 1e3
    print(f"{problem.key}: {1e6 * best:.1f} us with {tuple(tile)}, {1e6 * other:.1f} us by cuDNN", flush=True)
    return {"tile": list(tile), "faster": best < other}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pggan_fast.kernels.tune", description=__doc__.partition(":")[0])
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--batch", type=int, default=4, help="images per batch (default 4)")
    parser.add_argument("--resolution", type=int, default=1024, help="of the largest networks (default 1024)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no usable GPU found")
    path = table_path(torch.cuda.current_device())
    for problem in problems(DTYPES[arguments.dtype], arguments.batch, arguments.resolution):
        save({problem.key: measure(problem)}, path)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
