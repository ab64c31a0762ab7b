"""The networks of R3GAN, "The GAN is dead; long live the GAN!" (Huang et al. 2024, arXiv 2501.05441).

    G: z -> maps at 4 px -> blocks -> (up, blocks) for each resolution -> 1x1 convolution to images
    D: images -> 1x1 convolution -> (blocks, down) for each resolution -> blocks -> vector -> score

Both are `InvertedBottleneck`s with bilinear resampling between, without normalization, and do not grow.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pggan_fast.layers.r3gan import (
    BilinearResample,
    FeaturesToVector,
    InvertedBottleneck,
    LatentToFeatures,
    ScaledConv2d,
    ScaledLinear,
)
from pggan_fast.networks.base import BaseDiscriminator, BaseGenerator, Network
from pggan_fast.networks.inputs import blends, check_images, one_hot
from pggan_fast.networks.options import R3ganGeneratorOptions, R3ganOptions, takes
from pggan_fast.networks.recompute import recomputed
from pggan_fast.networks.resolutions import image_size, resolutions_up_to
from pggan_fast.ops.layout import is_channels_last


class _Stages(Network):
    """The part that both networks share: blocks at each resolution, and no growth."""

    grows = False

    def _bottlenecks(self, r: int) -> list[InvertedBottleneck]:
        config: R3ganOptions = self.config
        channels, total = config.channels(r), config.blocks * len(resolutions_up_to(config.resolution))
        hidden = channels * config.expansion
        if channels < 1 or hidden % config.group_channels:
            raise ValueError(
                f"group_channels is {config.group_channels}, must divide the {hidden} channels of the blocks at {r} px"
            )
        return [InvertedBottleneck(channels, hidden, config.group_channels, total) for _ in range(config.blocks)]

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        return recomputed(stage, stage, x) if self.activation_checkpointing else stage(x)

    def _check_stage(self, resolution: int, alpha: float | Tensor) -> None:
        if resolution != self.resolution:
            raise ValueError(f"resolution is {resolution}, must be {self.resolution}: these networks do not grow")
        if blends(alpha):
            raise ValueError(f"alpha is {alpha}, must be 1.0: these networks do not fade layers in")

    def active_parameters(self, resolution: int, fading: bool) -> list[nn.Parameter]:
        """Return all parameters: they are live throughout."""
        return list(self.parameters())


@takes(R3ganGeneratorOptions)
class R3ganGenerator(_Stages, BaseGenerator):
    """Latents (and labels) to images at `resolution`.

    Args:
        resolution: smaller side of the images, a power of two from 4 to 1024.
        base: height and width at the lowest resolution, as in `Generator`.
        image_channels: channels of the images.
        label_dim: number of classes, 0 for none; a learned vector of the class, as long as z, is appended to z.
        latent_dim: size of z.
        fmap_base, fmap_decay, fmap_max: channels at 2**r are min(fmap_base / 2**((r-1) * fmap_decay), fmap_max). The
            defaults are the published 768 up to 32 px, 384 at 64, 192 at 128 and 96 at 256.
        blocks: `InvertedBottleneck`s at each resolution.
        expansion: channels inside a block as a multiple of those between blocks.
        group_channels: channels of a group of the 3x3 convolutions; the published cardinalities all give 16.

    `forward(z [N, latent_dim], labels=None, *, resolution=None, alpha=1.0) -> [N, image_channels, r, r]`; resolution
    and alpha are there for callers of networks that grow, and take `resolution` and 1.0 alone.
    """

    def __init__(self, resolution: int = 1024, **options: Any):
        super().__init__(resolution, **options)
        config: R3ganGeneratorOptions = self.config
        sizes, latent_dim = resolutions_up_to(config.resolution), config.latent_dim
        self.embed_labels = ScaledLinear(config.label_dim, latent_dim) if config.label_dim else None
        self.input = LatentToFeatures(latent_dim * (2 if config.label_dim else 1), config.channels(4), self.base)
        self.stages = nn.ModuleDict()
        for r in sizes:
            up = [BilinearResample(config.channels(r // 2), config.channels(r), up=2)] if r > 4 else []
            self.stages[str(r)] = nn.Sequential(*up, *self._bottlenecks(r))
        self.output = ScaledConv2d(config.channels(config.resolution), config.image_channels, 1)

    def forward(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        *,
        resolution: int | None = None,
        alpha: float | Tensor = 1.0,
    ) -> Tensor:
        self._check_stage(self.resolution if resolution is None else resolution, alpha)
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ValueError(f"z has shape {list(z.shape)}, must be [N, {self.latent_dim}]")
        labels = one_hot(labels, self.label_dim, z.shape[0], z)
        z = z if labels is None else torch.cat([z, self.embed_labels(labels).to(z.dtype)], dim=1)
        x = self.input(z)
        if is_channels_last(self.stages["4"][0].grouped.weight):
            x = x.contiguous(memory_format=torch.channels_last)
        for stage in self.stages.values():
            x = self._run(stage, x)
        return self.output(x)


@takes(R3ganOptions)
class R3ganDiscriminator(_Stages, BaseDiscriminator):
    """Images at `resolution` to scores, with labels by projection (Miyato and Koyama 2018).

    Args: as `R3ganGenerator`. With label_dim, the score is the inner product of the features with a learned vector
    of the class.

    `forward(images [N, image_channels, r, r], labels=None, *, alpha=1.0) -> (scores [N], None)`.
    """

    def __init__(self, resolution: int = 1024, **options: Any):
        super().__init__(resolution, **options)
        config: R3ganOptions = self.config
        self.input = ScaledConv2d(config.image_channels, config.channels(config.resolution), 1)
        self.stages = nn.ModuleDict()
        for r in reversed(resolutions_up_to(config.resolution)):
            down = [BilinearResample(config.channels(r), config.channels(r // 2), down=2)] if r > 4 else []
            self.stages[str(r)] = nn.Sequential(*self._bottlenecks(r), *down)
        features = config.channels(4) if config.label_dim else 1
        self.output = FeaturesToVector(config.channels(4), features, self.base)
        self.embed_labels = None
        if config.label_dim:
            self.embed_labels = ScaledLinear(config.label_dim, features, gain=1 / math.sqrt(features))

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, alpha: float | Tensor = 1.0
    ) -> tuple[Tensor, None]:
        expected = (self.image_channels, *image_size(self.resolution, self.base))
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"images have shape {list(images.shape)}, must be [N, {', '.join(map(str, expected))}]:"
                " these networks do not grow"
            )
        check_images(images)
        self._check_stage(self.resolution, alpha)
        x = self.input(images)
        for stage in self.stages.values():
            x = self._run(stage, x)
        # Losses and penalties are taken of these few numbers. Autocast does not know the meta device.
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            scores = self.output(x)  # [N, 1], or [N, features] for a product with the class's vector
            labels = one_hot(labels, self.label_dim, len(images), scores)
            return (scores[:, 0] if labels is None else (scores * self.embed_labels(labels)).sum(dim=1)), None
