"""Rounding to bfloat16 and exponentials in the CPU kernels of every instruction set; others run the newest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pggan_fast.ops.dispatch import unavailable_reason

ROOT = Path(__file__).parents[2]
ROUNDING = """
import torch
from pggan_fast import ops

def bits(x):
    return x.contiguous().view(torch.int16)

def assert_same_bits(actual, expected):
    nan = expected.isnan()
    assert torch.equal(actual.isnan(), nan)
    assert torch.equal(torch.where(nan, 0, bits(actual)), torch.where(nan, 0, bits(expected)))

every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).view(4, 16, 32, 32)
bias = torch.linspace(-3, 3, 16) * 2.0 ** torch.arange(-14, 18, 2)
low = torch.randn(4, 16, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
ones = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)  # NaN of ones alone, of either sign
for layout in (torch.contiguous_format, torch.channels_last):
    x, coarse = every.contiguous(memory_format=layout), low.contiguous(memory_format=layout)
    y = ops.bias_act(x, bias, act="linear", impl="native")
    assert_same_bits(y, (every.float() + bias.view(1, -1, 1, 1)).bfloat16())
    wide = low.float().repeat_interleave(2, 2).repeat_interleave(2, 3)
    # A product with a quarter or a half is exact: it does not matter whether it is fused with the sum.
    y = ops.fade_in(coarse, x, 0.25, impl="native")
    assert_same_bits(y, (wide + (every.float() - wide) * 0.25).bfloat16())
    y = ops.fade_in(coarse, x, 0.5, impl="native")
    assert_same_bits(y, (every.float() + (wide - every.float()) * 0.5).bfloat16())
    y = ops.bias_act(low.contiguous(memory_format=layout), ones.repeat(8), act="linear", impl="native")
    assert y.isnan().all()
"""


EXPONENTIALS = """
import torch
from tests.ops import test_activation as tests

for act in tests.SMOOTH:
    tests.test_values_are_exact_to_few_units_in_the_last_place(act)
    tests.test_infinities_and_nan(act)
    for dtype in (torch.float32, torch.float64):
        tests.test_derivatives_are_as_exact_as_the_dtype(act, dtype)
        tests.test_exponentials_below_the_least_normal_number_vanish(act, dtype)
"""


@pytest.mark.skipif(unavailable_reason("native", "cpu") is not None, reason="the CPU kernels were not built")
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
@pytest.mark.parametrize("script", [ROUNDING, EXPONENTIALS], ids=["rounding to bfloat16", "exponentials"])
def test_levels(script, capability):
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    ran = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
