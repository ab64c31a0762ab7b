"""Launches of every memory-bound kernel on the networks' shapes, and the table of what they compile to.

    python -m tests.kernels.memory_bound

prints the table of docs/kernels.md.
"""

import math
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from bench.roofline.aot import Compiled, compiling
from pggan_fast.kernels import bias_act, fade, filtered_lrelu, resample, stddev, upfirdn2d
from pggan_fast.kernels.gpu_limits import H200

EPILOGUE = (0.1, "lrelu", 0.2, 1.0)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Make(NamedTuple):
    """Draws tensors that have shapes alone."""

    dtype: torch.dtype
    layout: str

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.dtype, device="meta", memory_format=LAYOUTS[self.layout])

    def factors(self, n: int, h: int, w: int) -> Tensor:
        return torch.empty(n, 1, h, w, device="meta")


class Case(NamedTuple):
    """A call of an op that launches kernels of a module."""

    label: str
    module: ModuleType
    shape: tuple[int, int, int, int]
    call: Callable[[Make, tuple], object]

    def __str__(self) -> str:
        return f"{self.label}-{'x'.join(map(str, self.shape))}"

    @property
    def is_typical(self) -> bool:
        """Whether it has the middle one of its op's shapes."""
        return self.shape not in (SHAPES[0], SHAPES[2])

    def compile(self, dtype: torch.dtype, layout: str, capability: int) -> list[Compiled]:
        with compiling(self.module, capability) as found:
            self.call(Make(dtype, layout), self.shape)
        return found


def _forward(norm: bool) -> Callable:
    return lambda t, s: bias_act.forward(t(*s), torch.empty(s[1], device="meta"), *EPILOGUE, norm, 1e-8)


def _backward(norm: bool) -> Callable:
    def call(t: Make, s: tuple):
        r = t.factors(s[0], *s[2:]) if norm else None
        bias_act.backward(t(*s), None, t(*s), r, *EPILOGUE, norm, True)

    return call


def _double_backward(norm: bool) -> Callable:
    def call(t: Make, s: tuple):
        r = t.factors(s[0], *s[2:]) if norm else None
        bias_act.double_backward(t(*s), torch.empty(s[1], device="meta"), t(*s), r, t(*s), r, *EPILOGUE, norm)

    return call


def _halved(s: tuple) -> tuple:
    return (*s[:2], s[2] // 2, s[3] // 2)


def _wide(s: tuple) -> tuple:
    return (s[0], s[1] + 1, *s[2:])


def _filtering(up: int, down: int, taps: int) -> Callable:
    def call(t: Make, s: tuple):
        f, pad = torch.empty(taps, device="meta"), taps - up + 1 - down
        before, after = pad - pad // 2, pad // 2
        upfirdn2d.upfirdn2d(t(*s), f, up, up, down, down, before, after, before, after, False, 1.0)

    return call


def _filtered(up: int, down: int, up_taps: int, down_taps: int, backward: bool = False) -> Callable:
    """StyleGAN3's activation, with taps before and behind the image that keep `up / down` of its size."""

    def call(t: Make, s: tuple):
        fu, fd = (torch.empty(taps, device="meta") for taps in (up_taps, down_taps))
        pad, (n, c, h, w) = (up_taps + down_taps - up) // 2, s
        step, grid_h, grid_w = math.lcm(up, down), h * up + 2 * pad - up_taps + 1, w * up + 2 * pad - up_taps + 1
        if not backward:
            sides = (pad, pad, pad, pad)
            options = (False, 2**0.5, 0.2, 256.0, True)
            filtered_lrelu.forward(t(*s), torch.empty(c, device="meta"), fu, fd, up, down, *sides, *options)
            return
        dy = t(n, c, (grid_h - down_taps) // down + 1, (grid_w - down_taps) // down + 1)
        shape = (n, c, -(-grid_h // 4), step, -(-grid_w // step))
        mask = torch.empty(shape, dtype=torch.uint8, device="meta")
        paddings = (down_taps - 1, down_taps - 1, up_taps - 1 - pad, up_taps - 1 - pad)
        options = (grid_h, grid_w, h, w, True, 2**0.5 * up**2, 0.2)
        filtered_lrelu.masked(dy, mask, fd, fu, down, up, *paddings, *options)

    return call


STDDEV = (4, 1, 1e-8, True, 0)
SHAPES = [(8, 512, 16, 16), (8, 64, 256, 256), (4, 16, 1024, 1024)]
RGB = (8, 3, 256, 256)
CASES = [
    *(Case("bias_act", bias_act, s, _forward(False)) for s in SHAPES),
    *(Case("bias_act, norm", bias_act, s, _forward(True)) for s in SHAPES),
    *(Case("bias_act backward", bias_act, s, _backward(False)) for s in SHAPES),
    *(Case("bias_act backward, norm", bias_act, s, _backward(True)) for s in SHAPES),
    *(Case("bias_act double backward", bias_act, s, _double_backward(False)) for s in SHAPES),
    *(Case("bias_act double backward, norm", bias_act, s, _double_backward(True)) for s in SHAPES),
    Case("bias_act", bias_act, RGB, _forward(False)),
    Case("bias_act backward", bias_act, RGB, _backward(False)),
    Case("bias_act double backward", bias_act, RGB, _double_backward(False)),
    Case("upsample2x", resample, SHAPES[1], lambda t, s: resample.upsample(t(*_halved(s)), 1.0, 0, 0)),
    Case("downsample2x", resample, SHAPES[1], lambda t, s: resample.downsample(t(*s), 0.25)),
    Case("fade_in", fade, SHAPES[1], lambda t, s: fade.fade_in(t(*_halved(s)), t(*s), None, 0.5)),
    Case("fade_in backward", fade, SHAPES[1], lambda t, s: fade.fade_in_backward(t(*s), None, 0.5)),
    Case("blend backward", fade, SHAPES[1], lambda t, s: fade.blend_backward(t(*s), None, 0.5)),
    Case("fade_reals", fade, SHAPES[1], lambda t, s: fade.fade_reals(t(*s), None, 0.5, t.dtype)),
    Case(
        "fade_reals, bytes",
        fade,
        SHAPES[1],
        lambda t, s: fade.fade_reals(t(*s, dtype=torch.uint8), None, 0.5, t.dtype),
    ),
    Case("upsample2x", resample, RGB, lambda t, s: resample.upsample(t(*_halved(s)), 1.0, 0, 0)),
    Case("downsample2x", resample, RGB, lambda t, s: resample.downsample(t(*s), 0.25)),
    Case("fade_in", fade, RGB, lambda t, s: fade.fade_in(t(*_halved(s)), t(*s), None, 0.5)),
    Case("fade_in backward", fade, RGB, lambda t, s: fade.fade_in_backward(t(*s), None, 0.5)),
    Case("fade_reals", fade, RGB, lambda t, s: fade.fade_reals(t(*s), None, 0.5, t.dtype)),
    Case("fade_reals, bytes", fade, RGB, lambda t, s: fade.fade_reals(t(*s, dtype=torch.uint8), None, 0.5, t.dtype)),
    Case("upfirdn2d, blur", upfirdn2d, SHAPES[1], _filtering(1, 1, 4)),
    Case("upfirdn2d, up", upfirdn2d, SHAPES[1], lambda t, s: _filtering(2, 1, 4)(t, _halved(s))),
    Case("upfirdn2d, down", upfirdn2d, SHAPES[1], _filtering(1, 2, 4)),
    Case("upfirdn2d, 12 taps", upfirdn2d, SHAPES[1], lambda t, s: _filtering(2, 1, 12)(t, _halved(s))),
    Case("filtered_lrelu", filtered_lrelu, SHAPES[1], _filtered(2, 2, 12, 12)),
    Case("filtered_lrelu backward", filtered_lrelu, SHAPES[1], _filtered(2, 2, 12, 12, True)),
    Case("filtered_lrelu, up 4", filtered_lrelu, (8, 64, 128, 128), _filtered(4, 2, 24, 12)),
    Case("filtered_lrelu, up 4, backward", filtered_lrelu, (8, 64, 128, 128), _filtered(4, 2, 24, 12, True)),
    Case("filtered_lrelu", filtered_lrelu, (8, 512, 16, 16), _filtered(2, 2, 12, 12)),
    Case("minibatch_stddev", stddev, (16, 512, 4, 4), lambda t, s: stddev.forward(t(*s), *STDDEV)),
    Case(
        "minibatch_stddev backward", stddev, (16, 512, 4, 4), lambda t, s: stddev.backward(t(*_wide(s)), t(*s), *STDDEV)
    ),
    Case(
        "minibatch_stddev double backward",
        stddev,
        (16, 512, 4, 4),
        lambda t, s: stddev.double_backward(t(*s), t(*_wide(s)), t(*s), *STDDEV),
    ),
]


def share_of_128_bits(compiled: Compiled) -> float:
    """Return the part of the bytes moved by loads and stores of global memory that goes by 128 bits a thread."""
    widths = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
    moved = {True: 0, False: 0}
    for modifiers in re.findall(r"\b(?:LDG|STG|LDGSTS)((?:\.\w+)+)", compiled.sass):
        width = next((widths[m] for m in modifiers.split(".") if m in widths), 4)
        moved[width == 16] += width
    return moved[True] / max(sum(moved.values()), 1)


def occupancy(compiled: Compiled) -> float:
    """Return the part of the threads that a multiprocessor of capability 9.0 can hold that it holds of this kernel."""
    blocks = H200.resident_blocks(compiled.registers, compiled.shared_bytes, compiled.warps)
    return blocks * compiled.warps * 32 / H200.threads


def table() -> Iterator[str]:
    """Markdown: each kernel in bfloat16 for capability 9.0."""
    yield "| op | shape | layout | kernel | warps | registers | shared memory | by 128 bits | occupancy |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for case in (c for c in CASES if c.is_typical):
        for layout in LAYOUTS:
            for found in case.compile(torch.bfloat16, layout, 90):
                yield (
                    f"| {case.label} | {' x '.join(map(str, case.shape))} | {layout} | {found.kernel} | {found.warps} "
                    f"| {found.registers} | {found.shared_bytes} | {share_of_128_bits(found):.0%} "
                    f"| {occupancy(found):.0%} |"
                )


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
