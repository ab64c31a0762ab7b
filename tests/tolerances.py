"""The tolerances of the op tests, each with its reason.

Results in half precision and fp32 are not compared with a number of digits but with what plain PyTorch
(`pggan_fast.reference`) reaches in the same dtype, both against the reference in fp64 on the same inputs: the root
mean square of the error and its largest may each be at most TWICE plain PyTorch's, plus a floor. A floor counts in
units of the dtype's eps (2**-52, 2**-23, 2**-7, 2**-10) and relates to the root mean square, or the largest
magnitude, of the exact result.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TWICE = 2.0


class Floor(NamedTuple):
    eps: float
    reason: str


_SUMS = "sums over channels or pixels are taken in another order"
_KEPT = "backward reads y as it was rounded, before terms that cancel; plain PyTorch keeps fp32"
FLOORS: dict[tuple[str, torch.dtype], Floor] = {
    ("output", torch.float64): Floor(64, f"{_SUMS}, and the exact result has such errors itself"),
    ("first", torch.float64): Floor(128, "as for the output, twice"),
    ("second", torch.float64): Floor(256, "as for the output, four times"),
    ("output", torch.float32): Floor(4, _SUMS),
    ("first", torch.float32): Floor(32, f"{_SUMS}: a bias's over a whole batch and image"),
    ("second", torch.float32): Floor(32, f"{_SUMS}: a bias's over a whole batch and image"),
}
for _dtype in (torch.bfloat16, torch.float16):
    FLOORS["output", _dtype] = Floor(0.5, "a folded weight is rounded, which plain PyTorch does not have")
    FLOORS["first", _dtype] = Floor(2, _KEPT)
    FLOORS["second", _dtype] = Floor(8, f"{_KEPT}; the first gradient is rounded too")

# Beside twice the error of idiomatic eager code (bench/baseline/eager.py).
EAGER = Floor(0.01, "a result that is a copy but for one map: the map's errors are far below an eps of the whole")

# torch.autograd.gradcheck in fp64. A central difference of step 1e-6 errs by eps / step = 2e-10 for values of order 1
# and by step**2 times the third derivative, which minibatch_stddev and pixel norm make large near zero deviation.
GRADCHECK = {"eps": 1e-6, "atol": 1e-7, "rtol": 1e-5}

# fp64 against fp64, through up to 300 products and the sums of as many terms.
EXACT = {"rtol": 1e-11, "atol": 1e-12}

# The same kernels compiled and not, in fp32 and bf16: Inductor orders sums of its own anew and AOT autograd may sum the
# gradients of two uses in another order, each a few eps of fp32 in values of order 1 to 100.
COMPILED = {"rtol": 1e-4, "atol": 1e-4}


class Autocast(NamedTuple):
    factor: float
    floor: float
    reason: str


AUTOCAST = Autocast(
    2.0,
    2.0**-7,
    "twice eager's error under the same autocast, and an eps of bf16: y is bf16 and kept so for backward, while "
    "eager's bias, in fp32, makes fp32 of all that follows",
)


def coarsest(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype with the largest eps."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def rms(x: Tensor) -> float:
    return x.double().square().mean().sqrt().item() if x.numel() else 0.0


def largest(x: Tensor) -> float:
    return x.double().abs().max().item() if x.numel() else 0.0


def assert_accurate(
    what: str,
    actual: Tensor,
    plain: Tensor,
    exact: Tensor,
    *,
    order: str,
    dtype: torch.dtype,
    condition: float = 1.0,
) -> None:
    """actual, from the implementation under test, is as near to exact (fp64) as plain is, up to the table above.

    order: "output", or "first" or "second" for gradients. dtype: the coarsest on the way.
    condition: multiplies the floor where rounding an input moves the result by that much more.
    """
    assert actual.shape == plain.shape and actual.dtype == plain.dtype, what
    assert actual.isfinite().all(), f"{what}: {int((~actual.isfinite()).sum())} of {actual.numel()} are not finite"
    floor = FLOORS[order, dtype].eps * torch.finfo(dtype).eps * condition
    for measure in (rms, largest):
        error, plain_error = measure(actual.double() - exact), measure(plain.double() - exact)
        allowed = TWICE * plain_error + floor * measure(exact)
        assert error <= allowed, (
            f"{what}: {measure.__name__} error {error:.3g}, plain PyTorch's {plain_error:.3g}, allowed {allowed:.3g}"
        )
