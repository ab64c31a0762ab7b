"""torch.compile sees into the Triton ops: their graphs hold kernels, for a GPU that is not here."""

import pytest
import torch
from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_functional
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

pytest.importorskip("triton")
from functorch.compile import aot_function, make_boxed_func  # noqa: E402

from pggan_fast import ops  # noqa: E402

CALLS = {
    "bias_act": (lambda x, b: ops.bias_act(x, b, pixel_norm=True, impl="triton"), [(2, 16, 8, 8), (16,)], 1),
    "equalized_linear": (
        lambda x, w, b: ops.equalized_linear(x, w, b, act="lrelu", impl="triton"),
        [(4, 16), (8, 16), (8,)],
        1,
    ),
    "upsample2x": (lambda x: ops.upsample2x(x, impl="triton"), [(2, 16, 8, 8)], 1),
    "downsample2x": (lambda x: ops.downsample2x(x, impl="triton"), [(2, 16, 8, 8)], 1),
    "fade_in": (lambda low, high: ops.fade_in(low, high, 0.5, impl="triton"), [(2, 3, 8, 8), (2, 3, 16, 16)], 1),
    "fade_reals": (lambda x: ops.fade_reals(x, 0.5, impl="triton"), [(2, 3, 8, 8)], 1),
    "minibatch_stddev": (lambda x: ops.minibatch_stddev(x, impl="triton"), [(4, 16, 4, 4)], 2),
}


@pytest.mark.parametrize("op", CALLS)
def test_the_graph_is_made_of_kernels(op):
    function, shapes, launches = CALLS[op]
    graphs: list[GraphModule] = []

    def keep(graph: GraphModule, inputs):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    with FakeTensorMode():
        inputs = [torch.empty(shape, device="cuda") for shape in shapes]
        aot_function(function, fw_compiler=keep, bw_compiler=keep)(*inputs)
    targets = [node.target for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert sum(target is triton_kernel_wrapper_functional for target in targets) == launches
    assert not any(getattr(target, "namespace", "").startswith("pggan_fast") for target in targets)
