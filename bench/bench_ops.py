"""Every op at the sizes of a growing GAN: forward, forward+backward and double backward.

Four sizes by default, seven with --all-sizes; --shape N,C,H,W and --dtype time one's own case instead.
"""

import pytest

from bench.harness.cases import LAYOUTS, op_case
from bench.harness.table import MAIN, OTHERS, Op, Shape

SHAPES = (
    (16, 512, 16, 16),
    (4, 256, 64, 64),
    (2, 64, 256, 256),
    (1, 16, 1024, 1024),
)
BETWEEN = ((8, 512, 32, 32), (4, 128, 128, 128), (1, 32, 512, 512))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    shape, dtype = metafunc.config.getoption("shape"), metafunc.config.getoption("dtype")
    sizes = SHAPES + BETWEEN if metafunc.config.getoption("all_sizes") else SHAPES
    cases = [
        pytest.param(op, s, d, layout, passes, id=f"{op.name}-{'x'.join(map(str, s))}-{d}-{layout}-{passes}")
        for op in (*MAIN, *OTHERS)
        for s in ([shape] if shape else op.shapes or sizes)
        for d in ([dtype] if dtype else op.dtypes)
        for layout in LAYOUTS
        for passes in op.passes
    ]
    metafunc.parametrize(("op", "shape", "dtype", "layout", "passes"), cases)


def test_op(
    op: Op,
    shape: Shape,
    dtype: str,
    layout: str,
    passes: str,
    timed,
    record,
    device: str,
    request: pytest.FixtureRequest,
) -> None:
    """torch.compile costs seconds per case, so only bias_act's fp32 forward takes it by default."""
    compiled = request.config.getoption("compile_all") or (
        op.name == "bias_act_pixel_norm" and dtype == "fp32" and passes == "forward"
    )
    record(timed(op_case(op, shape, dtype, layout, passes, compiled=compiled, copied=True, device=device)))
