"""Convolutions of the StyleGAN family: with resampling by a filter, and with weights that a style modulates.

    conv2d_resample        upsample, pad, filter, convolve, filter, downsample (Karras et al. 2020)
    modulated_conv2d       the same with weight * style of each sample, demodulated

A modulated convolution needs no weight of its own for each sample: as a convolution is linear in each input channel,
x is scaled instead, and the output by the factor that demodulates.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pggan_fast.ops.geometry import (
    Pair,
    check_filter,
    check_floating,
    checked_axes,
    checked_factor,
    checked_sides,
    filter_size,
)
from pggan_fast.ops.grouped_conv import GroupedConvolution, convolve, in_dtype
from pggan_fast.ops.layout import is_channels_last
from pggan_fast.ops.small import takes_own_weights
from pggan_fast.ops.upfirdn2d import upfirdn2d
from pggan_fast.reference import accumulation_dtype, padded

EPS = 1e-8


def conv2d_resample(
    x: Tensor,
    weight: Tensor,
    f: Tensor | None = None,
    *,
    up: int = 1,
    down: int = 1,
    padding: Pair = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Convolve images at another resolution: upsample by zeros, pad, filter (`up`), convolve, filter and keep each
    `down`-th pixel (`down`).

    x: [N, C_in, H, W]. weight: [C_out, C_in / groups, kh, kw]; flip_weight=True correlates, as torch's conv2d does.
    f: as `upfirdn2d` takes it, only used where up or down is above 1. padding: a number, (x, y) or (x0, x1, y0, y1) of
    the upsampled image, in addition to what keeps it centred.
    """
    up, down = checked_factor("conv2d_resample", "up", up), checked_factor("conv2d_resample", "down", down)
    x0, x1, y0, y1 = checked_sides("conv2d_resample", padding)
    check_filter("conv2d_resample", "f", f)
    _check_convolution(x, weight, groups)
    weight = weight if flip_weight else weight.flip((2, 3))
    (fh, fw), (kh, kw), (h, w) = filter_size(f), weight.shape[2:], x.shape[2:]
    if up > 1:
        x0, x1, y0, y1 = x0 + (fw + up - 1) // 2, x1 + (fw - up) // 2, y0 + (fh + up - 1) // 2, y1 + (fh - up) // 2
    if down > 1:
        x0, x1 = x0 + (fw - down + 1) // 2, x1 + (fw - down) // 2
        y0, y1 = y0 + (fh - down + 1) // 2, y1 + (fh - down) // 2
    times = (up > 1) + (down > 1)
    least_h, least_w = kh + times * (fh - 1), kw + times * (fw - 1)
    if h * up + y0 + y1 < least_h or w * up + x0 + x1 < least_w:
        raise ValueError(
            f"conv2d_resample: the padded image is {h * up + y0 + y1} x {w * up + x0 + x1}, "
            f"must be at least {least_h} x {least_w}, which weight and f reach over"
        )
    sides, filtering = (x0, x1, y0, y1), dict(flip_filter=flip_filter, impl=impl)
    pointwise = kh == kw == 1
    if pointwise and down > 1 and up == 1:
        # A 1x1 convolution commutes with resampling: of fewer pixels it is cheaper.
        return _convolve(upfirdn2d(x, f, down=down, padding=sides, **filtering), weight, groups)
    if pointwise and up > 1 and down == 1:
        return upfirdn2d(_convolve(x, weight, groups), f, up=up, padding=sides, gain=up**2, **filtering)
    if down > 1 and up == 1:
        return _convolve(upfirdn2d(x, f, padding=sides, **filtering), weight, groups, stride=down)
    if up > 1:
        # Convolving zeros is left out by a transposed convolution; the filter comes after it, as the two commute.
        y = _convolve(x, _transposed(weight, groups), groups, stride=up, transposed=True)
        sides = (x0 - kw + 1, x1 - kw + up, y0 - kh + 1, y1 - kh + up)
        y = upfirdn2d(y, f, padding=sides, gain=up**2, **filtering)
        return y if down == 1 else upfirdn2d(y, f, down=down, **filtering)
    if x0 == x1 and y0 == y1 and x0 >= 0 and y0 >= 0:
        return _convolve(x, weight, groups, padding=(y0, x0))
    return _convolve(padded(x, sides), weight, groups)


def _resampled(x, weight, f, *, up, down, padding, flip_weight, groups=1, impl) -> Tensor:
    """`conv2d_resample` of checked tensors; without its checks, a tenth of a small one's time, where it only pads."""
    (h, w), (kh, kw) = x.shape[2:], weight.shape[2:]
    plain = up == down == 1 and flip_weight and type(padding) is int and padding >= 0
    if plain and h + 2 * padding >= kh and w + 2 * padding >= kw:
        return _convolve(x, weight, groups, padding=(padding, padding))
    geometry = dict(up=up, down=down, padding=padding, flip_weight=flip_weight, groups=groups)
    return conv2d_resample(x, weight, f, **geometry, impl=impl)


def _convolve(x, weight, groups, *, stride=1, padding=(0, 0), transposed=False) -> Tensor:
    return convolve(x, weight, GroupedConvolution([stride] * 2, list(padding), [1, 1], transposed, groups=groups))


def _transposed(weight: Tensor, groups: int) -> Tensor:
    """The weight [C_in, C_out / groups, kh, kw] with which conv_transpose2d correlates an image with zeros between."""
    flipped = weight.flip((2, 3))
    if groups == 1:
        return flipped.transpose(0, 1)
    return flipped.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    *,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Pair = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused_modconv: bool | None = None,
    impl: str = "auto",
) -> Tensor:
    """Convolve each sample with its own `weight * styles[n]` along input channels (Karras et al. 2020, section 2.2).

    With `demodulate`, each output channel's weights are divided by the root of the sum of their squares plus 1e-8.
    Then `noise`, which broadcasts to the output, is added. up, down, padding, resample_filter as `conv2d_resample`.

    x: [N, C_in, H, W]; weight: [C_out, C_in, kh, kw]; styles: [N, C_in].
    fused_modconv: True makes a weight per sample and one grouped convolution; False scales x and the output
    instead, with one weight for all. The default takes the second, but for a single sample whose weight is smaller and,
    on a CPU, laid out as x is.
    Twice differentiable.
    """
    _check_modulation("modulated_conv2d", x, weight, styles)
    check_filter("modulated_conv2d", "resample_filter", resample_filter)
    wide = accumulation_dtype(x.dtype)
    weight, styles = in_dtype(weight, wide), in_dtype(styles, wide)
    if x.dtype == torch.float16 and demodulate:
        # Demodulation makes both magnitudes cancel, and products of them might overflow before.
        weight = weight / _largest(weight, (1, 2, 3))
        styles = styles / _largest(styles, (1,))
    geometry = dict(up=up, down=down, padding=padding, flip_weight=flip_weight, impl=impl)
    n, own, factors = x.shape[0], None, None
    if fused_modconv is None:
        # What is multiplied should be the smaller one: the weight, or the input and the output. A CPU's convolution of
        # channels_last images puts each new weight in their order first, if it is not.
        smaller = n == 1 and weight.numel() < x.numel() * (1 + weight.shape[0] / max(1, x.shape[1]))
        fused_modconv = smaller and not (x.is_cpu and is_channels_last(x) and not is_channels_last(weight))
    fused_modconv = fused_modconv and n > 0
    if fused_modconv or demodulate and takes_own_weights(x, weight):
        own = weight * styles.reshape(n, 1, styles.shape[1], 1, 1)  # [N, C_out, C_in, kh, kw]
    if demodulate:
        squares = styles.square() @ _sums_of_squares(weight).T if own is None else own.square().sum((2, 3, 4))
        factors = torch.rsqrt(squares + EPS)  # [N, C_out]
    if not fused_modconv:
        return _scaled(x, weight, styles, factors, resample_filter, geometry, noise)
    own = own if factors is None else own * factors.reshape(*factors.shape, 1, 1, 1)
    images, own = x.reshape(1, -1, *x.shape[2:]), own.flatten(0, 1)
    y = _resampled(images, own, resample_filter, groups=n, **geometry)
    y = y.reshape(n, -1, *y.shape[2:])
    _check_noise(noise, y)
    return y if noise is None else y + noise.to(y.dtype)


def _sums_of_squares(weight: Tensor) -> Tensor:
    """[C_out, C_in]; as a product with ones, since a sum over so few values takes twice as long on a CPU."""
    # Autocast would round the product's factors; where channels come last a sum is one of rows, and a product a copy.
    if torch.is_autocast_enabled(weight.device.type) or not weight.is_contiguous():
        return weight.square().sum((2, 3))
    return weight.square().flatten(2) @ weight.new_ones(weight[0, 0].numel())


def _largest(t: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The largest magnitude along `dims`, which stay, and 1 where all of it is zero."""
    largest = t.abs().amax(dims, keepdim=True)
    return torch.where(largest == 0, torch.ones_like(largest), largest)


def _scaled(x, weight, styles, factors, f, geometry, noise=None) -> Tensor:
    if x.dtype == torch.float16:
        styles, factors = _within_fp16(styles, factors)
    y = _resampled(x * in_dtype(styles, x.dtype).reshape(*styles.shape, 1, 1), weight, f, **geometry)
    _check_noise(noise, y)
    if factors is None:
        return y if noise is None else y + noise.to(y.dtype)
    factors = in_dtype(factors, y.dtype).reshape(*factors.shape, 1, 1)
    return y * factors if noise is None else torch.addcmul(noise.to(y.dtype), y, factors)


def _within_fp16(styles: Tensor, factors: Tensor | None) -> tuple[Tensor, Tensor]:
    """Move what is common to a sample's channels between styles and factors, so that products of neither overflow.

    What is stored between the two is then no larger than the result. Their product stays what it was, and with it the
    gradients: what is moved has none.
    """
    if factors is None:
        common = styles.detach().abs().amax(1, keepdim=True).clamp_min(1)  # [N, 1]
        return styles / common, common
    common = factors.detach().nan_to_num(1.0).amin(1, keepdim=True).clamp_max(1)  # [N, 1]; a channel's nan stays there
    return styles * common, factors / common


def modulated_conv2d_stylegan3(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    *,
    demodulate: bool = True,
    padding: int | Sequence[int] = 0,
    input_gain: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Convolve as StyleGAN3 does (Karras et al. 2021, appendix): normalised weights and styles, then a gain.

    With `demodulate`, weight is divided by the root mean square of each output channel and styles by that of the whole
    batch first. input_gain: [], [C_in] or [N, C_in], without effect on the demodulation. padding: a number or (y, x).
    """
    _check_modulation("modulated_conv2d_stylegan3", x, weight, styles)
    along_y, along_x = checked_axes("modulated_conv2d_stylegan3", "padding", padding, least=0, order="(y, x)")
    wide = accumulation_dtype(x.dtype)
    weight, styles = in_dtype(weight, wide), in_dtype(styles, wide)
    if demodulate:
        weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
        styles = styles * styles.square().mean().rsqrt()
    factors = None
    if demodulate:
        squares = _sums_of_squares(weight)
        factors = torch.rsqrt(styles.square() @ squares.T + EPS)
    if input_gain is not None:
        styles = styles * input_gain.expand_as(styles)
    sides = (along_x, along_x, along_y, along_y)
    geometry = dict(up=1, down=1, padding=along_x if along_x == along_y else sides, flip_weight=True, impl=impl)
    return _scaled(x, weight, styles, factors, None, geometry)


def _check_convolution(x: Tensor, weight: Tensor, groups: int) -> None:
    if x.ndim != 4 or weight.ndim != 4 or groups < 1 or x.shape[1] != weight.shape[1] * groups:
        raise ValueError(
            "conv2d_resample: x must be [N, C_in, H, W] and weight [C_out, C_in / groups, kh, kw], "
            f"got {list(x.shape)} and {list(weight.shape)} with groups={groups}"
        )
    check_floating("conv2d_resample", x)
    if weight.shape[0] % groups:
        raise ValueError(
            f"conv2d_resample: weight has {weight.shape[0]} output channels, must be a multiple of groups={groups}"
        )


def _check_modulation(op: str, x: Tensor, weight: Tensor, styles: Tensor) -> None:
    if x.ndim != 4 or weight.ndim != 4 or x.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{op}: x must be [N, C_in, H, W] and weight [C_out, C_in, kh, kw], "
            f"got {list(x.shape)} and {list(weight.shape)}"
        )
    check_floating(op, x)
    if styles.shape != x.shape[:2]:
        raise ValueError(f"{op}: styles has shape {list(styles.shape)}, must be {list(x.shape[:2])}")


def _check_noise(noise: Tensor | None, y: Tensor) -> None:
    """Refuse noise that does not broadcast to the output, or that would make it larger."""
    if noise is None:
        return
    sizes = y.shape[y.ndim - noise.ndim :]
    if noise.ndim > y.ndim or any(a not in (1, b) for a, b in zip(noise.shape, sizes, strict=True)):
        raise ValueError(f"modulated_conv2d: noise has shape {list(noise.shape)}, must broadcast to {list(y.shape)}")
