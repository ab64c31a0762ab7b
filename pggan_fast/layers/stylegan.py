"""Layers of StyleGAN2 (Karras et al. 2020) for networks of one's own: modulated convolutions, blurs, activations."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pggan_fast import ops

BINOMIAL = (1, 3, 3, 1)
"""Everybody's filter: up to a factor, the binomial coefficients."""


class Blur(nn.Module):
    """Filter images, and resample them on the way. [N, C, H, W] -> [N, C, H * up / down, W * up / down].

    f: [taps] along both axes, or [fh, fw]; it is normalised and kept as the buffer `kernel`. One of up and down is 1.
    """

    def __init__(self, f: Sequence | Tensor = BINOMIAL, *, up: int = 1, down: int = 1):
        super().__init__()
        if up > 1 and down > 1:
            raise ValueError(f"Blur: up is {up} and down is {down}, one must be 1")
        self.register_buffer("kernel", ops.setup_filter(f))
        self.up, self.down = up, down

    def forward(self, x: Tensor) -> Tensor:
        if self.up > 1:
            return ops.upsample2d(x, self.kernel, self.up)
        return ops.downsample2d(x, self.kernel, self.down) if self.down > 1 else ops.filter2d(x, self.kernel)

    def extra_repr(self) -> str:
        return f"up={self.up}, down={self.down}"


class FusedLeakyReLU(nn.Module):
    """`scale * leaky_relu(x + bias)`, the bias along dimension 1. State: `bias` [channels], none with bias=False."""

    def __init__(
        self,
        channels: int,
        *,
        bias: bool = True,
        slope: float = 0.2,
        scale: float = 2**0.5,
        clamp: float | None = None,
    ):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None
        self.slope, self.scale, self.clamp = slope, scale, clamp

    def forward(self, x: Tensor) -> Tensor:
        return ops.bias_act(x, self.bias, slope=self.slope, gain=self.scale, clamp=self.clamp)


class ModulatedConv2d(nn.Module):
    """A convolution whose weights each sample's latent w scales along input channels (section 2.2).

    x [N, in, H, W], w [N, latent_dim] -> [N, out, H * up / down, W * up / down]. up and down are 1 or 2; the resampling
    filter f is the buffer `kernel`. demodulate=False is what layers to RGB have. Weights are equalized.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        latent_dim: int,
        *,
        up: int = 1,
        down: int = 1,
        demodulate: bool = True,
        f: Sequence | Tensor = BINOMIAL,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.style_weight = nn.Parameter(torch.randn(in_channels, latent_dim))
        self.style_bias = nn.Parameter(torch.ones(in_channels))
        self.register_buffer("kernel", ops.setup_filter(f))
        self.up, self.down, self.demodulate = up, down, demodulate
        self.weight_scale = 1 / math.sqrt(in_channels * kernel_size**2)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise: added to the result, to whose shape it broadcasts."""
        scale = 1 / math.sqrt(w.shape[1])
        styles = ops.equalized_linear(w, self.style_weight, None, weight_scale=scale) + self.style_bias
        # Demodulation takes away any scale of the weights.
        styles = styles if self.demodulate else styles * self.weight_scale
        return ops.modulated_conv2d(
            x,
            self.weight,
            styles,
            noise=noise,
            up=self.up,
            down=self.down,
            padding=self.weight.shape[-1] // 2,
            resample_filter=self.kernel,
            demodulate=self.demodulate,
        )


class StyledConv2d(nn.Module):
    """ModulatedConv2d, then noise of a learned strength, bias and leaky ReLU (figure 2, c).

    x [N, in, H, W], w [N, latent_dim] -> [N, out, up * H, up * W].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        latent_dim: int,
        *,
        up: int = 1,
        f: Sequence | Tensor = BINOMIAL,
    ):
        super().__init__()
        self.conv = ModulatedConv2d(in_channels, out_channels, kernel_size, latent_dim, up=up, f=f)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.activate = FusedLeakyReLU(out_channels)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise: [N or 1, 1, up * H, up * W], sampled anew if not given."""
        up = self.conv.up
        if noise is None:
            noise = x.new_empty(x.shape[0], 1, x.shape[2] * up, x.shape[3] * up).normal_()
        return self.activate(self.conv(x, w, noise * self.noise_strength))
