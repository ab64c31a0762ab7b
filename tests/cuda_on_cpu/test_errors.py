"""Errors against fp64 beside those of the baseline, bench/baseline/eager.py, in the same dtype: at most twice.

The matrix of test_values.py compares with pggan_fast.reference, which computes half precision in fp32; people do not.
"""

import pytest
import torch
import torch.nn.functional as F

from bench.baseline import eager
from tests.cuda_on_cpu.workload import LAYOUTS
from tests.ops.implementations import CUDA_ON_CPU
from tests.ops.samples import Sample
from tests.ops.test_values import derivatives, expected
from tests.tolerances import EAGER, TWICE, largest, rms

X, LOW, ALPHA = (8, 64, 8, 8), (8, 64, 4, 4), 0.3
CASES = [
    (Sample("bias_act", "eager", {"x": X, "bias": X[1:2]}), eager.bias_act),
    (Sample("bias_act", "eager_norm", {"x": X, "bias": X[1:2]}, {"pixel_norm": True}), eager.bias_act_pixel_norm),
    (Sample("pixel_norm", "eager", {"x": X}), eager.pixel_norm),
    (Sample("upsample2x", "eager", {"x": X}), lambda x: F.interpolate(x, scale_factor=2, mode="nearest")),
    (Sample("downsample2x", "eager", {"x": X}), lambda x: F.avg_pool2d(x, 2)),
    (Sample("fade_in", "eager", {"low": LOW, "high": X}, {"alpha": ALPHA}), lambda *t: eager.fade_in(*t, ALPHA)),
    (Sample("fade_reals", "eager", {"images": X}, {"alpha": ALPHA}), lambda x: eager.fade_reals(x, ALPHA, x.dtype)),
    (Sample("minibatch_stddev", "eager", {"x": X}), eager.minibatch_stddev),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("sample", "baseline"), CASES, ids=[str(sample) for sample, _ in CASES])
def test_errors_are_at_most_twice_eagers(sample, baseline, dtype, layout):
    """Compare results and gradients of both orders."""
    directions, _, exact = expected(sample, dtype)
    function, tensors = CUDA_ON_CPU.function(sample.op), sample.tensors(dtype)
    theirs = derivatives(baseline, tensors, "contiguous", dict(directions))
    with CUDA_ON_CPU.active():
        ours = derivatives(lambda *t: function(*t, **sample.options), tensors, layout, dict(directions))
    assert ours.keys() == theirs.keys()
    for name, result in ours.items():
        for measure in (rms, largest):
            error, baseline_error = (measure(t.double() - exact[name]) for t in (result, theirs[name]))
            floor = EAGER.eps * torch.finfo(dtype).eps * measure(exact[name])
            assert error <= TWICE * baseline_error + floor, f"{name}: {measure.__name__} {error:.3g}"
