"""The generator of "Progressive Growing of GANs" (Karras et al., ICLR 2018)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pggan_fast import ops
from pggan_fast.layers import (
    EqualizedConv2d,
    EqualizedLinear,
    ResidualBlock,
    SelfAttention2d,
    normalize_spectra,
    unscale_weights,
)
from pggan_fast.networks.base import BaseGenerator
from pggan_fast.networks.inputs import blends, one_hot
from pggan_fast.networks.options import GeneratorOptions, takes
from pggan_fast.networks.recompute import recomputed
from pggan_fast.networks.resolutions import check_resolution, resolutions_up_to
from pggan_fast.ops.layout import is_channels_last


@takes(GeneratorOptions)
class Generator(BaseGenerator):
    """Latents (and labels) to images, up to `resolution`; grown by asking for smaller ones first.

    Args:
        resolution: smaller side of the largest images, a power of two from 4 to 1024.
        base: height and width of the smallest images, 4 x k or k x 4; (4, 6) at resolution 64 makes images of 64 x 96.
        image_channels: channels of the images.
        label_dim: number of classes, 0 for none.
        latent_dim: size of z; default nf(0) = min(fmap_base, fmap_max).
        fmap_base, fmap_decay, fmap_max: a layer at 2**r has min(fmap_base / 2**((r-1) * fmap_decay), fmap_max) maps.
        fused_scale: kept for symmetry with the discriminator; in G both implementations are one function.
        use_wscale: False starts weights with the equalized constant instead of multiplying by it at run time.
        slope: of the leaky ReLUs; 0 is ReLU, the official use_leakyrelu=False.
        pixel_norm: normalize feature vectors after each layer.
        pixel_norm_eps: what is added to the mean square; the official networks in fp16 have 1e-4.
        normalize_latents: normalize concat(z, labels) first.
        input_norm: normalize the first dense layer's features too, if pixel_norm; pro-gan-pth does not.
        input_bias: "channel", or "pixel" for one bias per channel and pixel of the first dense layer, as in
            pytorch_GAN_zoo.
        attention_at: resolution whose features go through a `SelfAttention2d`, None for none.
        residual: the layers above 4 px are `ResidualBlock`s.
        spectral_norm: every weight is divided by its largest singular value, instead of the equalized constant.

    `forward(z [N, latent_dim], labels=None, *, resolution=None, alpha=1.0) -> [N, image_channels, r, r]`;
    no tanh. alpha is the weight of the newest layers: a 0-d fp32 tensor while they fade in (one graph for
    every value), the float 1.0 afterwards, which leaves the old path out. Labels are indices [N] or one-hot.
    """

    def __init__(self, resolution: int = 1024, **options: Any):
        super().__init__(resolution, **options)
        config: GeneratorOptions = self.config
        self.normalize_latents, self.input_norm = config.normalize_latents, config.pixel_norm and config.input_norm
        self.slope, self.pixel_norm_eps = config.slope, config.pixel_norm_eps
        maps, image_channels = config.channels, config.image_channels
        layer = dict(act="lrelu", slope=config.slope, pixel_norm=config.pixel_norm, eps=config.pixel_norm_eps)
        pixels = self.base[0] * self.base[1]
        self.input = EqualizedLinear(
            config.latent_dim + config.label_dim, maps(4) * pixels, gain=math.sqrt(2) / 4, bias=False
        )
        self.input_bias = nn.Parameter(torch.zeros(maps(4) * (pixels if config.input_bias == "pixel" else 1)))
        self.blocks, self.to_rgb = nn.ModuleDict(), nn.ModuleDict()
        for r in resolutions_up_to(self.resolution):
            block = nn.ModuleDict()
            if r > 4 and config.residual:
                block["residual"] = ResidualBlock(maps(r // 2), maps(r), up=2, **layer)
            else:
                if r > 4:
                    block["up"] = EqualizedConv2d(maps(r // 2), maps(r), 3, up=2, **layer)
                block["conv"] = EqualizedConv2d(maps(r), maps(r), 3, **layer)
            if r == config.attention_at:
                block["attention"] = SelfAttention2d(maps(r))
            self.blocks[str(r)] = block
            self.to_rgb[str(r)] = EqualizedConv2d(maps(r), image_channels, 1, gain=1.0)
        if not config.use_wscale:
            unscale_weights(self)
        if config.spectral_norm:
            normalize_spectra(self)

    def forward(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        resolution: int | None = None,
        alpha: float | Tensor = 1.0,
    ) -> Tensor:
        resolution = self.resolution if resolution is None else resolution
        check_resolution("resolution", resolution, self.resolution)
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"z has shape {list(z.shape)}, must be [N, {self.latent_dim}]")
        labels = one_hot(labels, self.label_dim, z.shape[0], z)
        x = self._stem(z if labels is None else torch.cat([z, labels], dim=1))
        for r in resolutions_up_to(resolution)[1:]:
            before = x
            x = self._block(x, r)
        images = self.to_rgb[str(resolution)](x)
        if resolution > 4 and blends(alpha):
            images = ops.fade_in(self.to_rgb[str(resolution // 2)](before), images, alpha)
        return images

    def _stem(self, z: Tensor) -> Tensor:
        """Latents to features at 4x4."""
        scale, slope, eps = self.input.weight_scale, self.slope, self.pixel_norm_eps
        z = ops.pixel_norm(z, eps) if self.normalize_latents else z
        x = ops.equalized_linear(z, self.input.weight, weight_scale=1.0)
        if self.config.input_bias == "pixel":  # of [N, C * pixels], so that each pixel has its own
            x = ops.bias_act(x, self.input_bias, scale=scale, slope=slope)
        x = x.unflatten(1, (-1, *self.base))
        # The parameter, not `.weight`: spectral norm computes that anew each time.
        weight = next(p for p in self.blocks["4"]["conv"].parameters() if p.ndim == 4)
        if is_channels_last(weight):
            x = x.contiguous(memory_format=torch.channels_last)
        if self.config.input_bias == "pixel":
            x = ops.pixel_norm(x, eps) if self.input_norm else x
        else:
            x = ops.bias_act(x, self.input_bias, scale=scale, slope=slope, pixel_norm=self.input_norm, eps=eps)
        return self._block(x, 4)

    def _block(self, x: Tensor, r: int) -> Tensor:
        """Everything between the features below `r` (at 4: the first dense layer's) and those at `r`."""
        block = self.blocks[str(r)]
        if self.activation_checkpointing:
            return recomputed(block, lambda x: self._layers(block, x), x)
        return self._layers(block, x)

    @staticmethod
    def _layers(block: nn.ModuleDict, x: Tensor) -> Tensor:
        x = block["up"](x) if "up" in block else x
        x = block["residual" if "residual" in block else "conv"](x)
        return block["attention"](x) if "attention" in block else x

    def active_parameters(self, resolution: int, fading: bool) -> list[nn.Parameter]:
        """Return the parameters that images at `resolution` depend on, with the old path if `fading`."""
        parameters = [*self.input.parameters(), self.input_bias]
        for r in resolutions_up_to(resolution):
            parameters += self.blocks[str(r)].parameters()
            if r == resolution or (fading and 2 * r == resolution):
                parameters += self.to_rgb[str(r)].parameters()
        return parameters
