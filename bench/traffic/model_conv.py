"""Modelled forward times of the fused convolution and of plain PyTorch, for docs/kernels.md.

    python -m bench.traffic.model_conv          prints the tables
    python -m bench.traffic.model_conv --write  writes them into the page

No GPU is asked: every launch takes the larger of its bytes over HBM's rate and its operations over the FLOP/s of the
GPU that `pggan_fast.kernels.gpu_limits` models, and each tensor is read or written once per launch, as a cache that
holds a few rows of an image allows; fp32 is multiplied as tf32. Plain PyTorch is
`bench.baseline.eager`, traced on meta tensors; its bias is a launch of its own after cuDNN's convolution.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.baseline import eager
from bench.harness.marked import KERNELS_PAGE, write_part
from pggan_fast.kernels.conv_tiles import Problem
from pggan_fast.kernels.gpu_limits import MODELLED

RESOLUTIONS = (256, 512, 1024)
MOST_CHANNELS = 64
BATCH = 4
DTYPES = (torch.float16, torch.float32)
COMMAND = "python -m bench.traffic.model_conv --write"


class Launch(NamedTuple):
    name: str
    bytes: float
    operations: float = 0.0
    dtype: torch.dtype = torch.float32

    @property
    def seconds(self) -> float:
        return max(self.bytes / MODELLED.hbm_bytes_per_second, self.operations / MODELLED.flops(self.dtype))


class Layer(NamedTuple):
    """One layer at a resolution: what plain PyTorch runs on an input of this shape, and the fused launch."""

    name: str
    plain: Callable[[Tensor], Tensor]
    shape: tuple[int, int, int, int]
    problem: Problem

    def plain_launches(self) -> list[Launch]:
        with _Traced() as traced:
            self.plain(torch.empty(self.shape, dtype=self.problem.dtype, device="meta"))
        return traced.launches

    def fused_launch(self) -> Launch:
        p = self.problem
        bias, factors = 4 * p.c_out, 4 * p.n * p.h * p.w * p.pixel_norm
        return Launch("fused", p.in_bytes + p.weight_bytes + p.out_bytes + bias + factors, p.operations, p.dtype)


class _Traced(TorchDispatchMode):
    """Lists a launch for every ATen call that is no view."""

    def __init__(self):
        super().__init__()
        self.launches: list[Launch] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        y = func(*args, **kwargs or {})
        if func.is_view or func is torch.ops.aten.empty.memory_format:
            return y
        read = [t for t in args if isinstance(t, Tensor)]
        if func is torch.ops.aten.convolution.default:
            x, weight, bias = args[:3]
            operations = 2 * y.numel() * weight[0].numel()
            self.launches.append(Launch("convolution", _bytes(x, weight, y), operations, x.dtype))
            if bias is not None:
                self.launches.append(Launch("add_", _bytes(y, y, bias)))
        else:
            self.launches.append(Launch(func._schema.name.removeprefix("aten::"), _bytes(*read, y)))
        return y


def _bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.itemsize for t in tensors)


def layers(dtype: torch.dtype) -> Iterator[Layer]:
    """The layers of both networks at 256 px and more, as far as they end in `MOST_CHANNELS` channels or fewer."""
    for resolution in RESOLUTIONS:
        new, old = eager.channels(resolution, 8192, 512), eager.channels(resolution // 2, 8192, 512)
        low, high = (BATCH, old, resolution // 2, resolution // 2), (BATCH, new, resolution, resolution)
        rgb = (BATCH, 3, resolution, resolution)
        normed = dict(pixel_norm=True)

        def layer(name, plain, shape, c_out, size, k=3, resolution=resolution, **kind):
            problem = Problem(dtype, BATCH, shape[1], c_out, size, size, k, **kind)
            return Layer(f"{name} {resolution} px, {shape[1]} to {c_out} channels", plain, shape, problem)

        up, conv, to_rgb = _conv(old, new, dtype), _conv(new, new, dtype), _conv(new, 3, dtype, 1)
        from_rgb, down = _conv(3, new, dtype, 1), _conv(new, old, dtype)
        folded_up, folded_down = dict(k=4, stride=2, transposed=True), dict(k=4, stride=2)

        yield layer("G up", lambda x, f=up: _normed(f(_doubled(x))), low, new, resolution, **folded_up, **normed)
        yield layer("G conv", lambda x, f=conv: _normed(f(x)), high, new, resolution, **normed)
        yield layer("G to RGB", to_rgb, high, 3, resolution, k=1)
        yield layer("D from RGB", lambda x, f=from_rgb: F.leaky_relu(f(x), 0.2), rgb, new, resolution, k=1)
        yield layer("D conv", lambda x, f=conv: F.leaky_relu(f(x), 0.2), high, new, resolution)
        if old <= MOST_CHANNELS:
            pooled = lambda x, f=down: F.leaky_relu(F.avg_pool2d(f(x), 2), 0.2)  # noqa: E731
            yield layer("D down", pooled, high, old, resolution // 2, **folded_down)


def _conv(c_in: int, c_out: int, dtype: torch.dtype, k: int = 3) -> eager.EqualizedConv2d:
    return eager.EqualizedConv2d(c_in, c_out, k).to(device="meta", dtype=dtype)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def _normed(x: Tensor) -> Tensor:
    return eager.pixel_norm(F.leaky_relu(x, 0.2))


class Row(NamedTuple):
    layer: str
    plain_launches: int
    plain_seconds: float
    fused_seconds: float
    bound: str

    @property
    def ratio(self) -> float:
        return self.plain_seconds / self.fused_seconds


def rows(dtype: torch.dtype) -> list[Row]:
    """One per layer, then the sum of all."""
    found = []
    for layer in layers(dtype):
        with torch.no_grad():
            plain = layer.plain_launches()
        fused = layer.fused_launch()
        bound = "bytes" if math.isclose(fused.seconds, fused.bytes / MODELLED.hbm_bytes_per_second) else "operations"
        found.append(Row(layer.name, len(plain), sum(launch.seconds for launch in plain), fused.seconds, bound))
    total = (sum(row[i] for row in found) for i in (1, 2, 3))
    return [*found, Row("all of them", *total, "")]


def table(dtype: torch.dtype) -> str:
    """Markdown."""
    lines = [
        "| layer | launches, plain | ms, plain | ms, fused | bound by | plain / fused |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.layer} | {row.plain_launches} | {1e3 * row.plain_seconds:.3f} | {1e3 * row.fused_seconds:.3f} "
        f"| {row.bound} | {row.ratio:.1f} |"
        for row in rows(dtype)
    ]
    return "\n".join(lines)


def part() -> str:
    """Return both tables and the rates that they are computed at."""
    rates = ", ".join(f"{MODELLED.flops(dtype) / 1e12:.0f} TFLOP/s in {_name(dtype)}" for dtype in DTYPES)
    lines = [f"At an {MODELLED.name}'s {MODELLED.hbm_bytes_per_second / 1e12:.1f} TB/s and {rates}, batch {BATCH}:"]
    for dtype in DTYPES:
        lines += [f"Modelled, {_name(dtype)}:", table(dtype)]
    return "\n\n".join(lines)


def _name(dtype: torch.dtype) -> str:
    return {torch.float16: "fp16", torch.float32: "fp32"}[dtype]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.traffic.model_conv", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--write", action="store_true", help="Write the tables into docs/kernels.md, not to the terminal."
    )
    if parser.parse_args().write:
        write_part(KERNELS_PAGE, COMMAND, part())
    else:
        print(part())


if __name__ == "__main__":
    main()
