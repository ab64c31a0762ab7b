"""That the harness finds what is wrong with a kernel, and that nothing is wrong with the kernels of csrc/cuda."""

import os
import subprocess
import sys

import pytest
import torch

from tests.cuda_on_cpu import build
from tests.ops.implementations import cuda_kernels_on_cpu, op_names
from tests.ops.op_calls import CALLS, Make

pytestmark = [
    pytest.mark.skipif("PGGAN_FAST_TEST_KERNELS" not in os.environ, reason="slow: run by make test-kernels"),
    pytest.mark.skipif(build.missing() is not None, reason=str(build.missing())),
]

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


def python(variant: str, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code with `controls`, the harness built with a sanitizer."""
    build.build(variant)
    setup = f"import torch\nfrom tests.cuda_on_cpu import build\ncontrols = build.load({variant!r})\n"
    environment = {**os.environ, **build.sanitizer_environment(variant), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", setup + code], cwd=build.ROOT, env=environment, capture_output=True, text=True
    )


def test_every_op_has_a_cuda_kernel():
    build.load()
    convolutions = {"equalized_conv2d", "equalized_linear"}
    ours = [n for n in op_names() if not n.startswith(tuple(convolutions))]
    missing = [
        name
        for name in ours
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"pggan_fast_cuda_on_cpu::{name}", "CPU")
    ]
    assert missing == []


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("call", [c for c in CALLS if not c.op.startswith("equalized")], ids=str)
def test_the_order_of_threads_does_not_count(harness, call, layout):
    """Bit for bit: what a result depends on beyond its inputs is a race."""
    make = Make(torch.float32, layout)
    arguments = call.arguments(make)
    ours = getattr(torch.ops.pggan_fast_cuda_on_cpu, call.op)
    theirs = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    found = ours(*theirs)
    assert {launch.name for launch in harness.take_launches()} <= {call.op, call.op.removesuffix("_")} | {
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


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("overrun", "AddressSanitizer: heap-buffer-overflow"),
        ("shared_overrun", "AddressSanitizer: heap-buffer-overflow"),
        ("misaligned", "misaligned address"),
    ],
)
def test_sanitizers_find_bad_addresses(name, report):
    right = python("address", f"controls.{name}(right=True); print('right')")
    assert right.returncode == 0 and "right" in right.stdout, right.stderr
    wrong = python("address", f"controls.{name}()")
    assert wrong.returncode != 0
    assert report in wrong.stderr and "planted.cu" in wrong.stderr


def test_thread_sanitizer_finds_a_missing_barrier():
    right = python("thread", "controls.missing_barrier(right=True); print('right')")
    assert right.returncode == 0 and "right" in right.stdout, right.stderr
    wrong = python("thread", "controls.missing_barrier()")
    assert wrong.returncode == 66
    assert "data race" in wrong.stderr and "planted.cu" in wrong.stderr


# Every op on small tensors of odd sizes, and on such as vectors fit.
EVERY_OP = """
from tests.ops.op_calls import CALLS, Make
for dtype in {dtypes}:
    for layout in {layouts}:
        for call in CALLS:
            if not call.op.startswith("equalized"):
                getattr(torch.ops.pggan_fast_cuda_on_cpu, call.op)(*call.arguments(Make(dtype, layout)))
x, bias = torch.randn(2, 32, 8, 8), torch.randn(32)
for x in (x, x.to(memory_format=torch.channels_last)):
    ours = torch.ops.pggan_fast_cuda_on_cpu
    y, r = ours.bias_act(x, bias, 1.0, "lrelu", 0.2, 1.0, True)
    ours.bias_act_backward(x, None, y, r, 1.0, "lrelu", 0.2, 1.0, True, True)
    ours.bias_act_double_backward(x, bias, x, r, y, r, 1.0, "lrelu", 0.2, 1.0, True)
    ours.fade_reals(ours.upsample2x(x), None, 0.3, torch.bfloat16)
    ours.minibatch_stddev(x, 2, 4, 1e-8, True, 0)
print("clean")
"""


@pytest.mark.parametrize(
    ("variant", "dtypes", "layouts"),
    [
        ("address", "torch.float64, torch.float32, torch.bfloat16, torch.float16", "'contiguous', 'channels_last'"),
        ("thread", "torch.float32,", "'contiguous', 'channels_last'"),
    ],
)
def test_sanitizers_find_nothing_in_the_kernels(variant, dtypes, layouts):
    done = python(variant, EVERY_OP.format(dtypes=f"({dtypes})", layouts=f"({layouts})"))
    assert done.returncode == 0 and "clean" in done.stdout, done.stderr[-4000:]


def test_the_matrix_runs_these_kernels():
    controls = build.load()
    controls.take_launches()
    with cuda_kernels_on_cpu():
        torch.ops.pggan_fast.upsample2x(torch.zeros(1, 1, 2, 2))
    assert [launch.name for launch in controls.take_launches()] == ["upsample2x"]
