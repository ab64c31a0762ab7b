"""Convolutions of 16 and 32 channels by halo tiles, which the CUDA kernels have: csrc/cuda/conv_halo.cu.

A block of threads copies a tile of the input, with the border that the filters reach over, into shared memory once and
multiplies all taps from there, where an implicit matrix product reads each value nine times from the L2 cache. The op
is not differentiable: `equalized_conv2d` is, and takes it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast.ops.registry import define
from pggan_fast.ops.sign_bits import pack_signs, slopes_by_signs
from pggan_fast.reference import accumulation_dtype

CHANNELS = (16, 32)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""fp32 is multiplied as tf32."""
FUSED = ("epilogue", "pixel_norm", "in_mask", "out_mask")


def exists(dtype: torch.dtype, c_in: int, c_out: int, transposed: bool, stride: int) -> bool:
    """Whether csrc/cuda has a kernel: a tile with its filters leaves room for two blocks."""
    if c_in not in CHANNELS or c_out not in CHANNELS or dtype not in DTYPES:
        return False
    return stride == 1 or (c_out if transposed else c_in) == 16


def needs_more_memory(dtype: torch.dtype, c_in: int, c_out: int, stride: int) -> bool:
    """Whether those two blocks need more shared memory than the 100 KB of a consumer GPU's multiprocessor.

    There one block would wait for each of its tiles, which gains nothing over reading them nine times from L2.
    """
    return dtype == torch.float32 and (stride == 2 or c_in + c_out == 64)


def _conv_halo(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    transposed: bool,
    stride: int,
    out_h: int,
    out_w: int,
    fused: str,
    scale: float,
    positive_slope: float,
    negative_slope: float,
    eps: float,
    needs_signs: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the op in plain PyTorch.

    z = scale * convolution of x, or of x taken back through the activation by `mask`, + bias. y = z times a slope, by
    the sign of z or by `mask`; then pixel norm if asked.

    x: [N, C_in, H, W], channels_last. weight: x's dtype, [C_out, C_in, k, k], or [C_in, C_out, k, k] where transposed;
    k is 3 for stride 1 and 4 for stride 2; padding 1. mask: packed signs, int32 [N, H, W, 1]. fused: one of FUSED.
    Returns y [N, C_out, out_h, out_w] in x's dtype, r [N, 1, out_h, out_w] in fp32 with pixel norm, else empty, and
    y's packed signs if `needs_signs` with fused="epilogue", else empty.
    """
    wide = accumulation_dtype(x.dtype)
    source = x.to(wide)
    if fused == "in_mask":
        source = source * slopes_by_signs(mask, source, positive_slope, negative_slope)
    if transposed:
        rest = [
            out - ((size - 1) * stride - 2 + weight.shape[-1])
            for out, size in zip((out_h, out_w), x.shape[2:], strict=True)
        ]
        z = F.conv_transpose2d(source, weight.to(wide), stride=stride, padding=1, output_padding=rest)
    else:
        z = F.conv2d(source, weight.to(wide), stride=stride, padding=1)
    z = z * scale if bias is None else z * scale + bias.to(wide).view(-1, 1, 1)
    signs = x.new_empty(0, dtype=torch.int32)
    r = x.new_empty(0, dtype=wide)
    if fused == "out_mask":
        z = z * slopes_by_signs(mask, z, positive_slope, negative_slope)
    elif fused != "in_mask":
        if needs_signs and fused == "epilogue":
            signs = pack_signs(z)
        z = torch.where(z > 0, z * positive_slope, z * negative_slope)
    if fused == "pixel_norm":
        r = (z.square().mean(1, keepdim=True) + eps).rsqrt()
        z = z * r
    return z.to(x.dtype).contiguous(memory_format=torch.channels_last), r, signs


def _fake(x, weight, bias, mask, transposed, stride, out_h, out_w, fused, scale, positive, negative, eps, needs_signs):
    n, c_out = x.shape[0], weight.shape[1 if transposed else 0]
    y = x.new_empty(n, c_out, out_h, out_w).contiguous(memory_format=torch.channels_last)
    wide = accumulation_dtype(x.dtype)
    r = x.new_empty((n, 1, out_h, out_w) if fused == "pixel_norm" else 0, dtype=wide)
    signs = x.new_empty((n, out_h, out_w, 1) if needs_signs and fused == "epilogue" else 0, dtype=torch.int32)
    return y, r, signs


conv_halo = define(
    "conv_halo(Tensor x, Tensor weight, Tensor? bias, Tensor? mask, bool transposed, int stride, SymInt out_h, "
    "SymInt out_w, str fused, float scale, float positive_slope, float negative_slope, float eps, bool needs_signs) "
    "-> (Tensor y, Tensor r, Tensor signs)",
    composite=_conv_halo,
    fake=_fake,
)


def has_weight_gradient(dtype: torch.dtype, c_a: int, c_b: int, stride: int) -> bool:
    """Whether csrc/cuda has `conv_halo_weight_gradient` for these."""
    return c_a in CHANNELS and c_b in CHANNELS and dtype in DTYPES and (stride == 1 or c_b == 16)


def _weight_gradient(
    a: Tensor, b: Tensor, mask: Tensor | None, stride: int, scale: float, positive_slope: float, negative_slope: float
) -> Tensor:
    """Compute the op in plain PyTorch.

    dw[o, p, q, i] = scale * sum over n, y, x of a[n, o, y, x] * b[n, i, stride y + p - 1, stride x + q - 1], a taken
    back through an activation by `mask` if given; k = 3 for stride 1, 4 for stride 2.

    a: [N, CA, H, W], channels_last. b: [N, CB, H', W'], a's dtype, channels_last. mask: packed signs of a's shape.
    Returns, in fp32 (fp64 for fp64), dw's CA k k CB values and behind them the CA sums of a.
    """
    wide = accumulation_dtype(a.dtype)
    source, k = a.to(wide), 3 if stride == 1 else 4
    source = source * (
        positive_slope if mask is None else slopes_by_signs(mask, source, positive_slope, negative_slope)
    )
    shape = (a.shape[1], b.shape[1], k, k)
    dw = torch.nn.grad.conv2d_weight(b.to(wide), shape, source, stride=stride, padding=1)
    return torch.cat([(scale * dw).permute(0, 2, 3, 1).flatten(), source.sum((0, 2, 3))])


def _weight_gradient_fake(a, b, mask, stride, scale, positive_slope, negative_slope):
    k = 3 if stride == 1 else 4
    wide = accumulation_dtype(a.dtype)
    return a.new_empty(a.shape[1] * (k * k * b.shape[1] + 1), dtype=wide)


conv_halo_weight_gradient = define(
    "conv_halo_weight_gradient(Tensor a, Tensor b, Tensor? mask, int stride, float scale, float positive_slope, "
    "float negative_slope) -> Tensor",
    composite=_weight_gradient,
    fake=_weight_gradient_fake,
)
