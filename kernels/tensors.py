"""From torch's tensors to kernels: layouts, fresh outputs, launches."""

import torch
from torch import Tensor
from torch.library import wrap_triton
from torch.nn import Parameter

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def launch(kernel, grid: tuple, first: Tensor, *args, **options) -> None:
    """Runs a kernel, whose first argument is a tensor, over a grid: every launch goes through here.

    Where torch.compile traces, with tensors of its own type, the launch becomes a node of its graph.
    """
    traced = type(first) not in (Tensor, Parameter)
    (wrap_triton(kernel) if traced else kernel)[grid](first, *args, **options)


def check_floating(op: str, *tensors: Tensor | None) -> None:
    """Refuses dtypes that the kernels have no arithmetic for."""
    for t in tensors:
        if t is not None and t.dtype not in FLOATING:
            raise ValueError(f"{op}: tensors must be float64, float32, bfloat16 or float16, got {t.dtype}")


def accumulation_dtype(t: Tensor) -> torch.dtype:
    """fp64 for fp64, fp32 for everything narrower."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def is_channels_last(t: Tensor) -> bool:
    """Whether t [N, C, *spatial] is dense with its channels innermost, and not contiguous as well."""
    if t.is_contiguous():
        return False
    if t.ndim == 4:
        return t.is_contiguous(memory_format=torch.channels_last)
    return t.ndim > 2 and t.movedim(1, -1).is_contiguous()


def arrange(t: Tensor, last: bool) -> Tensor:
    """t itself if it is dense with channels innermost (`last`) or contiguous (not `last`), else a copy that is."""
    if not last:
        return t.contiguous()
    if t.ndim == 4:
        return t.contiguous(memory_format=torch.channels_last)
    # torch has no name for the layout in other dimensions.
    innermost = t.movedim(1, -1)
    return t if innermost.is_contiguous() else innermost.contiguous().movedim(-1, 1)


class Output:
    """`tensor`, which an op returns, and `buffer`, which a kernel writes: the same unless the strides are unusual."""

    def __init__(self, tensor: Tensor):
        self.tensor = self.buffer = tensor
        self.last = is_channels_last(tensor)
        if not self.last and not tensor.is_contiguous():
            self.buffer = torch.empty_like(tensor, memory_format=torch.contiguous_format)

    def finish(self) -> Tensor:
        return self.tensor if self.buffer is self.tensor else self.tensor.copy_(self.buffer)
