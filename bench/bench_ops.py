"""Every op at the sizes of a growing GAN, forward and forward+backward."""

import pytest

from bench.cases import LAYOUTS, OPS, Op, Shape, op_case

SHAPES = (
    (16, 512, 16, 16),
    (8, 512, 32, 32),
    (4, 256, 64, 64),
    (4, 128, 128, 128),
    (2, 64, 256, 256),
    (1, 32, 512, 512),
    (1, 16, 1024, 1024),
)
CASES = [
    pytest.param(
        op, shape, dtype, layout, passes, id=f"{op.name}-{'x'.join(map(str, shape))}-{dtype}-{layout}-{passes}"
    )
    for op in OPS
    for shape in SHAPES
    for dtype in op.dtypes
    for layout in LAYOUTS
    for passes in op.passes
]


@pytest.mark.parametrize(("op", "shape", "dtype", "layout", "passes"), CASES)
def test_op(op: Op, shape: Shape, dtype: str, layout: str, passes: str, timed, record, request) -> None:
    """torch.compile costs seconds per case, so only bias_act's fp32 forward takes it by default."""
    compiled = request.config.getoption("compile_all") or (
        op.name == "bias_act_pixel_norm" and dtype == "fp32" and passes == "forward"
    )
    record(timed(op_case(op, shape, dtype, layout, passes, compiled=compiled, copied=True)))
