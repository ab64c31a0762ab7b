"""Channels from 1 to 1024, with vectors and without, and every number of threads that shares a pixel's."""

import pytest
import torch

from tests.cuda_on_cpu.workload import LAYOUTS
from tests.ops.implementations import CUDA_ON_CPU
from tests.ops.samples import Sample
from tests.ops.test_values import assert_values_and_gradients

CHANNELS = [*range(1, 36), *(n + more for n in (64, 128, 256, 512) for more in (-8, -1, 0, 1)), 1016, 1023, 1024]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bias_act(layout, dtype):
    # A channel alone is all of the norm: with a small eps its gradient would be nothing but rounding.
    options = {"pixel_norm": True, "eps": 0.5}
    with CUDA_ON_CPU.active():
        for c in CHANNELS:
            sample = Sample("bias_act", f"channels_{c}", {"x": (1, c, 2, 4), "bias": (c,)}, options)
            assert_values_and_gradients(CUDA_ON_CPU.function("bias_act"), sample, layout, dtype)
