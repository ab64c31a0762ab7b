"""The discriminator of "Progressive Growing of GANs" (Karras et al., ICLR 2018)."""

import torch
from torch import Tensor, nn

from pggan_fast import ops
from pggan_fast.layers import EqualizedConv2d, EqualizedLinear, MinibatchStdDev
from pggan_fast.networks.options import blends, channels, check_resolution, resolutions


class Discriminator(nn.Module):
    """Images of any resolution up to `resolution` to scores and, with labels, class logits.

    Args:
        resolution: largest image side, a power of two from 4 to 1024.
        image_channels: channels of the images.
        label_dim: number of classes whose logits are returned beside the score (AC-GAN), 0 for none.
        fmap_base, fmap_decay, fmap_max: a layer at 2**r has min(fmap_base / 2**((r-1) * fmap_decay), fmap_max) maps.
        fused_scale: True is the official default, `lrelu(pool(conv x) + b)`; False is `pool(lrelu(conv x + b))`,
            another function.
        mbstd_group_size: group size of the minibatch standard deviation, 1 for none of it.

    `forward(images [N, image_channels, r, r], labels=None, *, alpha=1.0) -> (scores [N], logits [N, label_dim]
    or None)`; alpha is the weight of the newest layers, as in the generator. Scores and logits are fp32 under autocast.
    """

    def __init__(
        self,
        resolution: int = 1024,
        *,
        image_channels: int = 3,
        label_dim: int = 0,
        fmap_base: int = 8192,
        fmap_decay: float = 1.0,
        fmap_max: int = 512,
        fused_scale: bool = True,
        mbstd_group_size: int = 4,
    ):
        super().__init__()
        check_resolution("resolution", resolution)
        self.options = dict(
            resolution=resolution,
            image_channels=image_channels,
            label_dim=label_dim,
            fmap_base=fmap_base,
            fmap_decay=fmap_decay,
            fmap_max=fmap_max,
            fused_scale=fused_scale,
            mbstd_group_size=mbstd_group_size,
        )
        self.resolution, self.image_channels, self.label_dim = resolution, image_channels, label_dim
        self.fused_scale = fused_scale

        def maps(r: int) -> int:
            return channels(r, fmap_base, fmap_decay, fmap_max)

        self.from_rgb, self.blocks = nn.ModuleDict(), nn.ModuleDict()
        for r in resolutions(resolution):
            self.from_rgb[str(r)] = EqualizedConv2d(image_channels, maps(r), 1, act="lrelu")
            if r > 4:
                self.blocks[str(r)] = nn.ModuleDict(
                    {
                        "conv": EqualizedConv2d(maps(r), maps(r), 3, act="lrelu"),
                        "down": EqualizedConv2d(maps(r), maps(r // 2), 3, down=1 + fused_scale, act="lrelu"),
                    }
                )
        stddev = mbstd_group_size > 1
        self.head = nn.ModuleDict({"stddev": MinibatchStdDev(mbstd_group_size)} if stddev else {})
        self.head["conv"] = EqualizedConv2d(maps(4) + stddev, maps(4), 3, act="lrelu")
        self.head["dense"] = EqualizedLinear(maps(4) * 16, maps(2), act="lrelu")
        self.head["output"] = EqualizedLinear(maps(2), 1 + label_dim, gain=1.0)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, alpha: float | Tensor = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        resolution = images.shape[-1]
        if images.ndim != 4 or images.shape[1:] != (self.image_channels, resolution, resolution):
            raise ValueError(f"images have shape {list(images.shape)}, must be [N, {self.image_channels}, r, r]")
        check_resolution("the images' resolution", resolution, self.resolution)
        x = self.from_rgb[str(resolution)](images)
        for r in reversed(resolutions(resolution)[1:]):
            x = self._block(x, r)
            if r == resolution and blends(alpha):
                old = self.from_rgb[str(r // 2)](ops.downsample2x(images))
                x = old + (x - old) * alpha
        return self._head(x)

    def _block(self, x: Tensor, r: int) -> Tensor:
        block = self.blocks[str(r)]
        x = block["down"](block["conv"](x))
        return x if self.fused_scale else ops.downsample2x(x)

    def _head(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features at 4x4 to scores and logits."""
        if "stddev" in self.head:
            x = self.head["stddev"](x)
        x = self.head["conv"](x)
        x = self.head["dense"](x.flatten(1))
        # Losses and penalties are taken of these few numbers: half precision would be most of their error.
        with torch.autocast(x.device.type, enabled=False):
            x = self.head["output"](x.to(torch.promote_types(x.dtype, torch.float32)))
        return x[:, 0], x[:, 1:] if self.label_dim else None

    def live_parameters(self, resolution: int, fading: bool) -> list[nn.Parameter]:
        """The parameters that scores of images at `resolution` depend on, with the old path if `fading`."""
        parameters = list(self.head.parameters())
        for r in resolutions(resolution):
            if r > 4:
                parameters += self.blocks[str(r)].parameters()
            if r == resolution or (fading and 2 * r == resolution):
                parameters += self.from_rgb[str(r)].parameters()
        return parameters
