"""torch.library.opcheck on every op: schema, autograd registration, fake kernel (shapes, dtypes, strides), AOT."""

import pytest
import torch

from pggan_fast.ops.dispatch import unavailable_reason
from tests.ops.implementations import op_names
from tests.ops.op_calls import CALLS, Make

SHAPES_ALONE = ("test_schema", "test_faketensor")
CASES = [
    ("contiguous", torch.float32, None),
    ("channels_last", torch.bfloat16, None),
    ("channels_last", torch.float64, SHAPES_ALONE),
    ("contiguous", torch.float16, SHAPES_ALONE),
    ("sliced", torch.float32, SHAPES_ALONE),
    ("sliced_channels_last", torch.bfloat16, SHAPES_ALONE),
    ("permuted", torch.float32, SHAPES_ALONE),
    ("strided", torch.float16, SHAPES_ALONE),
]


def test_every_op_has_a_call():
    assert {call.op for call in CALLS} == set(op_names())


@pytest.mark.parametrize(("layout", "dtype", "only"), CASES, ids=[f"{layout}-{d}"[:99] for layout, d, _ in CASES])
@pytest.mark.parametrize("call", CALLS, ids=str)
def test_opcheck(call, layout, dtype, only):
    arguments = call.arguments(Make(dtype, layout, requires_grad=call.differentiable))
    torch.library.opcheck(call.overload, arguments, **({"test_utils": only} if only else {}))


@pytest.mark.skipif(unavailable_reason("triton", "cpu") is not None, reason=str(unavailable_reason("triton", "cpu")))
@pytest.mark.parametrize(
    ("layout", "dtype", "only"),
    [("contiguous", torch.float32, None), ("strided", torch.float16, SHAPES_ALONE)],
    ids=str,
)
@pytest.mark.parametrize("call", [c for c in CALLS if c.triton is not None], ids=str)
def test_opcheck_of_triton(call, layout, dtype, only):
    if call.op == "equalized_conv2d":
        # Its backward is no op, and the interpreter has no graph: tests/kernels/test_graph_compiled.py traces it.
        only = SHAPES_ALONE
    arguments = call.arguments(Make(dtype, layout, requires_grad=call.differentiable))
    torch.library.opcheck(call.triton, arguments, **({"test_utils": only} if only else {}))
