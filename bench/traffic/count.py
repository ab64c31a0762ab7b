"""Launches and bytes of a call, counted on meta tensors: nothing is computed, no GPU is asked.

Every ATen call that is neither a view nor a plain allocation is a launch that reads its inputs and writes its outputs
once; a convolution's backward is a launch for each gradient; a call on lists of tensors launches as often as torch's
multi-tensor kernels do. Of our own ops, `bench.traffic.kernels` says what their kernels move.
"""

from collections import Counter
from collections.abc import Iterable
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_local_scalar_dense"}
RELABELS = {"detach", "alias", "lift_fresh", "view_as", "_reshape_alias", "_unsafe_view", "reshape"}
# Their first argument is written, not read.
OVERWRITES = {"fill_", "zero_", "copy_", "normal_", "uniform_"}
NO_META_KERNEL = {"_fused_adam_", "_amp_foreach_non_finite_check_and_unscale_"}
CONVOLUTIONS = {
    *("convolution", "convolution_backward"),
    # Those of images, with sign bits: a 16th of a tensor.
    *("conv_rgb_expand", "conv_rgb_reduce", "conv_rgb_weight_gradient"),
}
# Their last two arguments are the factors.
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}

# of torch's MultiTensorApply.cuh
CHUNK = 65536
MOST_BLOCKS = 320
MOST_TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}


class Call(NamedTuple):
    """One counted call: usually one launch."""

    name: str
    bytes: int
    launches: int
    operations: float
    """Multiplications and additions, of convolutions and matrix products alone."""
    launch: object
    """A kernel's own launch, where whoever counted keeps it."""
    of: str = ""
    """The shape of its largest tensor; of a convolution's, those of input and weight."""


class Traffic(TorchDispatchMode):
    """The launches and bytes of what runs inside its `with`, by name.

    `rules` maps ops to functions that count and compute them.
    """

    def __init__(self, rules: dict[Any, Any] | None = None):
        super().__init__()
        self.rules = rules or {}
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.calls: list[Call] = []

    def add(
        self,
        name: str,
        bytes: float,
        launches: int = 1,
        operations: float = 0.0,
        launch: object = None,
        of: str = "",
    ) -> None:
        self.launches[name] += launches
        self.bytes[name] += round(bytes)
        self.calls.append(Call(name, round(bytes), launches, operations, launch, of))

    @property
    def total_launches(self) -> int:
        return sum(self.launches.values())

    @property
    def total_bytes(self) -> int:
        return sum(self.bytes.values())

    @property
    def of_convolutions(self) -> int:
        """Bytes of the convolutions alone."""
        return sum(self.bytes[name] for name in CONVOLUTIONS)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in self.rules:
            return self.rules[func](self, *args, **kwargs)
        name = func._schema.name.partition("::")[2]
        if name.startswith(("_foreach_", "_fused_", "_amp_foreach_")):
            return self._on_lists(func, name, args, kwargs)
        result = func(*args, **kwargs)
        on_device = any(t.is_meta for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor))
        if not on_device or func.is_view or name in ALLOCATIONS or name in RELABELS:
            return result
        if name == "convolution_backward":
            dz, x, weight = args[:3]
            needs_dx, needs_dw, needs_db = args[-1]
            operations, of = _operations(x, weight, dz, transposed=args[7]), _convolved(x, weight)
            if needs_dx:
                self.add(name, distinct_bytes(dz, weight, x), operations=operations, of=f"{of}, input")
            if needs_dw:
                self.add(name, distinct_bytes(dz, x, weight), operations=operations, of=f"{of}, weight")
            if needs_db:
                self.add("bias gradient", distinct_bytes(dz, result[2]))
            result = tuple(made if made is None else _laid_out(made, dz, x, weight) for made in result)
        elif name == "convolution":
            x, weight, bias = args[:3]
            operations = _operations(x, weight, result, transposed=args[6])
            self.add(name, distinct_bytes(x, weight, result), operations=operations, of=_convolved(x, weight))
            if bias is not None:
                self.add("bias", 2 * distinct_bytes(result) + distinct_bytes(bias))
            result = _laid_out(result, x, weight)
        else:
            operations = 2 * args[-2].numel() * args[-1].shape[-1] if name in PRODUCTS else 0.0
            moved, of = _moved(func, name, args, kwargs, result), largest_shape((args, kwargs, result))
            self.add(name, moved, operations=operations, of=of)
        return result

    def _on_lists(self, func: torch._ops.OpOverload, name: str, args: tuple, kwargs: dict) -> object:
        lists = [a for a in args if isinstance(a, (list, tuple)) and a and isinstance(a[0], Tensor)]
        # Adam's last list is of its step counters.
        lists = lists[:-1] if name == "_fused_adam_" else lists
        changed = name.endswith("_")
        result = None if name in NO_META_KERNEL else func(*args, **kwargs)
        if not lists[0][0].is_meta:
            return result
        outputs = 0 if changed else 1
        tensors = lists[0]
        # One list may stand for two: gradients, for Adam without momentum, are its first moments too.
        moved = sum(distinct_bytes(*each) for each in {id(each[0]): each for each in lists}.values())
        # Adam writes parameters and both moments, a norm next to nothing.
        written = {"_fused_adam_": 3, "_foreach_norm": 0}.get(name, 1)
        moved += written * distinct_bytes(*tensors)
        launches = multi_tensor_launches([t.numel() for t in tensors], len(lists) + outputs)
        self.add(name, moved, launches, of=f"{len(tensors)} tensors")
        return result


def largest_shape(values: object) -> str:
    """Return the shape of the largest of the tensors, N x C x H x W."""
    return _shape(max((t for t in tree_leaves(values) if isinstance(t, Tensor)), key=Tensor.numel))


def _convolved(x: Tensor, weight: Tensor) -> str:
    return f"{_shape(x)} by {_shape(weight)}"


def _shape(t: Tensor) -> str:
    return "x".join(map(str, t.shape))


def _operations(x: Tensor, weight: Tensor, y: Tensor, transposed: bool) -> float:
    """Multiplications and additions of a convolution x -> y, those with the padding's zeros among them."""
    return 2.0 * (x if transposed else y).numel() * weight[0].numel()


def _laid_out(made: Tensor, *inputs: Tensor) -> Tensor:
    """Return what a convolution made, in the layout that cuDNN gives it; on meta tensors it is contiguous."""
    last = any(t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous() for t in inputs)
    return torch.empty_like(made, memory_format=torch.channels_last) if last and made.ndim == 4 else made


def _moved(func: torch._ops.OpOverload, name: str, args: tuple, kwargs: dict, result: object) -> int:
    read = written = 0
    given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    ours: set[int] = set()
    for argument in func._schema.arguments:
        tensors = [t for t in tree_leaves(given.get(argument.name)) if isinstance(t, Tensor)]
        changed = argument.alias_info is not None and argument.alias_info.is_write
        size = distinct_bytes(*tensors)
        if changed:
            ours.update(map(id, tensors))
            written += size
        if not (changed and (argument.is_out or name in OVERWRITES)):
            read += size
    return read + written + distinct_bytes(*(t for t in tree_leaves(result) if id(t) not in ours))


def distinct_bytes(*tensors: object) -> int:
    """The bytes of tensors' elements; those of an expanded dimension are one."""
    total = 0
    for t in tensors:
        if isinstance(t, Tensor):
            numbers = t.itemsize
            for size, stride in zip(t.shape, t.stride(), strict=True):
                numbers *= size if stride or not size else 1
            total += numbers
    return total


def multi_tensor_launches(sizes: Iterable[int], depth: int) -> int:
    """Launches of torch's multi-tensor kernels over tensors of so many elements, `depth` lists at once."""
    launches = tensors = blocks = 0
    for size in sizes:
        chunks = ceil(size / CHUNK)
        tensors += 1
        for chunk in range(1, chunks + 1):
            blocks += 1
            last = chunk == chunks
            if blocks == MOST_BLOCKS or (last and tensors == MOST_TENSORS[depth]):
                launches += 1
                blocks, tensors = 0, 0 if last else 1
    return launches + (blocks > 0)
