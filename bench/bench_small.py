"""Small work, where the time goes into calling: host overhead decides at 4 to 16 px."""

import pytest

from bench.harness.cases import LAYOUTS, op_case
from bench.harness.table import SMALL, Op, Shape

SHAPES = ((4, 8, 4, 4), (16, 512, 4, 4))
VECTORS = (16, 2048, 1, 1)
"""What a linear layer gives its epilogue: rows of channels without pixels."""


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("op", SMALL, ids=lambda op: op.name)
def test_small(op: Op, shape: Shape, dtype: str, layout: str, timed, record, device) -> None:
    case = op_case(op, shape, dtype, layout, "forward+backward", compiled=False, copied=False, device=device)
    case.labels["suite"] = f"small {op.name}"
    record(timed(case, seconds=0.5))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("op", [op for op in SMALL if op.name.startswith("bias_act")], ids=lambda op: op.name)
def test_vectors(op: Op, dtype: str, timed, record, device) -> None:
    case = op_case(op, VECTORS, dtype, "nchw", "forward+backward", compiled=False, copied=False, device=device)
    case.labels["suite"] = f"small {op.name}"
    record(timed(case, seconds=0.5))
