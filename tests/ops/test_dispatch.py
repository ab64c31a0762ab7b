"""Which implementation runs: arguments, context, environment, availability, and backward's loyalty to forward."""

import itertools
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pggan_fast
from pggan_fast import _native, ops
from pggan_fast.ops import dispatch, small
from pggan_fast.ops.dispatch import IMPLEMENTATIONS, OPS, unavailable_reason
from tests.ops.samples import SAMPLES

TRITON = pytest.mark.skipif(
    unavailable_reason("triton", "cpu") is not None, reason=str(unavailable_reason("triton", "cpu"))
)
NATIVE = pytest.mark.skipif(not _native.cpu_available, reason=_native.cpu_reason)
FIRST = {s.op: s for s in reversed(SAMPLES)}


class FusedOps(TorchDispatchMode):
    """The ops of the pggan_fast namespace that run; plain PyTorch runs none."""

    def __init__(self):
        super().__init__()
        self.seen, self.namespaces = [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("pggan_fast", "pggan_fast_triton"):
            self.seen.append(func._schema.name.partition("::")[2])
            self.namespaces.add(func.namespace)
        return func(*args, **kwargs or {})


def _runs_fused(call) -> bool:
    with FusedOps() as mode:
        call()
    return bool(mode.seen)


def _x() -> torch.Tensor:
    return torch.randn(4, 6, 4, 4, requires_grad=True)


def test_every_public_op_is_listed():
    assert set(OPS) == set(FIRST)
    assert set(OPS) < set(ops.__all__)


def test_every_public_op_is_the_packages_too():
    assert set(ops.__all__) - {"implementations"} < set(pggan_fast.__all__)
    assert [name for name in ops.__all__ if name != "implementations" and not hasattr(pggan_fast, name)] == []
    assert set(pggan_fast.__all__) <= set(dir(pggan_fast))  # completion in a shell


@NATIVE
@pytest.mark.parametrize("op", OPS)
def test_impl_argument(op, monkeypatch):
    monkeypatch.setattr(small, "is_eager", lambda x, impl: False)  # the samples are small
    sample = FIRST[op]

    def call(**impl):
        return getattr(ops, op)(*sample.tensors(torch.float32).values(), **sample.options, **impl)

    assert _runs_fused(lambda: call(impl="native"))
    assert not _runs_fused(lambda: call(impl="reference"))
    assert _runs_fused(call)
    with pggan_fast.use_impl("reference"):
        assert not _runs_fused(call)
        assert _runs_fused(lambda: call(impl="native"))
        with pggan_fast.use_impl("native"):
            assert _runs_fused(call)
        assert not _runs_fused(call)


@NATIVE
def test_use_impl_ends_with_an_exception():
    with pytest.raises(KeyError), pggan_fast.use_impl("reference"):
        raise KeyError
    assert _runs_fused(lambda: ops.pixel_norm(_x()))


@NATIVE
def test_use_impl_counts_in_every_thread():
    seen = []
    with pggan_fast.use_impl("reference"):
        thread = threading.Thread(target=lambda: seen.append(_runs_fused(lambda: ops.pixel_norm(_x()))))
        thread.start()
        thread.join()
    assert seen == [False]


def _counted() -> str:
    """The implementation that `impl="auto"` now stands for, by name."""
    return dispatch.requested_impl("auto")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_use_impl_contexts_end_in_any_order(order):
    """The one entered last of those still open counts; a name may be open twice."""
    names, default = ["reference", "native", "reference"], _counted()
    contexts = [pggan_fast.use_impl(name) for name in names]
    for context in contexts:
        context.__enter__()
    open_ones = [0, 1, 2]
    for index in order:
        contexts[index].__exit__(None, None, None)
        open_ones.remove(index)
        assert _counted() == (names[open_ones[-1]] if open_ones else default)


def test_use_impl_of_many_threads_leaves_nothing_behind():
    default, start = _counted(), threading.Barrier(4)

    def enter_and_leave(name):
        start.wait()
        for _ in range(2000):
            with pggan_fast.use_impl(name):
                pass

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds: threads change in the middle of what must hold together
    try:
        threads = [threading.Thread(target=enter_and_leave, args=(n,)) for n in ("reference", "native") * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert _counted() == default


@NATIVE
@pytest.mark.parametrize("op", [op for op in OPS if FIRST[op].tensors(torch.float32)])
@pytest.mark.parametrize(("forward", "backward"), [("native", "reference"), ("reference", "native")])
def test_backward_keeps_forwards_choice(op, forward, backward):
    sample = FIRST[op]
    inputs = [t.requires_grad_() for t in sample.tensors(torch.float32).values()]
    with pggan_fast.use_impl(forward):
        y = getattr(ops, op)(*inputs, **sample.options)
    with pggan_fast.use_impl(backward), FusedOps() as mode:
        first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        torch.autograd.grad(sum(t.square().sum() for t in first), inputs)
    assert bool(mode.seen) == (forward == "native")


@NATIVE
def test_backward_keeps_forwards_choice_in_another_thread():
    x = _x()
    with pggan_fast.use_impl("reference"):
        y = ops.pixel_norm(x)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(_runs_fused(lambda: y.sum().backward())))
    thread.start()
    thread.join()
    assert seen == [False]
    assert x.grad is not None


@TRITON
@pytest.mark.parametrize("op", [op for op in OPS if op != "equalized_conv2d"])
def test_backward_keeps_to_triton_in_another_thread(op):
    sample = FIRST[op]
    inputs = [t.requires_grad_() for t in sample.tensors(torch.float32).values()]
    with pggan_fast.use_impl("triton"), FusedOps() as mode:
        y = getattr(ops, op)(*inputs, **sample.options)
    seen = [mode.namespaces]

    def backward():
        with FusedOps() as mode:
            first = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
            torch.autograd.grad(sum(t.square().sum() for t in first), inputs)
        seen.append(mode.namespaces)

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    assert seen == [{"pggan_fast_triton"}] * 2


def test_the_cpu_takes_triton_only_when_told():
    """Its interpreter is for tests."""
    assert all(states["triton"] != "chosen" for states in ops.implementations("cpu").values())


def test_a_gpu_takes_native_kernels_then_triton(monkeypatch):
    def chosen():
        return {next(i for i, s in states.items() if s == "chosen") for states in ops.implementations("cuda").values()}

    monkeypatch.setattr(dispatch, "TRITON_INSTALLED", True)
    monkeypatch.setattr(_native, "cuda_available", False)
    assert chosen() == {"triton"}
    monkeypatch.setattr(_native, "cuda_available", True)
    assert chosen() == {"native"}
    monkeypatch.setattr(_native, "cuda_available", False)
    monkeypatch.setattr(dispatch, "TRITON_INSTALLED", False)
    assert chosen() == {"reference"}
    assert ops.implementations("cuda")["bias_act"]["triton"] == "Triton is not installed (pip install triton)"


@NATIVE
@pytest.mark.parametrize(("op", "image", "taps"), [("equalized_conv2d", (8, 8), (3, 3)), ("equalized_linear", (), ())])
def test_a_mode_that_listens_sees_the_op_and_changes_nothing(op, image, taps):
    """Without one the dispatcher is left out."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(40, 64, *image), torch.randn(512, 64, *taps), torch.randn(512, requires_grad=True)
    call = lambda: getattr(ops, op)(x, weight, bias, act="lrelu")  # noqa: E731
    alone = call()
    with FusedOps() as listening:
        seen = call()
    assert op in listening.seen
    assert torch.equal(alone, seen) and alone.stride() == seen.stride()


@pytest.mark.parametrize("op", OPS)
def test_an_implementation_that_cannot_run_says_why(op, monkeypatch):
    monkeypatch.setattr(_native, "cpu_available", False)
    monkeypatch.setattr(_native, "cpu_reason", "not built: no compiler was found")
    sample = FIRST[op]
    tensors = sample.tensors(torch.float32).values()
    with pytest.raises(RuntimeError, match=f"^{op}: impl='native' cannot run on cpu: not built: no compiler.*$"):
        getattr(ops, op)(*tensors, **sample.options, impl="native")
    with pggan_fast.use_impl("native"), pytest.raises(RuntimeError, match="no compiler was found"):
        getattr(ops, op)(*tensors, **sample.options)
    assert not _runs_fused(lambda: getattr(ops, op)(*tensors, **sample.options))
    assert ops.implementations("cpu")[op]["native"] == "not built: no compiler was found"
    assert ops.implementations("cpu")[op]["reference"] == "chosen"


@pytest.mark.parametrize("impl", [i for i in IMPLEMENTATIONS[1:] if unavailable_reason(i, "cpu")])
def test_what_is_missing_here_says_why(impl):
    with pytest.raises(RuntimeError, match=f"impl='{impl}' cannot run on cpu: ."):
        ops.pixel_norm(_x(), impl=impl)


def test_other_devices_fall_to_plain_torch():
    assert not _runs_fused(lambda: ops.pixel_norm(torch.randn(2, 3, 4, 4, device="meta")))
    with pytest.raises(RuntimeError, match="impl='native' cannot run on meta: there are no native kernels for meta"):
        ops.pixel_norm(torch.randn(2, 3, 4, 4, device="meta"), impl="native")


@pytest.mark.parametrize("op", OPS)
def test_an_unknown_implementation_is_refused(op):
    sample = FIRST[op]
    with pytest.raises(ValueError, match=f"^{op}: impl is 'cuda', allowed: auto, native, triton, reference$"):
        getattr(ops, op)(*sample.tensors(torch.float32).values(), **sample.options, impl="cuda")


def test_use_impl_refuses_unknown_names():
    message = r"^use_impl\('fast'\): allowed are auto, native, triton, reference$"
    with pytest.raises(ValueError, match=message), pggan_fast.use_impl("fast"):
        pass
    assert ops.implementations("cpu")["bias_act"]["reference"] in ("available", "chosen")


def _python(program: str, impl: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PGGAN_FAST_IMPL": impl}
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=1200
    )


def test_environment_variable():
    program = "from pggan_fast import ops; print({s for c in ops.implementations('cpu').values() for s in c.items()})"
    done = _python(program, "reference")
    assert done.returncode == 0, done.stderr
    assert "('reference', 'chosen')" in done.stdout
    assert "('native', 'chosen')" not in done.stdout


def test_a_wrong_environment_variable_is_one_line():
    done = _python("import pggan_fast", "fastest")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ValueError: PGGAN_FAST_IMPL is 'fastest', allowed: auto, native, triton, reference"
