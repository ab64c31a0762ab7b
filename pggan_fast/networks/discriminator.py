"""The discriminator of "Progressive Growing of GANs" (Karras et al., ICLR 2018)."""

from typing import Any

import torch
from torch import Tensor, nn

from pggan_fast import ops
from pggan_fast.layers import (
    EqualizedConv2d,
    EqualizedLinear,
    MinibatchDiscrimination,
    MinibatchStdDev,
    ResidualBlock,
    SelfAttention2d,
    normalize_spectra,
    unscale_weights,
)
from pggan_fast.networks.base import BaseDiscriminator
from pggan_fast.networks.inputs import blends, check_images, one_hot
from pggan_fast.networks.options import DiscriminatorOptions, takes
from pggan_fast.networks.recompute import recomputed
from pggan_fast.networks.resolutions import check_resolution, image_size, resolutions_up_to
from pggan_fast.ops.blend import blend_paths


@takes(DiscriminatorOptions)
class Discriminator(BaseDiscriminator):
    """Images of any resolution up to `resolution` to scores and, with labels, class logits.

    Args:
        resolution: smaller side of the largest images, a power of two from 4 to 1024.
        image_channels: channels of the images.
        base: height and width of the smallest images, as in `Generator`.
        label_dim: number of classes, 0 for none.
        fmap_base, fmap_decay, fmap_max: a layer at 2**r has min(fmap_base / 2**((r-1) * fmap_decay), fmap_max) maps.
        fused_scale: True is the official default, `lrelu(pool(conv x) + b)`; False is `pool(lrelu(conv x + b))`,
            another function.
        mbstd_group_size: group size of the minibatch standard deviation, 1 for none of it.
        mbstd_grouping, mbstd_correction: `grouping` and `correction` of `MinibatchStdDev`; pytorch_GAN_zoo has
            "consecutive" and 1.
        use_wscale, attention_at, residual, spectral_norm: as in `Generator`; the block that leaves that resolution
            attends first.
        minibatch_discrimination: a `MinibatchDiscrimination` before the last layer.
        label_mode: what is done with labels. "acgan": class logits are returned beside the score (Odena et al. 2017).
            "projection": the score gains the inner product of the last features with a vector of the class (Miyato
            and Koyama 2018). "concat": one-hot maps beside the features at 4 px.

    `forward(images [N, image_channels, r, r], labels=None, *, alpha=1.0) -> (scores [N], logits [N, label_dim]
    or None)`; alpha is the weight of the newest layers, as in the generator. Labels are indices [N] or one-hot, needed
    by "projection" and "concat"; logits come from "acgan" alone. Scores and logits are fp32 under autocast.
    """

    def __init__(self, resolution: int = 1024, **options: Any):
        super().__init__(resolution, **options)
        self._build(self.config)

    def _build(self, config: DiscriminatorOptions) -> None:
        self.label_mode, self.fused_scale = config.label_mode, config.fused_scale
        self.mbstd_group_size, self.sees_minibatch = config.mbstd_group_size, config.minibatch_discrimination
        maps, image_channels, attention_at = config.channels, config.image_channels, config.attention_at
        self.from_rgb, self.blocks = nn.ModuleDict(), nn.ModuleDict()
        for r in resolutions_up_to(config.resolution):
            self.from_rgb[str(r)] = EqualizedConv2d(image_channels, maps(r), 1, act="lrelu")
            if r > 4:
                block = self.blocks[str(r)] = nn.ModuleDict()
                if r == attention_at:
                    block["attention"] = SelfAttention2d(maps(r))
                if config.residual:
                    block["residual"] = ResidualBlock(maps(r), maps(r // 2), down=2, fused_scale=config.fused_scale)
                else:
                    block["conv"] = EqualizedConv2d(maps(r), maps(r), 3, act="lrelu")
                    block["down"] = EqualizedConv2d(maps(r), maps(r // 2), 3, down=1 + config.fused_scale, act="lrelu")

        self.head, features = nn.ModuleDict(), maps(4)
        if attention_at == 4:
            self.head["attention"] = SelfAttention2d(features)
        if config.mbstd_group_size > 1:
            self.head["stddev"] = MinibatchStdDev(
                config.mbstd_group_size, grouping=config.mbstd_grouping, correction=config.mbstd_correction
            )
            features += 1
        if config.label_mode == "concat":
            features += config.label_dim
        self.head["conv"] = EqualizedConv2d(features, maps(4), 3, act="lrelu")
        features = maps(2)
        self.head["dense"] = EqualizedLinear(maps(4) * self.base[0] * self.base[1], features, act="lrelu")
        if config.minibatch_discrimination:
            self.head["discrimination"] = MinibatchDiscrimination(features)
            features += self.head["discrimination"].kernels
        self.head["output"] = EqualizedLinear(features, 1 + config.label_dim * (config.label_mode == "acgan"), gain=1.0)
        if config.label_dim and config.label_mode == "projection":
            self.head["projection"] = EqualizedLinear(features, config.label_dim, gain=1.0, bias=False)
        if not config.use_wscale:
            unscale_weights(self)
        if config.spectral_norm:
            normalize_spectra(self)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, alpha: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        labels = None if self.label_mode == "acgan" else one_hot(labels, self.label_dim, len(images), images)
        return self._scores(self._features(self._blocks(images, alpha), labels), labels)

    def _blocks(self, images: Tensor, alpha: float | Tensor) -> Tensor:
        """Images to features at 4 px, [N, C, *base]."""
        resolution = min(images.shape[-2:])
        if images.ndim != 4 or images.shape[1:] != (self.image_channels, *image_size(resolution, self.base)):
            sides = "r, r" if self.base == (4, 4) else f"{self.base[0]} * r / 4, {self.base[1]} * r / 4"
            raise ValueError(f"images have shape {list(images.shape)}, must be [N, {self.image_channels}, {sides}]")
        check_resolution("the images' resolution", resolution, self.resolution)
        check_images(images)
        x = self.from_rgb[str(resolution)](images)
        for r in reversed(resolutions_up_to(resolution)[1:]):
            x = self._block(x, r)
            if r == resolution and blends(alpha):
                old = self.from_rgb[str(r // 2)](ops.downsample2x(images))
                x = blend_paths(old, x, alpha)
        return x

    def _block(self, x: Tensor, r: int) -> Tensor:
        block = self.blocks[str(r)]
        if self.activation_checkpointing:
            return recomputed(block, lambda x: self._layers(block, x), x)
        return self._layers(block, x)

    def _layers(self, block: nn.ModuleDict, x: Tensor) -> Tensor:
        x = block["attention"](x) if "attention" in block else x
        if "residual" in block:
            return block["residual"](x)
        x = block["down"](block["conv"](x))
        return x if self.fused_scale else ops.downsample2x(x)

    def _features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Features at 4 px, and labels that are to be seen with them, to features [N, C]."""
        if "attention" in self.head:
            x = self.head["attention"](x)
        if "stddev" in self.head:
            x = self.head["stddev"](x)
        if self.label_mode == "concat" and labels is not None:
            maps = labels.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
            x = torch.cat([x, maps], dim=1)
        x = self.head["dense"](self.head["conv"](x).flatten(1))
        return self.head["discrimination"](x) if "discrimination" in self.head else x

    def _scores(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Features [N, C] to scores and logits."""
        # Losses and penalties are taken of these few numbers: half precision would be most of their error.
        # Autocast does not know the meta device.
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            output = self.head["output"](x)
            scores = output[:, 0]
            if "projection" in self.head:
                scores = scores + (self.head["projection"](x) * labels).sum(dim=1)
        return scores, output[:, 1:] if output.shape[1] > 1 else None

    def active_parameters(self, resolution: int, fading: bool) -> list[nn.Parameter]:
        """Return the parameters that scores of images at `resolution` depend on, with the old path if `fading`."""
        parameters = list(self.head.parameters())
        for r in resolutions_up_to(resolution):
            if r > 4:
                parameters += self.blocks[str(r)].parameters()
            if r == resolution or (fading and 2 * r == resolution):
                parameters += self.from_rgb[str(r)].parameters()
        return parameters
