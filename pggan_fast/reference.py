"""Every op in plain PyTorch, on any device and dtype: the specification. Read this first.

Half-precision inputs are computed in fp32 and rounded once at the end; fp32 and fp64 stay what they are.
Each function here has a fused namesake in `pggan_fast.ops` with the same arguments and the same meaning.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp64 for fp64, fp32 for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_channels_last(x: Tensor) -> bool:
    """Whether x [N, C, H, W] is channels_last; one that is contiguous too counts as contiguous.

    Under the transforms of torch.func, where vmap knows no memory formats, nothing counts as channels_last.
    """
    if torch._C._are_functorch_transforms_active():
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def effective_slope(act: str, slope: float) -> float:
    """The slope below zero of an activation: 1 for linear, 0 for relu, `slope` for lrelu."""
    return {"linear": 1.0, "relu": 0.0, "lrelu": slope}[act]


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    act: str = "lrelu",
    slope: float = 0.2,
    gain: float = 1.0,
    pixel_norm: bool = False,
    eps: float = 1e-8,
) -> Tensor:
    """`gain * act(scale * x + bias)`, then, if asked, pixel norm. x [N, C, *spatial], bias [C]."""
    u = x.to(accumulation_dtype(x.dtype)) * scale
    if bias is not None:
        u = u + bias.to(u.dtype).reshape(1, -1, *[1] * (x.ndim - 2))
    u = leaky_relu(u, effective_slope(act, slope)) * gain
    return (_normalize(u, eps) if pixel_norm else u).to(x.dtype)


def leaky_relu(u: Tensor, slope: float) -> Tensor:
    """u where it is above zero, otherwise `u * slope`."""
    # A product with 0 would make NaN of infinity.
    return torch.relu(u) if slope == 0 else torch.where(u > 0, u, u * slope)


def pixel_norm(x: Tensor, eps: float = 1e-8) -> Tensor:
    """`x * rsqrt(mean over channels of x**2 + eps)` (paper, section 4.2)."""
    return _normalize(x.to(accumulation_dtype(x.dtype)), eps).to(x.dtype)


def _normalize(u: Tensor, eps: float) -> Tensor:
    return u * torch.rsqrt(u.square().mean(dim=1, keepdim=True) + eps)


def default_weight_scale(weight: Tensor) -> float:
    """The He constant sqrt(2 / fan_in) of the equalized learning rate (paper, section 4.1)."""
    return math.sqrt(2 / math.prod(weight.shape[1:]))


def weight_factor(dtype: torch.dtype, weight_scale: float) -> float:
    """Return the power of two by which weights are multiplied before an fp16 convolution or product.

    The bare sum over the fan-in would overflow fp16 where the scaled one does not. Not below 2**-10, so that the
    weights themselves do not underflow. Other dtypes have range enough.
    """
    if dtype != torch.float16 or not 0 < abs(weight_scale) < 1:
        return 1.0
    return 2.0 ** max(round(math.log2(abs(weight_scale))), -10)


def equalized_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    weight_scale: float | None = None,
    padding: int | None = None,
    up: int = 1,
    down: int = 1,
    act: str = "linear",
    slope: float = 0.2,
    gain: float = 1.0,
    pixel_norm: bool = False,
    eps: float = 1e-8,
) -> Tensor:
    """Upsample if `up=2`, convolve, 2x2 mean if `down=2`, then `bias_act` with `weight_scale` as its scale.

    x [N, C_in, H, W], weight [C_out, C_in, k, k], bias [C_out].
    """
    weight_scale = default_weight_scale(weight) if weight_scale is None else weight_scale
    padding = weight.shape[-1] // 2 if padding is None else padding
    x = upsample2x(x) if up == 2 else x
    factor = weight_factor(x.dtype, weight_scale)
    scale = weight_scale / factor
    z = F.conv2d(x, _times(weight, factor).to(x.dtype), padding=padding)
    z = downsample2x(z) if down == 2 else z
    return bias_act(z, bias, scale=scale, act=act, slope=slope, gain=gain, pixel_norm=pixel_norm, eps=eps)


def equalized_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    weight_scale: float | None = None,
    act: str = "linear",
    slope: float = 0.2,
    gain: float = 1.0,
    pixel_norm: bool = False,
    eps: float = 1e-8,
) -> Tensor:
    """`bias_act(x @ weight.T)` with `weight_scale` as its scale. x [N, C_in], weight [C_out, C_in]."""
    weight_scale = default_weight_scale(weight) if weight_scale is None else weight_scale
    factor = weight_factor(x.dtype, weight_scale)
    scale = weight_scale / factor
    z = F.linear(x, _times(weight, factor).to(x.dtype))
    return bias_act(z, bias, scale=scale, act=act, slope=slope, gain=gain, pixel_norm=pixel_norm, eps=eps)


def _times(weight: Tensor, factor: float) -> Tensor:
    return weight if factor == 1 else weight * factor


def upsample2x(x: Tensor) -> Tensor:
    """Nearest neighbour, [N, C, H, W] -> [N, C, 2H, 2W]."""
    if x.is_meta:  # where interpolate refuses an empty batch
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return F.interpolate(x, scale_factor=2, mode="nearest")


def downsample2x(x: Tensor) -> Tensor:
    """2x2 mean, [N, C, H, W] -> [N, C, H // 2, W // 2]; an odd last row or column is dropped."""
    h, w = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    wide = x.to(accumulation_dtype(x.dtype))
    total = sum(wide[:, :, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1))
    return (total / 4).to(x.dtype)


def lerp(old: Tensor, new: Tensor, alpha: float | Tensor) -> Tensor:
    """Return `torch.lerp(old, new, alpha)`, alpha in their dtype: one of them to the bit at 0 and at 1."""
    return torch.lerp(old, new, alpha.to(old.dtype) if isinstance(alpha, Tensor) else alpha)


def upfirdn2d(
    x: Tensor,
    f: Tensor | None = None,
    *,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """Upsample by zeros behind each pixel, pad or crop, convolve every channel with f, keep each `down`-th pixel.

    x [N, C, H, W], f [fh, fw] or [taps] (along x and along y) or None (Karras et al. 2020, appendix B).
    up, down: a number or (x, y). padding in upsampled pixels: a number, (x, y) or (x0, x1, y0, y1); negative crops.
    `flip_filter` correlates instead of convolving; `gain` multiplies the result once.
    """
    dtype = accumulation_dtype(x.dtype)
    (upx, upy), (downx, downy), (x0, x1, y0, y1) = each_axis(up), each_axis(down), each_side(padding)
    taps = torch.ones(1, 1, dtype=dtype, device=x.device) if f is None else f.to(dtype)
    taps = torch.outer(taps, taps) if taps.ndim == 1 else taps
    taps = (taps if flip_filter else taps.flip((0, 1))) * gain
    n, c, h, w = x.shape
    y = F.pad(x.to(dtype).reshape(n, c, h, 1, w, 1), (0, upx - 1, 0, 0, 0, upy - 1)).reshape(n, c, h * upy, w * upx)
    groups = max(c, 1)  # torch has no convolution of no channels: no images of one channel then
    y = padded(y, (x0, x1, y0, y1)).reshape(n * c // groups, groups, h * upy + y0 + y1, w * upx + x0 + x1)
    y = F.conv2d(y, taps.expand(groups, 1, -1, -1), stride=(downy, downx), groups=groups)
    return y.reshape(n, c, *y.shape[2:]).to(x.dtype).contiguous(memory_format=layout_of(x))


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = 2**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    """Add a bias [C], upsample with fu, `gain * lrelu`, clamp, downsample with fd (Karras et al. 2021, section 3.2)."""
    u = x.to(accumulation_dtype(x.dtype))
    u = u if bias is None else u + bias.to(u.dtype)[:, None, None]
    u = upfirdn2d(u, fu, up=up, padding=padding, flip_filter=flip_filter, gain=up**2)
    u = leaky_relu(u, slope) * gain
    # hardtanh lets no gradient pass on the limits themselves.
    u = u if clamp is None else F.hardtanh(u, -clamp, clamp)
    return upfirdn2d(u, fd, down=down, flip_filter=flip_filter).to(x.dtype)


def each_axis(value: int | Sequence[int]) -> tuple[int, int]:
    """(x, y) of a number or a pair."""
    return (value, value) if isinstance(value, int) else tuple(value)


def each_side(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """(x0, x1, y0, y1) of a number, of (x, y), or of all four."""
    padding = each_axis(padding)
    return tuple(p for p in padding for _ in range(2)) if len(padding) == 2 else padding


def padded(x: Tensor, sides: tuple[int, int, int, int]) -> Tensor:
    """Images [..., H, W] with zeros around them; where a side is negative it crops, beyond the image too."""
    if min(sides) < 0:  # torch's padding crops first, and refuses to crop more than there is
        x, sides = F.pad(x, [max(side, 0) for side in sides]), tuple(min(side, 0) for side in sides)
    return F.pad(x, sides)


def layout_of(x: Tensor) -> torch.memory_format:
    """channels_last if x [N, C, H, W] is that and not contiguous as well; contiguous inside vmap, which cannot say."""
    if torch._C._functorch.is_batchedtensor(x):
        return torch.contiguous_format
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def fade_in(low: Tensor, high: Tensor, alpha: float | Tensor) -> Tensor:
    """`lerp(upsample2x(low), high, alpha)`: alpha is the weight of the new path (paper, figure 2)."""
    dtype = accumulation_dtype(high.dtype)
    old, new = upsample2x(low).to(dtype), high.to(dtype)
    return lerp(old, new, alpha).to(high.dtype)


def fade_reals(images: Tensor, alpha: float | Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """`lerp(upsample2x(downsample2x(x)), x, alpha)`; uint8 0..255 becomes -1..1 on the way."""
    if dtype is None:
        dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
    x = images.to(accumulation_dtype(dtype))
    x = x * (2 / 255) - 1 if images.dtype == torch.uint8 else x
    coarse = upsample2x(downsample2x(x))
    return lerp(coarse, x, alpha).to(dtype)


def stddev_group(batch: int, group_size: int) -> int:
    """Return the largest divisor of the batch that is not above `group_size`, at least 1."""
    for group in range(group_size, 1, -1):  # not max(..., default=1), which Dynamo of torch 2.11 refuses
        if batch % group == 0:
            return group
    return 1


def minibatch_stddev(
    x: Tensor,
    group_size: int = 4,
    num_channels: int = 1,
    eps: float = 1e-8,
    *,
    grouping: str = "strided",
    correction: int = 0,
) -> Tensor:
    """x [N, C, H, W] with `num_channels` maps of the batch's standard deviation appended (paper, section 3).

    The batch is cut into groups of `stddev_group(N, group_size)` samples: "strided" puts sample n
    into group `n mod M` of M groups (the official code), "consecutive" puts neighbours together.
    Channels are cut into `num_channels` runs; each map holds the group's mean of `sqrt(var + eps)`
    over one run and all pixels. The variance divides by `max(group - correction, 1)`.
    """
    n, c, h, w = x.shape
    g = stddev_group(n, group_size)
    f = num_channels
    y = x.to(accumulation_dtype(x.dtype))
    y = y.reshape(g, n // g, f, c // f, h, w) if grouping == "strided" else y.reshape(n // g, g, f, c // f, h, w)
    dim = 0 if grouping == "strided" else 1
    variance = (y - y.mean(dim=dim, keepdim=True)).square().sum(dim=dim, keepdim=True) / max(g - correction, 1)
    s = torch.sqrt(variance + eps).mean(dim=(3, 4, 5), keepdim=True)
    s = s.expand(*y.shape[:3], 1, h, w).reshape(n, f, h, w).to(x.dtype)
    y = torch.cat([x, s], dim=1)
    # A single map is in both layouts at once, and cat takes it for contiguous.
    return y.contiguous(memory_format=torch.channels_last) if is_channels_last(x) else y


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """softmax(scale * q k^T) v: q [N, P, d], k [N, M, d], v [N, M, e] -> [N, P, e] (Vaswani et al. 2017)."""
    q, k, wide = (t.to(accumulation_dtype(t.dtype)) for t in (q, k, v))
    return (torch.softmax(scale * (q @ k.mT), dim=-1) @ wide).to(v.dtype)
