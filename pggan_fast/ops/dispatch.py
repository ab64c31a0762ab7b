"""Which implementation runs: native kernels, Triton kernels, or plain PyTorch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pggan_fast import _native
from pggan_fast.ops.registry import TRITON_INSTALLED, TRITON_INTERPRETED

IMPLEMENTATIONS = ("auto", "native", "triton", "reference")
OPS = (
    "bias_act",
    "pixel_norm",
    "equalized_conv2d",
    "equalized_linear",
    "upsample2x",
    "downsample2x",
    "fade_in",
    "fade_reals",
    "minibatch_stddev",
    "upfirdn2d",
    "filtered_lrelu",
)

# A plain module global, since torch.compile(fullgraph=True) guards on one and refuses a ContextVar.
_selected = _default = os.environ.get("PGGAN_FAST_IMPL", "auto")
if _selected not in IMPLEMENTATIONS:
    raise ValueError(f"PGGAN_FAST_IMPL is {_selected!r}, allowed: {', '.join(IMPLEMENTATIONS)}")


class _Selection:
    """One open `use_impl`, told from others of the same name by its identity."""

    def __init__(self, name: str):
        self.name = name


_open_selections: list[_Selection] = []  # of all threads, in the order in which they were entered


@contextmanager
def use_impl(name: str) -> Iterator[None]:
    """Inside, every op with `impl="auto"` takes this implementation, in every thread.

    Contexts may overlap and end in any order, in any thread: the one entered last of those still open counts.
    An op's backward keeps the implementation that its forward took.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"use_impl({name!r}): allowed are {', '.join(IMPLEMENTATIONS)}")
    selection = _Selection(name)
    _open_selections.append(selection)
    _select_innermost()
    try:
        yield
    finally:
        _open_selections.remove(selection)
        _select_innermost()


def _select_innermost() -> None:
    """Make the innermost open selection count.

    Without a lock, which torch.compile cannot trace: whoever writes last looks again after it has written.
    """
    global _selected
    while True:
        _selected = _innermost()
        if _selected == _innermost():
            return


def _innermost() -> str:
    still_open = _open_selections[-1:]  # one step, so that no other thread can empty the list in between
    return still_open[0].name if still_open else _default


def unavailable_reason(impl: str, device_type: str) -> str | None:
    """Return why `impl` cannot run on this kind of device, or None if it can."""
    if impl == "reference":
        return None
    if impl == "triton":
        return _without_triton(device_type)
    if device_type == "cpu":
        return None if _native.cpu_available else _native.cpu_reason
    if device_type == "cuda":
        return None if _native.cuda_available else _native.cuda_reason
    return f"there are no native kernels for {device_type} devices"


def _without_triton(device_type: str) -> str | None:
    if not TRITON_INSTALLED:
        return "Triton is not installed (pip install triton)"
    if device_type == "cuda" or (device_type == "cpu" and TRITON_INTERPRETED):
        return None
    if device_type == "cpu":
        return "Triton runs on the CPU only in its interpreter (TRITON_INTERPRET=1, set before Python starts)"
    return f"there are no Triton kernels for {device_type} devices"


def _first_that_runs(device_type: str) -> str:
    # Triton on a CPU is an interpreter: for tests alone.
    order = ("native", "triton", "reference") if device_type == "cuda" else ("native", "reference")
    return next(i for i in order if unavailable_reason(i, device_type) is None)


def requested_impl(impl: str) -> str:
    """Return the implementation that is requested by name, or "auto"."""
    return _selected if impl == "auto" else impl


def is_native_by_default() -> bool:
    """Whether "auto" means native kernels on the CPU now: nothing else is selected, and they are built."""
    return _selected == "auto" and _native.cpu_available


def choose(op: str, x: torch.Tensor, impl: str) -> str:
    """The implementation that `op` takes for x: the first of native, Triton (on GPUs) and reference that can run."""
    if impl == "auto":
        impl = _selected
    if impl == "auto" and x.is_cpu and _native.cpu_available:
        return "native"
    device_type = x.device.type
    if impl == "auto":
        return _first_that_runs(device_type)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"{op}: impl is {impl!r}, allowed: {', '.join(IMPLEMENTATIONS)}")
    if (reason := unavailable_reason(impl, device_type)) is not None:
        raise RuntimeError(f"{op}: impl={impl!r} cannot run on {device_type}: {reason}")
    return impl


def implementations(device: str | torch.device) -> dict[str, dict[str, str]]:
    """For each op: every implementation on this device, "chosen", "available" or the reason it cannot run."""
    device_type = torch.device(device).type
    states = {i: unavailable_reason(i, device_type) or "available" for i in IMPLEMENTATIONS[1:]}
    chosen = _first_that_runs(device_type) if _selected == "auto" else _selected
    return {op: {**states, chosen: "chosen"} for op in OPS}
