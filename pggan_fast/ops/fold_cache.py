"""Folded copies of weights, kept for as long as nothing wrote to the weight.

An entry is valid for one state of one parameter: its storage (held by a weak reference, so that its address cannot
become another's), its version counter, and where in the storage it lies. Each in-place operation of torch, each
`load_state_dict` and each replaced `.data` changes one of these. Three kinds of write change none, and are handled
apart: optimizers whose kernels leave the version as it is (torch's fused ones do) empty every cache by a hook after
their step; a CUDA graph under capture neither reads nor writes a cache that was opened outside the capture; and writes
through `weight.data`, NumPy or a captured graph's replay must be followed by `invalidate`.
"""

import ctypes
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_post_hook

# Where a thread's open caches are found. Autograd hands this to the threads that run a backward pass.
_KEY = "pggan_fast.fold_caches"
_every_cache: "weakref.WeakSet[_Cache]" = weakref.WeakSet()
_lock = threading.Lock()  # around _every_cache, which cannot be walked while another thread adds to it


class _Cache:
    """The copies made inside one context: {storage: (weak reference to it, the parameter's state, {key: copy})}."""

    def __init__(self, thread_caches: "list[_Cache]"):
        self.thread_caches = thread_caches
        self.entries: dict[int, tuple[StorageWeakRef, tuple, dict[tuple, Tensor]]] = {}
        self.captured = _is_capturing()

    def copies(self, weight: Tensor) -> dict[tuple, Tensor]:
        """The copies of the weight as it now is."""
        storage = weight.untyped_storage()
        state = (weight._version, weight.data_ptr(), weight.dtype, weight.shape, weight.stride())
        entry = self.entries.get(storage._cdata)
        if entry is None or entry[1] != state:
            for address, (reference, _, _) in list(self.entries.items()):
                if reference.expired():
                    self.entries.pop(address, None)
            entry = (StorageWeakRef(storage), state, {})
            self.entries[storage._cdata] = entry
        return entry[2]

    def invalidate(self, parameters: Iterable[Parameter]) -> None:
        """Drop the copies of these parameters, in every cache of every thread."""
        addresses = [p.untyped_storage()._cdata for p in parameters]
        for cache in _caches():
            for address in addresses:
                cache.entries.pop(address, None)


class cache_folded_weights(AbstractContextManager):  # noqa: N801 - used like a function
    """Keep the folded and cast copies of weights that convolutions make inside, until the weight changes.

    Counts for the thread that enters it, and for the backward passes that this thread starts. Contexts may overlap
    and end in any order. Entering returns a function `invalidate(parameters)`, to be called after a write that
    leaves no trace: through `weight.data` or NumPy, or by the replay of a CUDA graph.
    """

    def __init__(self) -> None:
        self._entered: list[_Cache] = []  # one for each time that this object was entered

    def __enter__(self) -> Callable[[Iterable[Parameter]], None]:
        if torch.compiler.is_compiling():
            return lambda parameters: None
        if not torch._C._is_key_in_tls(_KEY):
            _stash([])
        thread_caches = torch._C._get_obj_in_tls(_KEY)
        cache = _Cache(thread_caches)
        with _lock:
            _every_cache.add(cache)
        thread_caches.append(cache)
        self._entered.append(cache)
        return cache.invalidate

    def __exit__(self, *exception) -> None:
        if torch.compiler.is_compiling():
            return
        # The thread's list is the one of the thread that entered, whichever thread leaves.
        cache = self._entered.pop()
        cache.thread_caches.remove(cache)
        cache.entries.clear()
        with _lock:
            _every_cache.discard(cache)


def _stash(thread_caches: list[_Cache]) -> None:
    """Let this thread's torch state own the list."""
    before = sys.getrefcount(thread_caches)
    torch._C._stash_obj_in_tls(_KEY, thread_caches)
    if sys.getrefcount(thread_caches) == before:
        # Older releases of torch (2.11 is one) take over a reference of the caller's: here is one to take.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thread_caches))


def cached(weight: Tensor, key: tuple, make: Callable[[], Tensor]) -> Tensor:
    """`make()`, or what an earlier call made of the same state of the same parameter under this key.

    Results, such as a weight under spectral norm, are made anew: they change from call to call. So are the copies of
    what has no version counter (inference tensors) and of subclasses, whose memory is not what it seems.
    """
    cache = _current(weight)
    parameter = weight if weight._base is None else weight._base
    if cache is None or type(parameter) is not Parameter or parameter.is_inference():
        return make()
    if not weight.is_set_to(parameter):
        return make()
    copies = cache.copies(weight)
    if weight.is_cuda:  # another stream would have to wait for the one that wrote the copy
        key = (*key, torch.cuda.current_stream(weight.device).cuda_stream)
    copy = copies.get(key)
    if copy is None:
        copies[key] = copy = make()
    return copy


def _current(weight: Tensor) -> _Cache | None:
    """The innermost cache that this thread has open and may use now."""
    if not torch._C._is_key_in_tls(_KEY):
        return None
    caches = torch._C._get_obj_in_tls(_KEY)
    if not caches:
        return None
    capturing = weight.is_cuda and _is_capturing()
    return next((cache for cache in reversed(caches) if cache.captured == capturing), None)


def _is_capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _caches() -> list[_Cache]:
    with _lock:
        return list(_every_cache)


def _forget_all(*_) -> None:
    """Empty every open cache: an optimizer has stepped, and its parameters need not be those that ops are given."""
    if not torch.compiler.is_compiling() and _every_cache:
        for cache in _caches():
            cache.entries.clear()


# Torch's fused optimizers leave their parameters' versions as they were.
register_optimizer_step_post_hook(_forget_all)
