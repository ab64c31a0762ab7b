"""Measures the fused convolution on this GPU: `python -m pggan_fast.kernels.tune [--dtype float16] [--batch 4]`.

For each convolution of the paper's networks: the fastest tile near the heuristic's, and whether that beats torch's
convolution with bias_act after it (or before it, for a gradient). The answers go into a JSON file beside Triton's
cache, which `impl="auto"` reads in processes started from then on; removing the file restores the heuristic.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from pggan_fast.kernels import bias_act
from pggan_fast.kernels.conv import Gate, convolve, signs_shape
from pggan_fast.kernels.conv_tiles import Problem, Tile, default_tile, key, table_path, tile_shape

DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16, torch.float32)}


def problems(dtype: torch.dtype, batch: int, top: int = 1024) -> Iterator[Problem]:
    """The convolutions of both networks up to `top` pixels (paper, table 2), and D's input gradients."""
    resolution = 8
    while resolution <= top:
        new, old = (min(8192 * 2 // r, 512) for r in (resolution, resolution // 2))
        size = (resolution, resolution)
        yield Problem(dtype, batch, old, new, *size, k=4, stride=2, transposed=True, pixel_norm=True)
        yield Problem(dtype, batch, new, new, *size, pixel_norm=True)
        yield Problem(dtype, batch, new, new, *size)
        yield Problem(dtype, batch, new, old, resolution // 2, resolution // 2, k=4, stride=2)
        yield Problem(dtype, batch, new, new, *size, transposed=True)
        yield Problem(dtype, batch, old, new, *size, k=4, stride=2, transposed=True)
        resolution *= 2


def neighbours(problem: Problem, tile: Tile) -> Iterator[Tile]:
    """Tiles that differ from this one in one respect."""
    pixels = tile.n * tile.h * tile.w
    for count in (pixels // 2, pixels * 2):
        if 32 <= count <= 256:
            n, h, w = tile_shape(count, problem.phase_h, problem.phase_w)
            yield tile._replace(n=n, h=h, w=w)
    for block_in in (tile.block_in // 2, tile.block_in * 2):
        if 16 <= block_in <= max(16, problem.c_in):
            yield tile._replace(block_in=block_in)
    for warps in (tile.warps // 2, tile.warps * 2):
        if 2 <= warps <= 8:
            yield tile._replace(warps=warps)
    for stages in (1, 2, 3, 4):
        if stages != tile.stages:
            yield tile._replace(stages=stages)


def descend(problem: Problem, seconds: Callable[[Tile], float]) -> tuple[Tile, float]:
    """From the heuristic's tile to neighbours while one is faster: (the tile, its time)."""
    times = {default_tile(problem): seconds(default_tile(problem))}
    best = default_tile(problem)
    while True:
        for tile in neighbours(problem, best):
            if tile not in times:
                times[tile] = seconds(tile)
        fastest = min(times, key=times.__getitem__)
        if times[fastest] >= times[best]:
            return best, times[best]
        best = fastest


def contenders(problem: Problem) -> tuple[Callable[[Tile], object], Callable[[], object]]:
    """(the fused launch with a tile, torch's convolution and the launch that does the rest), on random numbers."""
    p = problem
    ratio = (1, p.stride) if p.transposed else (p.stride, 1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=p.dtype, device="cuda").contiguous(memory_format=torch.channels_last)

    x = normal(p.n, p.c_in, p.h * ratio[0] // ratio[1], p.w * ratio[0] // ratio[1])
    weight = normal(*((p.c_in, p.c_out) if p.transposed else (p.c_out, p.c_in)), p.k, p.k)
    bias, like = torch.randn(p.c_out, device="cuda"), torch.randn_like(x)
    geometry = dict(stride=p.stride, padding=1)
    is_gradient = p.transposed and not p.pixel_norm
    epilogue = (1.0, "lrelu", 0.2, 1.0, p.pixel_norm)
    signs = torch.randint(-(2**31), 2**31, signs_shape(x), dtype=torch.int32, device="cuda")
    forward = dict(bias=bias, below=0.2, pixel_norm=p.pixel_norm, signs_wanted=not p.pixel_norm)
    options = dict(gate=Gate(signs, 1.0, 0.2)) if is_gradient else forward

    def fused(tile: Tile) -> object:
        return convolve(x, weight, size=(p.h, p.w), transposed=p.transposed, **geometry, **options, tile=tile)

    def split() -> object:
        taken = bias_act.backward(x, None, like, None, *epilogue, False)[0] if is_gradient else x
        convolution = torch.nn.functional.conv_transpose2d if p.transposed else torch.nn.functional.conv2d
        y = convolution(taken, weight, **geometry)
        return y if is_gradient else bias_act.forward_in_place(y, bias, *epilogue, 1e-8)

    return fused, split


def measure(problem: Problem) -> dict:
    """A line of the table."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    fused, split = contenders(problem)

    def seconds(tile: Tile) -> float:
        try:
            return do_bench(lambda: fused(tile)) / 1e3
        except OutOfResources:
            return float("inf")

    tile, best = descend(problem, seconds)
    other = do_bench(split) / 1e3
    print(f"{key(problem)}: {1e6 * best:.1f} us fused with {tuple(tile)}, {1e6 * other:.1f} us apart", flush=True)
    return {"tile": list(tile), "fused": best < other}


def save(table: dict[str, dict], path: Path) -> None:
    """Adds lines to the file: a process that reads meanwhile sees the old one or the new one."""
    before = json.loads(path.read_text()) if path.exists() else {}
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(json.dumps({**before, **table}, indent=1) + "\n")
    partial.replace(path)


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
        save({key(problem): measure(problem)}, path)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
