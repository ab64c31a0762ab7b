"""That the harness finds what is wrong with a kernel, and that nothing is wrong with the kernels of csrc/cuda."""

import sys

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.few import FEW
from tests.cuda_on_cpu.workload import FITS, LAYOUTS, dense
from tests.ops.implementations import cuda_kernels_on_cpu, op_names
from tests.ops.op_calls import CALLS, Make

PLANTED = ("overrun", "shared_overrun", "misaligned", "divergent_barrier", "missing_barrier")


@pytest.fixture(params=["ascending", "descending", "shuffled-1", "shuffled-2"])
def harness(request):
    """The controls, with threads in one of four orders."""
    controls = build.load()
    order, _, seed = request.param.partition("-")
    controls.set_order(controls.Order.__members__[order], int(seed or 0))
    controls.take_launches()
    yield controls
    controls.set_order(controls.Order.ascending)


def test_a_source_saved_while_it_was_compiled_is_compiled_again(tmp_path):
    source, compiler = tmp_path / "kernel.cu", tmp_path / "compiler.py"
    source.write_text("before")
    compiler.write_text(
        "import pathlib, sys, time\n"
        "source, _, _, files, _, target = map(pathlib.Path, sys.argv[1:])\n"
        "text = source.read_text()\n"
        "source.write_text('after')\n"
        "time.sleep(0.1)\n"
        "target.write_text(text)\n"
        "files.write_text(f'{target}: {source}')\n"
    )
    arguments = [sys.executable, str(compiler), str(source)]
    assert build.make(tmp_path / "kernel.o", *arguments).read_text() == "before"
    assert build.make(tmp_path / "kernel.o", *arguments).read_text() == "after"


def test_every_op_has_a_cuda_kernel():
    build.load()
    # Convolutions, matrix products and attention are torch's; only those on the CPU change a layout first; `activation`
    # and `wasserstein_1d` are composites of torch's functions.
    others = ("equalized_conv2d", "equalized_linear", "to_layout", "attention", "activation", "wasserstein_1d")
    ours = [n for n in op_names() if not n.startswith(others)]
    missing = [
        name
        for name in ours
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"pggan_fast_cuda_on_cpu::{name}", "CPU")
    ]
    assert missing == []


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("call", [c for c in CALLS if c.has_gpu_kernel], ids=str)
def test_the_order_of_threads_does_not_count(harness, call, layout):
    """Bit for bit: what a result depends on beyond its inputs is a race."""
    make = Make(torch.float32, layout)
    arguments = call.arguments(make)
    ours = getattr(torch.ops.pggan_fast_cuda_on_cpu, call.op)
    theirs = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    found = ours(*theirs)
    assert {launch.name for launch in harness.take_launches()} <= {call.op, call.op.removesuffix("_")} | {
        "filtered_lrelu",
        "minibatch_stddev",
        "minibatch_stddev_backward",
    }
    harness.set_order(harness.Order.ascending)
    again = ours(*(a.clone() if isinstance(a, torch.Tensor) else a for a in arguments))
    expected = call.overload(*(a.clone() if isinstance(a, torch.Tensor) else a for a in arguments))
    as_tuple = lambda results: results if isinstance(results, tuple) else (results,)  # noqa: E731
    for x, y, z in zip(as_tuple(found), as_tuple(again), as_tuple(expected), strict=True):
        assert torch.equal(x, y)
        torch.testing.assert_close(x, z, rtol=1e-5, atol=1e-5)
        assert x.stride() == z.stride()


# Of the largest result: the last bit of what is rounded before and after the products, and tf32's of fp32 operands.
ALLOWED = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-9}


@pytest.mark.parametrize("few", FEW, ids=str)
def test_the_order_of_threads_does_not_count_where_there_are_few(harness, few):
    """Kernels for few dtypes and channels, a block taking tile after tile: one that is not waited for shows."""
    harness.set_resident_blocks(1)
    ours = getattr(torch.ops.pggan_fast_cuda_on_cpu, few.call.op)
    # What is written over, is so in tensors of its own: arguments are drawn anew, and the same.
    given = few.arguments(), few.arguments(), few.arguments()
    found = ours(*given[0])
    assert {launch.name for launch in harness.take_launches()} == {few.call.op}
    harness.set_order(harness.Order.ascending)
    again, expected = ours(*given[1]), few.call.overload(*given[2])
    harness.set_resident_blocks(4)
    for x, y, z in zip(
        *(tree_leaves((results, args[0])) for results, args in zip((found, again, expected), given, strict=True)),
        strict=True,
    ):
        assert torch.equal(x, y) and x.shape == z.shape
        if x.is_floating_point() and x.numel():
            assert (x.double() - z.double()).abs().max() <= ALLOWED[few.dtype] * z.abs().max()


@pytest.mark.parametrize("name", PLANTED)
def test_a_right_kernel_passes(harness, name):
    values = getattr(harness, name)(right=True)
    expected = {"shared_overrun": list(range(256)), "missing_barrier": list(range(255, -1, -1))}
    assert values == expected.get(name, [0.0] * 256 if name == "misaligned" else [1.0] * 256)


def test_a_divergent_barrier_is_a_fault(harness):
    with pytest.raises(RuntimeError, match="__syncthreads is reached by 128 of 256 threads"):
        harness.divergent_barrier()
    assert harness.divergent_barrier(right=True) == [1.0] * 256


def test_a_missing_barrier_shows(harness):
    values = harness.missing_barrier()
    assert values != list(range(255, -1, -1))
    assert any(v != v for v in values)  # NaN: shared memory that nobody had written yet


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_address_where_no_vector_may_be_read(dtype, layout):
    """Dense tensors that begin one element behind an aligned address give what aligned ones do."""
    build.load()
    ops = torch.ops.pggan_fast_cuda_on_cpu
    x, moved = (dense(FITS, dtype, layout, offset) for offset in (0, 1))
    assert x.data_ptr() % 16 == 0 and moved.data_ptr() % 16 == dtype.itemsize
    moved.copy_(x)
    for call in (
        lambda x: ops.bias_act(x, torch.ones(FITS[1]), 0.7, "lrelu", 0.2, 1.3, True),
        lambda x: ops.bias_act_backward(x, None, x, None, 0.7, "lrelu", 0.2, 1.3, False, True),
        lambda x: (ops.upsample2x(x), ops.downsample2x(x), ops.fade_reals(x, None, 0.3, dtype)),
        lambda x: ops.fade_in_backward(x, None, 0.3),
        lambda x: ops.minibatch_stddev(x, 2, 8, 1e-8, True, 0),
    ):
        torch.testing.assert_close(call(moved), call(x))


def test_the_matrix_runs_these_kernels():
    controls = build.load()
    controls.take_launches()
    with cuda_kernels_on_cpu():
        torch.ops.pggan_fast.upsample2x(torch.zeros(1, 1, 2, 2))
    assert [launch.name for launch in controls.take_launches()] == ["upsample2x"]
