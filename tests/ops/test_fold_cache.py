"""No copy of a weight outlives what it was made from: every kind of write, of thread, and of overlap."""

import ctypes
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch

from pggan_fast import cache_folded_weights, equalized_conv2d, kept_weights, use_impl
from pggan_fast.ops import fold as under_test
from pggan_fast.ops import fold_cache

X = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def folded() -> Iterator[None]:
    """These weights are small, which "auto" would leave to ATen's convolution."""
    with use_impl("native"):
        yield


def _weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(1)))


def _scores(weight: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return equalized_conv2d(X, weight, up=2)


def _double(weight: torch.nn.Parameter) -> None:
    with torch.no_grad():
        weight.mul_(2)


def _double_in_foreach(weight: torch.nn.Parameter) -> None:
    with torch.no_grad():
        torch._foreach_mul_([weight], 2.0)


def _double_in_inference_mode(weight: torch.nn.Parameter) -> None:
    with torch.inference_mode():
        weight.mul_(2)


def _double_by_loading(weight: torch.nn.Parameter) -> None:
    holder = torch.nn.Module()
    holder.weight = weight
    holder.load_state_dict({"weight": 2 * weight.detach()})


def _double_a_view(weight: torch.nn.Parameter) -> None:
    weight.detach().view(-1).mul_(2)


def _replace_data(weight: torch.nn.Parameter) -> None:
    weight.data = 2 * weight.data


def _step(optimizer: Callable[..., torch.optim.Optimizer], **options) -> Callable[[torch.nn.Parameter], None]:
    """A step of SGD whose gradient is minus the weight, which doubles it; of Adam, one that changes it."""

    def write(weight: torch.nn.Parameter) -> None:
        weight.grad = -weight.detach().clone()
        optimizer([weight], lr=1.0, **options).step()

    return write


def _step_of_a_flat_copy(weight: torch.nn.Parameter) -> None:
    """The optimizer has another tensor of the same memory, with a version counter of its own."""
    flat = torch.nn.Parameter(weight.data.view(-1))
    flat.grad = -flat.detach().clone()
    torch.optim.SGD([flat], lr=1.0).step()


WRITES = {
    "in_place": _double,
    "foreach": _double_in_foreach,
    "inference_mode": _double_in_inference_mode,
    "load_state_dict": _double_by_loading,
    "view": _double_a_view,
    "replaced_data": _replace_data,
    "sgd": _step(torch.optim.SGD),
    "sgd_fused": _step(torch.optim.SGD, fused=True),
    "sgd_foreach": _step(torch.optim.SGD, foreach=True),
    "adam_fused": _step(torch.optim.Adam, fused=True),
    "adamw_fused": _step(torch.optim.AdamW, fused=True),
    "flat_optimizer": _step_of_a_flat_copy,
}


@pytest.mark.parametrize("write", WRITES)
def test_a_write_is_seen_inside(write):
    weight = _weight()
    with cache_folded_weights():
        before = _scores(weight)
        WRITES[write](weight)
        after = _scores(weight)
    assert torch.equal(after, _scores(weight))
    assert not torch.equal(after, before)


def test_transposed_data_is_another_weight():
    """Same storage, address and version, other strides."""
    weight = _weight()
    with cache_folded_weights():
        _scores(weight)
        weight.data = weight.data.transpose(0, 1)
        inside = _scores(weight)
    torch.testing.assert_close(inside, _scores(weight))


def test_swapped_weights_are_told_apart():
    first, second = _weight(), torch.nn.Parameter(_weight().detach() * 2)
    with cache_folded_weights():
        before = _scores(first), _scores(second)
        torch.utils.swap_tensors(first, second)
        assert torch.equal(_scores(first), before[1]) and torch.equal(_scores(second), before[0])


def test_an_inference_tensor_has_no_version_and_is_not_cached():
    with torch.inference_mode():
        weight = torch.nn.Parameter(_weight().detach().clone(), requires_grad=False)
        with cache_folded_weights():
            before = _scores(weight)
            weight.mul_(2)
            torch.testing.assert_close(_scores(weight), 2 * before)


def test_a_cache_holds_no_parameter():
    weight = _weight()
    died = weakref.ref(weight)
    with cache_folded_weights():
        _scores(weight)
        del weight
        gc.collect()
        assert died() is None
        _scores(_weight())  # drops the copies of what is gone
        (cache,) = fold_cache._caches()
        assert len(cache.entries) == 1


def _in_thread(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def _check_that_nothing_is_kept() -> None:
    assert not fold_cache._caches()
    weight = _weight()
    before = _scores(weight)
    weight.data.mul_(2)
    torch.testing.assert_close(_scores(weight), 2 * before)


def test_overlapping_contexts_of_two_threads():
    a_in, b_in, a_out = threading.Event(), threading.Event(), threading.Event()

    def first():
        with cache_folded_weights():
            a_in.set()
            b_in.wait()
        a_out.set()

    def second():
        a_in.wait()
        with cache_folded_weights():
            b_in.set()
            a_out.wait()

    for thread in [_in_thread(first), _in_thread(second)]:
        thread.join()
    _check_that_nothing_is_kept()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_contexts_of_one_thread_end_in_any_order(order):
    contexts = [cache_folded_weights(), cache_folded_weights()]
    for context in contexts:
        context.__enter__()
    _scores(_weight())
    for index in order:
        contexts[index].__exit__(None, None, None)
    _check_that_nothing_is_kept()


def test_a_context_may_be_left_in_another_thread():
    context = cache_folded_weights()
    context.__enter__()
    _in_thread(lambda: context.__exit__(None, None, None)).join()
    _check_that_nothing_is_kept()


def test_another_threads_context_promises_nothing_here():
    weight, opened, done = _weight(), threading.Event(), threading.Event()

    def other():
        with cache_folded_weights():
            _scores(weight)
            opened.set()
            done.wait()

    thread = _in_thread(other)
    opened.wait()
    before = _scores(weight)
    weight.data.mul_(2)
    torch.testing.assert_close(_scores(weight), 2 * before)
    done.set()
    thread.join()


def test_invalidate_reaches_every_thread():
    weight, filled, written = _weight(), threading.Event(), threading.Event()
    results = []

    def other():
        with cache_folded_weights():
            results.append(_scores(weight))
            filled.set()
            written.wait()
            results.append(_scores(weight))

    thread = _in_thread(other)
    filled.wait()
    with cache_folded_weights() as invalidate:
        weight.data.mul_(2)
        invalidate([weight])
    written.set()
    thread.join()
    torch.testing.assert_close(results[1], 2 * results[0])


def test_two_training_threads_never_see_a_stale_weight():
    """Each thread steps its own weight in its own contexts, and both step a shared optimizer hook."""
    wrong, start = [], threading.Barrier(2)

    def train(seed):
        weight = torch.nn.Parameter(torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(seed)))
        optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
        start.wait()
        for _ in range(100):
            with cache_folded_weights():
                _scores(weight)
                weight.grad = torch.ones_like(weight)
                optimizer.step()
                inside = _scores(weight)
            if not torch.equal(inside, _scores(weight)):
                wrong.append(seed)

    for thread in [_in_thread(lambda: train(1)), _in_thread(lambda: train(2))]:
        thread.join()
    assert not wrong
    assert not fold_cache._caches()


def test_a_capture_makes_its_own_copies(monkeypatch):
    """A copy made before a CUDA graph's capture would be baked into the graph, one of the capture read outside it."""
    capturing = []
    monkeypatch.setattr(fold_cache, "_is_capturing", lambda: bool(capturing))
    on_gpu = type("OnGpu", (), {"is_cuda": True})()
    with cache_folded_weights():
        outside = fold_cache._current(on_gpu)
        assert outside is not None
        capturing.append(True)
        assert fold_cache._current(on_gpu) is None
        with cache_folded_weights():
            inside = fold_cache._current(on_gpu)
            assert inside is not None and inside is not outside
            capturing.clear()
            assert fold_cache._current(on_gpu) is outside


def test_a_backward_pass_finds_the_cache_of_its_thread(monkeypatch):
    """Also where autograd runs it in a thread of its own, as it does below a depth of nested passes and on GPUs."""
    made, fold = [], under_test._folded_copy
    monkeypatch.setattr(under_test, "_folded_copy", lambda *args: made.append(args[1:]) or fold(*args))
    threads, weight = set(), _weight()

    class Nested(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, depth):
            ctx.depth = depth
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            threads.add(threading.get_ident())
            with torch.enable_grad():
                x = X.clone().requires_grad_()
                if ctx.depth:
                    Nested.apply(x, ctx.depth - 1).sum().backward()
                else:
                    equalized_conv2d(x, weight, up=2).sum().backward()
            return dy, None

    with cache_folded_weights():
        equalized_conv2d(X.clone().requires_grad_(), weight, up=2).sum().backward()
        count = len(made)
        Nested.apply(X.clone().requires_grad_(), 70).sum().backward()
        assert len(threads) > 1, "no pass ran in a thread of autograd's, so nothing was tested"
        assert len(made) == count


def test_the_former_name_still_works():
    assert kept_weights is cache_folded_weights


def test_the_list_of_caches_outlives_the_call_that_made_it(monkeypatch):
    """Older releases of torch keep an object without a reference of their own: its memory would become another's."""
    stash, lists, counts = torch._C._stash_obj_in_tls, [], []

    def stash_without_a_reference(key, value):
        before = sys.getrefcount(value)
        stash(key, value)
        if sys.getrefcount(value) > before:
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(value))

    def use():
        with cache_folded_weights():
            lists.append(torch._C._get_obj_in_tls(fold_cache._KEY))
        counts.append(sys.getrefcount(lists[0]))  # `lists` has one, the argument is one, and torch's is the third

    monkeypatch.setattr(torch._C, "_stash_obj_in_tls", stash_without_a_reference)
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert counts == [3]
