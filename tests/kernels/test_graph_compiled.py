"""torch.compile sees into the Triton ops: graphs of forward and backward hold kernels, for a GPU that is not here."""

import pytest
import torch
from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_functional
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

pytest.importorskip("triton")
from functorch.compile import aot_function, make_boxed_func, min_cut_rematerialization_partition  # noqa: E402

from bench.roofline.aot import assumed_gpu  # noqa: E402
from pggan_fast import ops  # noqa: E402
from pggan_fast.ops import dispatch  # noqa: E402

# function, shapes, kernels in the forward and in the backward graph
CALLS = {
    "bias_act": (lambda x, b: ops.bias_act(x, b, pixel_norm=True, impl="triton"), [(2, 16, 8, 8), (16,)], 1, 2),
    "equalized_linear": (
        lambda x, w, b: ops.equalized_linear(x, w, b, act="lrelu", impl="triton"),
        [(4, 16), (8, 16), (8,)],
        1,
        2,
    ),
    "equalized_conv2d": (
        lambda x, w, b: ops.equalized_conv2d(x, w, b, act="lrelu", impl="triton"),
        [(2, 16, 8, 8), (16, 16, 3, 3), (16,)],
        1,
        5,
    ),
    "upsample2x": (lambda x: ops.upsample2x(x, impl="triton"), [(2, 16, 8, 8)], 1, 1),
    "downsample2x": (lambda x: ops.downsample2x(x, impl="triton"), [(2, 16, 8, 8)], 1, 1),
    "fade_in": (lambda low, high: ops.fade_in(low, high, 0.5, impl="triton"), [(2, 3, 8, 8), (2, 3, 16, 16)], 1, 1),
    "fade_reals": (lambda x: ops.fade_reals(x, 0.5, impl="triton"), [(2, 3, 8, 8)], 1, 1),
    "filtered_lrelu": (
        lambda x, b: ops.filtered_lrelu(x, *torch.ones(2, 12), b, up=2, down=2, padding=11, impl="triton"),
        [(2, 3, 8, 8), (3,)],
        1,
        1,
    ),
    "minibatch_stddev": (lambda x: ops.minibatch_stddev(x, impl="triton"), [(4, 16, 4, 4)], 2, 2),
}


@pytest.mark.parametrize("op", CALLS)
def test_graphs_are_made_of_kernels(op, monkeypatch):
    # Tracing runs no kernel, so that the CPU, on which autograd works without a GPU, can stand for one.
    monkeypatch.setattr(dispatch, "TRITON_INTERPRETED", True)
    function, shapes, *launches = CALLS[op]
    graphs: list[GraphModule] = []

    def keep(graph: GraphModule, inputs):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    # Which of its arguments a kernel writes, torch reads off the code that Triton makes of it.
    with assumed_gpu(90), FakeTensorMode():
        inputs = [torch.empty(shape, requires_grad=True) for shape in shapes]
        aot_function(function, keep, keep, min_cut_rematerialization_partition)(*inputs).sum().backward()
    for graph, expected in zip(graphs, launches, strict=True):
        targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
        assert sum(target is triton_kernel_wrapper_functional for target in targets) == expected
        kernels = [node for node in graph.graph.nodes if node.target is triton_kernel_wrapper_functional]
        # Triton leaves fused multiply-adds out from 3.10 on, unless a launch asks for them.
        assert all(node.kwargs["kwargs"]["enable_fp_fusion"] is True for node in kernels)
        assert not any(getattr(target, "namespace", "").startswith("pggan_fast") for target in targets)
