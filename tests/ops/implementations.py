"""The ways to compute an op that the matrix tests compare: a new one joins by a line in IMPLEMENTATIONS."""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import NamedTuple

import torch

from pggan_fast import ops, reference
from pggan_fast.ops.dispatch import unavailable_reason
from pggan_fast.ops.fade import split_alpha
from pggan_fast.ops.registry import TRITON_INTERPRETED
from tests.kernels.guards import guarded_allocations
from tests.ops.devices import exact_convolutions, on_device
from tests.ops.samples import DTYPES


class Implementation(NamedTuple):
    missing: Callable[[], str | None]  # why it cannot run here, or None
    function: Callable[[str], Callable]  # the op of this name, with the public function's arguments
    active: Callable[[], AbstractContextManager] = nullcontext  # entered around every call, backward included
    dtypes: tuple[torch.dtype, ...] = DTYPES
    slow: bool = False  # the matrix then has fewer layouts of each sample, and no large samples


def _public(impl: str) -> Implementation:
    return Implementation(lambda: unavailable_reason(impl, "cpu"), lambda op: partial(getattr(ops, op), impl=impl))


@contextmanager
def composite_kernels() -> Iterator[None]:
    """Inside, every op runs on the CPU what it runs on devices without kernels of their own: plain PyTorch."""
    library = torch.library.Library("pggan_fast", "IMPL")
    try:
        for name in op_names():
            # No kernel is registered for this device, so this is the one that any device gets.
            kernel = torch.library.get_kernel(f"pggan_fast::{name}", "PrivateUse1")
            library.impl(name, kernel.call_boxed, "CPU", with_keyset=True, allow_override=True)
        yield
    finally:
        library._destroy()


@contextmanager
def cuda_kernels_on_cpu() -> Iterator[None]:
    """Inside, every op runs on the CPU the source of its CUDA kernels."""
    from tests.cuda_on_cpu.build import load

    load()
    library = torch.library.Library("pggan_fast", "IMPL")
    try:
        for name in op_names():
            overload = f"pggan_fast_cuda_on_cpu::{name}"
            if torch._C._dispatch_has_kernel_for_dispatch_key(overload, "CPU"):
                kernel = torch.library.get_kernel(overload, "CPU")
                library.impl(name, kernel.call_boxed, "CPU", with_keyset=True, allow_override=True)
        yield
    finally:
        library._destroy()


@cache
def op_names() -> list[str]:
    """Every op of the torch.ops.pggan_fast namespace."""
    prefix = "pggan_fast::"
    return sorted({s.name.removeprefix(prefix) for s in torch._C._jit_get_all_schemas() if s.name.startswith(prefix)})


def _torch_op(op: str) -> Callable:
    """torch.ops.pggan_fast's op, with the public function's arguments."""
    torch_op = getattr(torch.ops.pggan_fast, "bias_act" if op == "pixel_norm" else op)

    def call(*args, **kwargs):
        given = inspect.signature(getattr(ops, op)).bind(*args, **kwargs)
        given.apply_defaults()
        result = torch_op(*_ARGUMENTS[op](**{k: v for k, v in given.arguments.items() if k != "impl"}))
        return result[0] if isinstance(result, tuple) else result

    return call


def _conv_arguments(x, weight, bias, weight_scale, padding, up, down, **epilogue) -> tuple:
    weight_scale = reference.default_weight_scale(weight) if weight_scale is None else weight_scale
    padding = weight.shape[-1] // 2 if padding is None else padding
    return (x, weight, bias, padding, up, down, weight_scale, *epilogue.values())


def _linear_arguments(x, weight, bias, weight_scale, **epilogue) -> tuple:
    weight_scale = reference.default_weight_scale(weight) if weight_scale is None else weight_scale
    return (x, weight, bias, weight_scale, *epilogue.values())


def _reals_arguments(images, alpha, dtype) -> tuple:
    default = torch.float32 if images.dtype == torch.uint8 else images.dtype
    return (images, *split_alpha("", alpha), default if dtype is None else dtype)


def _stddev_arguments(x, group_size, num_channels, eps, grouping, correction) -> tuple:
    group = reference.stddev_group(x.shape[0], group_size)
    return (x, group, num_channels, eps, grouping == "strided", correction)


def _filter_arguments(x, f, up, down, padding, flip_filter, gain) -> tuple:
    f = torch.ones(1, 1) if f is None else f
    return (
        x,
        f,
        *reference.each_axis(up),
        *reference.each_axis(down),
        *reference.each_side(padding),
        flip_filter,
        gain,
    )


def _filtered_arguments(x, fu, fd, bias, up, down, padding, gain, slope, clamp, flip_filter) -> tuple:
    fu, fd = (torch.ones(1) if f is None else f for f in (fu, fd))
    return (x, bias, fu, fd, up, down, *reference.each_side(padding), flip_filter, gain, slope, clamp)


# From the arguments of the public function to those of the op.
_ARGUMENTS = {
    "bias_act": lambda dim, clamp, **given: given.values(),
    "pixel_norm": lambda x, eps: (x, None, 1.0, "linear", 0.2, 1.0, True, eps),
    "equalized_conv2d": _conv_arguments,
    "equalized_linear": _linear_arguments,
    "upsample2x": lambda x: (x,),
    "downsample2x": lambda x: (x,),
    "fade_in": lambda low, high, alpha: (low, high, *split_alpha("", alpha)),
    "fade_reals": _reals_arguments,
    "minibatch_stddev": _stddev_arguments,
    "upfirdn2d": _filter_arguments,
    "filtered_lrelu": _filtered_arguments,
}

CUDA_ON_CPU = Implementation(lambda: None, _torch_op, cuda_kernels_on_cpu)
IMPLEMENTATIONS = {
    "reference": _public("reference"),
    "native": _public("native"),
    # On samples as small as these: ATen's ops, see ops/small.py.
    "auto": _public("auto")._replace(missing=_public("native").missing, dtypes=(torch.float32, torch.bfloat16)),
    "torch_ops": Implementation(lambda: None, _torch_op),
    "composite": Implementation(lambda: None, _torch_op, composite_kernels),
}
if TRITON_INTERPRETED:
    # The interpreter has bfloat16 wrong.
    IMPLEMENTATIONS["triton"] = _public("triton")._replace(
        active=guarded_allocations,
        dtypes=tuple(d for d in DTYPES if d != torch.bfloat16),
        slow="PGGAN_FAST_TEST_KERNELS" not in os.environ,
    )
if os.environ.get("PGGAN_FAST_TEST_KERNELS"):
    # Slow to build and to run: in `make test-kernels`.
    IMPLEMENTATIONS["cuda_on_cpu"] = CUDA_ON_CPU

# Where there is a GPU, or where `make gpu-check` is rehearsed without one: on the harness, through the same moves.
if torch.cuda.is_available():
    for impl in ("native", "triton"):
        missing, there = partial(unavailable_reason, impl, "cuda"), on_device(_public(impl).function, "cuda")
        IMPLEMENTATIONS[f"gpu_{impl}"] = Implementation(missing, there, exact_convolutions)
elif os.environ.get("PGGAN_FAST_REHEARSE_GPU"):
    IMPLEMENTATIONS["gpu_rehearsed"] = Implementation(lambda: None, on_device(_torch_op, "cpu"), cuda_kernels_on_cpu)
