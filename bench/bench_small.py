"""Small work, where the time goes into calling: host overhead decides at 4 to 16 px."""

import pytest

from bench.cases import DTYPES, LAYOUTS, SMALL_OPS, Op, Shape, op_case

SHAPES = ((4, 8, 4, 4), (16, 512, 4, 4))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("op", SMALL_OPS, ids=lambda op: op.name)
def test_small(op: Op, shape: Shape, dtype: str, layout: str, timed, record) -> None:
    case = op_case(op, shape, dtype, layout, "forward+backward", compiled=False, copied=False)
    case.labels["suite"] = f"small {op.name}"
    record(timed(case, seconds=0.5))
