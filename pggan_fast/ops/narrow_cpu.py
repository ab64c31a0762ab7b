"""Convolutions and products in half precision on processors that have no instructions for them.

There oneDNN computes bf16 and fp16 by plain loops, ten and more times slower than fp32. So tensors are widened to fp32
on the way in and narrowed on the way out: between layers, and for backward, they stay narrow.
"""

import os
from functools import cache

import torch
from torch import Tensor

# oneDNN's own variable, which keeps it from newer instructions.
LIMIT = "ONEDNN_MAX_CPU_ISA"
WITHOUT_BF16 = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX512_CORE", "AVX512_CORE_VNNI")
# The op itself: the packet of its overloads chooses one at each call.
_convolution_backward = torch.ops.aten.convolution_backward.default._op


@cache
def is_slow(dtype: torch.dtype) -> bool:
    """Whether this processor computes convolutions of this dtype by plain loops, or faster in fp32."""
    limit = os.environ.get(LIMIT, "ALL").upper()
    if dtype == torch.bfloat16:
        return limit in WITHOUT_BF16 or not (_has("_is_avx512_bf16_supported") or _has("_is_amx_tile_supported"))
    if dtype == torch.float16:
        return limit in (*WITHOUT_BF16, "AVX512_CORE_BF16") or not _has("_is_amx_fp16_supported")
    return False


def _has(feature: str) -> bool:
    """Whether torch finds an instruction set; a release that does not know it says no, which is the safe answer."""
    return bool(getattr(torch.cpu, feature, lambda: False)())


def is_widened(t: Tensor) -> bool:
    """Whether operations on `t` are computed in fp32."""
    return t.dtype.itemsize == 2 and t.is_cpu and is_slow(t.dtype)


def computed_dtype(t: Tensor) -> torch.dtype:
    """Return the dtype that a convolution of `t` is computed in, and that its filters are best folded into."""
    return torch.float32 if is_widened(t) else t.dtype


def convolution(x: Tensor, weight: Tensor, *arguments: object, bias: Tensor | None = None) -> Tensor:
    """`aten.convolution` in x's dtype."""
    if not is_widened(x):
        return torch.convolution(x, weight, bias, *arguments)
    bias = bias if bias is None else bias.float()
    return torch.convolution(x.float(), weight.float(), bias, *arguments).to(x.dtype)


def convolution_backward(
    dz: Tensor, x: Tensor, weight: Tensor, *arguments: object, output_mask: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`aten.convolution_backward`: dx in x's dtype, dw and the bias's gradient in that of `computed_dtype`.

    None where the mask says so.
    """
    arguments = (dz.shape[1:2] if output_mask[2] else None, *arguments, [*output_mask])
    if x.dtype.itemsize != 2 or not (is_widened(x) or _leaves_taps_unwritten(x, dz, weight)):
        return _convolution_backward(dz, x, weight, *arguments)
    dx, dw, db = _convolution_backward(dz.float(), x.float(), weight.float(), *arguments)
    return dx if dx is None else dx.to(x.dtype), dw, db


def _leaves_taps_unwritten(x: Tensor, dz: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN may return, for x in half precision, memory as it found it: for taps that no pixel reaches."""
    if not x.is_cpu:
        return False
    larger = max(x.shape[2:], dz.shape[2:])  # of a transposed convolution it is the output
    return any(n < k for n, k in zip(larger, weight.shape[2:], strict=True))


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in a's dtype."""
    if not is_widened(a):
        return a @ b
    # Autocast would narrow the factors again.
    with torch.autocast(a.device.type, enabled=False):
        return (a.float() @ b.float()).to(a.dtype)
