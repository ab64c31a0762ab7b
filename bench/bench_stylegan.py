"""The StyleGAN family's ops on 64 channels, fp32, against what its codebases fall back to where nothing compiles.

pytest bench/bench_stylegan.py
"""

import runpy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.baseline import stylegan as plain
from bench.harness.cases import LAYOUTS, op_case
from bench.harness.table import DOUBLE, PASSES, Op, Shape, bias_act_inputs, image_inputs, low_inputs, normal
from bench.harness.timing import Case
from pggan_fast import ops, use_impl
from pggan_fast.ops import modulated_conv
from pggan_fast.ops.grouped_conv import GroupedConvolution

EXAMPLE = Path(__file__).parents[1] / "examples" / "stylegan2_step.py"
FILTER = plain.filter_4x4()
SHAPES = ((4, 64, 64, 64), (4, 64, 128, 128), (1, 64, 256, 256))
RESAMPLINGS = {
    "up2": dict(up=2, padding=(2, 1), gain=4.0),
    "down2": dict(down=2, padding=(1, 1)),
    "blur": dict(padding=(2, 1)),
}
MODULATED = [(n, c, size, size) for n in (1, 4, 8) for c in (32, 128, 512) for size in (8, 16, 32) if n * size < 200]


def resampling(name: str) -> Op:
    options = RESAMPLINGS[name]
    before, after = options["padding"]
    # Values read and written for each one at the large side.
    moved = 2.0 if name == "blur" else 1.25
    return Op(
        f"upfirdn2d, {name}",
        low_inputs if name == "up2" else image_inputs,
        lambda x: plain.upfirdn2d(x, FILTER, **options),
        lambda x: ops.upfirdn2d(x, FILTER, **(options | {"padding": (before, after, before, after)})),
        lambda n, size: (moved * n * size, moved * n * size),
    )


def activation(act: str, clamp: float | None) -> Op:
    gain = plain.ACTIVATIONS[act][1]
    return Op(
        f"bias_act, {act}{'' if clamp is None else ', clamp'}",
        bias_act_inputs,
        partial(plain.bias_act, act=act, clamp=clamp),
        partial(ops.bias_act, act=act, gain=gain, clamp=clamp),
        lambda n, size: (2 * n * size, 3 * n * size),
    )


def modulated_inputs(shape: Shape, dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    n, c, _, _ = shape
    weight, styles = normal((c, c, 3, 3), dtype, generator), 1 + 0.5 * normal((n, c), dtype, generator)
    return [normal(shape, dtype, generator), weight, styles]


def modulated(fused: bool) -> Op:
    return Op(
        f"modulated_conv2d against {'grouped' if fused else 'scaled'}",
        modulated_inputs,
        partial(plain.modulated_conv2d, fused=fused),
        partial(ops.modulated_conv2d, padding=1),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("name", RESAMPLINGS)
def test_upfirdn2d(name: str, shape: Shape, layout: str, timed, record, device: str) -> None:
    case = op_case(resampling(name), shape, "fp32", layout, PASSES[1], compiled=False, copied=True, device=device)
    record(timed(case))


@pytest.mark.parametrize("passes", [PASSES[1], DOUBLE])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("clamp", [None, 256.0])
@pytest.mark.parametrize("act", plain.ACTIVATIONS)
def test_bias_act(act: str, clamp: float | None, layout: str, passes: str, timed, record, device: str) -> None:
    if act == "linear" and passes == DOUBLE:
        pytest.skip("neither x + bias nor a clamp of it has a second derivative to time")
    case = op_case(
        activation(act, clamp), SHAPES[0], "fp32", layout, passes, compiled=False, copied=True, device=device
    )
    record(timed(case))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", MODULATED, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("fused", [True, False])
def test_modulated_conv2d(fused: bool, shape: Shape, layout: str, timed, record, device: str) -> None:
    case = op_case(modulated(fused), shape, "fp32", layout, PASSES[1], compiled=False, copied=False, device=device)
    record(timed(case))


def plain_convolution(x: Tensor, weight: Tensor, conv: GroupedConvolution) -> Tensor:
    if conv.transposed:
        return F.conv_transpose2d(x, weight, None, conv.stride, conv.padding, 0, conv.groups)
    return F.conv2d(x, weight, None, conv.stride, conv.padding, 1, conv.groups)


@contextmanager
def plain_pytorch() -> Iterator[None]:
    """Inside, the example computes by torch's functions alone, differentiated by torch."""
    with use_impl("reference"), patch.object(modulated_conv, "convolve", plain_convolution):
        yield


@pytest.mark.parametrize("resolution", [64])
def test_step(resolution: int, timed, record, device: str) -> None:
    """A step of D with R1 and of G with path length, both from the same weights, in plain PyTorch and with our ops."""
    if device != "cpu":
        pytest.skip("the example trains on the CPU")
    step = SimpleNamespace(**runpy.run_path(str(EXAMPLE)))
    variants = {
        "eager": (plain_pytorch, step.Training(resolution)),
        "ours": (nullcontext, step.Training(resolution)),
    }
    z, reals = torch.randn(4, step.LATENT_DIM), torch.randn(4, 3, resolution, resolution)

    def train(name: str) -> tuple[float, float]:
        context, training = variants[name]
        with context():
            return training.step(z, reals, seed=0)

    def check() -> None:
        # The first step's, before Adam has made steps of one size of all gradients.
        expected, actual = train("eager"), train("ours")
        assert actual == pytest.approx(expected, rel=1e-2)

    labels = {
        "suite": "StyleGAN2's step",
        "shape": f"4x3x{resolution}x{resolution}",
        "dtype": "fp32",
        "layout": "nchw",
        "pass": "training step",
    }
    record(timed(Case(labels, {name: lambda _, name=name: train(name) for name in variants}, check, device=device)))
