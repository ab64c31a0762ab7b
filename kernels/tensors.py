"""From torch's tensors to kernels: layouts, fresh outputs, scalars, launches."""

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton
from torch.nn import Parameter

FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def launch(kernel, grid: tuple, first: Tensor, *args, **options) -> None:
    """Run a kernel, whose first argument is a tensor, over a grid: every launch goes through here.

    It runs on the tensor's device, whichever is the current one. Where torch.compile traces, with tensors of its own
    type, the launch becomes a node of its graph.
    """
    # Fused multiply-adds are what the tolerances are for; newer versions of Triton leave them out unless asked.
    options["enable_fp_fusion"] = True
    if type(first) not in (Tensor, Parameter):
        wrap_triton(kernel)[grid](first, *args, **options)
    elif first.is_cuda and first.get_device() != torch.cuda.current_device():
        with torch.cuda.device(first.get_device()):
            kernel[grid](first, *args, **options)
    else:
        kernel[grid](first, *args, **options)


def compiled(kernel, grid: tuple, first: Tensor, *args, **options):
    """Return what `launch` would run, compiled and loaded for the device of the first tensor, which is on a GPU."""
    with torch.cuda.device(first.get_device()):
        found = kernel.warmup(first, *args, grid=grid, **options, enable_fp_fusion=True)
        found._init_handles()  # loads it: the driver then says how many registers it has
    return found


def scalar_args(dtype: torch.dtype, *numbers: float) -> tuple:
    """Return numbers as a kernel's arguments, read by `scalar`: fp32, and for tensors of fp64 the bits of fp64.

    Triton passes a Python float in fp32. To pass fp64 for all would cost each thread a conversion.
    """
    if dtype != torch.float64:
        return numbers
    return struct.unpack(f"{len(numbers)}q", struct.pack(f"{len(numbers)}d", *numbers))


@triton.jit
def scalar(argument, ACC: tl.constexpr):
    """Return an argument of `scalar_args` in the accumulation dtype, fp32 or fp64."""
    if ACC.is_fp64():
        return tl.full([], argument, tl.int64).to(tl.float64, bitcast=True)
    else:
        return tl.full([], argument, tl.float32)


def cdiv(a: int, b: int) -> int:
    """Return a / b rounded up; `triton.cdiv` costs microseconds a call."""
    return (a + b - 1) // b


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two from n on; of a size that torch.compile traces, a constant."""
    return 1 << max(int(n) - 1, 0).bit_length()


def check_floating(op: str, *tensors: Tensor | None) -> None:
    """Refuse dtypes that the kernels have no arithmetic for."""
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


def arrange(t: Tensor, channels_last: bool) -> Tensor:
    """Return t itself if it is dense in this layout (`channels_last` or contiguous), else a copy that is."""
    if not channels_last:
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
        self.channels_last = is_channels_last(tensor)
        if not self.channels_last and not tensor.is_contiguous():
            self.buffer = torch.empty_like(tensor, memory_format=torch.contiguous_format)

    def finish(self) -> Tensor:
        return self.tensor if self.buffer is self.tensor else self.tensor.copy_(self.buffer)
