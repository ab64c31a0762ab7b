"""The base of every generator and discriminator: how training, files and commands know them."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from pggan_fast.networks.hub import HubMethods
from pggan_fast.networks.options import NetworkOptions


class Network(nn.Module):
    """A network that can be built again from its `options`.

    `config` are the options with which it was built, `options` the same as JSON has them.
    `activation_checkpointing`, set by TrainStep, computes each block again in the backward passes.
    """

    Options: ClassVar[type[NetworkOptions]]
    grows: ClassVar[bool] = True  # whether it runs below its resolution, and fades layers in
    activation_checkpointing = False

    def __init__(self, resolution: int = 1024, **options: Any):
        super().__init__()
        self.config = self.Options(resolution, **options)
        self.options = self.config.to_dict()
        self.resolution, self.base = self.config.resolution, self.config.base
        self.image_channels, self.label_dim = self.config.image_channels, self.config.label_dim

    def active_parameters(self, resolution: int, fading: bool) -> list[nn.Parameter]:
        """Return the parameters that work at `resolution` depends on, with the old path if `fading`."""
        raise NotImplementedError


class BaseGenerator(HubMethods, Network):
    """`forward(z [N, latent_dim], labels=None, *, resolution=None, alpha=1.0) -> images [N, image_channels, r, r]`."""

    def __init__(self, resolution: int = 1024, **options: Any):
        super().__init__(resolution, **options)
        self.latent_dim: int = self.config.latent_dim


class BaseDiscriminator(Network):
    """`forward(images, labels=None, *, alpha=1.0) -> (scores [N], logits [N, label_dim] or None)`."""

    mbstd_group_size = 1  # samples whose scores depend on each other
    sees_minibatch = False  # beyond groups: a score depends on all of the batch
