"""A discriminator that is an autoencoder, for energy-based GANs (Zhao et al., ICLR 2017)."""

from typing import Any

from torch import Tensor, nn

from pggan_fast.layers import EqualizedLinear, unscale_weights
from pggan_fast.networks.discriminator import Discriminator
from pggan_fast.networks.generator import Generator
from pggan_fast.networks.options import AutoencoderOptions, DiscriminatorOptions, chosen, takes


@takes(AutoencoderOptions)
class AutoencoderDiscriminator(Discriminator):
    """Scores images by how well it rebuilds them: the score is minus the mean squared error, so never above 0.

    The encoder is `Discriminator`'s network with a code of `code_dim` numbers in place of the score (default: channels
    at 4 px), the decoder a `Generator` without normalization. Both grow with the images. There are no labels and no
    statistics of the minibatch: a score is of one image.

    `forward(images [N, image_channels, r, r], labels=None, *, alpha=1.0) -> (scores [N], None)`.
    """

    def __init__(self, resolution: int = 1024, **options: Any):
        super().__init__(resolution, **options)
        config: AutoencoderOptions = self.config
        self.head["output"] = EqualizedLinear(config.channels(2), config.code_dim, gain=1.0)
        if not config.use_wscale:
            unscale_weights(self.head["output"])
        shared = chosen(Generator.Options, self.options)
        self.decoder = Generator(latent_dim=config.code_dim, pixel_norm=False, normalize_latents=False, **shared)

    def _build(self, config: AutoencoderOptions) -> None:
        super()._build(DiscriminatorOptions(mbstd_group_size=1, **chosen(DiscriminatorOptions, config.to_dict())))

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, alpha: float | Tensor = 1.0
    ) -> tuple[Tensor, None]:
        codes = self.head["output"](self._features(self._blocks(images, alpha), None))
        rebuilt = self.decoder(codes, resolution=min(images.shape[-2:]), alpha=alpha)
        return -(rebuilt.to(images.dtype) - images).square().mean(dim=(1, 2, 3)), None

    def active_parameters(self, resolution: int, fading: bool) -> list[nn.Parameter]:
        """Return the parameters that scores of images at `resolution` depend on, with the old path if `fading`."""
        return super().active_parameters(resolution, fading) + self.decoder.active_parameters(resolution, fading)
