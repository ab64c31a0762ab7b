"""Penalties on the discriminator's gradients in its images, and how the discriminator is called for them."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Scored = tuple[Tensor, Tensor | None]  # scores [N], class logits [N, label_dim] or None
Stats = dict[str, Tensor]
Augmented = Callable[[Tensor], Tensor]  # images [N, C, H, W] -> augmented ones
Weight = float | Tensor  # of a term; a 0-d fp32 tensor on the device where a captured step reads it


class Critic(Protocol):
    """The discriminator as an objective calls it; `BoundDiscriminator` binds alpha and precision."""

    def __call__(self, images: Tensor, labels: Tensor | None) -> Scored: ...

    def gradient(
        self, images: Tensor, labels: Tensor | None, augment: Augmented | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return scores [N] and the gradient of their sum in the images [N, C, H, W], fp32 and differentiable.

        With `augment` the scores are those of the augmented images, and the gradient goes through it.
        """

    def pair(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Scored, Scored]:
        """Score both batches, as two calls would."""

    def pair_gradient(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, augment: tuple[Augmented, Augmented] | None = None
    ) -> tuple[tuple[Scored, Scored], tuple[Tensor, Tensor]]:
        """Score both batches as `pair` does, and return the gradients of the scores in the images of each."""


def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    labels: Tensor | None,
    interpolation: Tensor,
    target: float,
    stats: Stats,
    augment: Augmented | None = None,
) -> Tensor:
    """mean((|gradient| - target)^2) / target^2 between reals and fakes (Gulrajani et al. 2017).

    Images [N, C, H, W], interpolation weights [N, 1, 1, 1] of the fakes. stats gets "gradient_norm", the mean norm.
    """
    images = torch.lerp(real, fake, interpolation)
    _, gradient = critic.gradient(images, labels) if augment is None else critic.gradient(images, labels, augment)
    norms = gradient.square().sum(dim=(1, 2, 3)).sqrt()
    stats["gradient_norm"] = norms.detach().mean()
    return (norms - target).square().mean() / target**2


def zero_centered_penalty(gradient: Tensor, name: str, stats: Stats) -> Tensor:
    """mean(|gradient|^2) / 2 of a gradient [N, C, H, W]. stats gets the mean norm under `name`.

    At reals it is R1, at fakes R2 (Mescheder et al. 2018, section 4.1).
    """
    squares = gradient.square().sum(dim=(1, 2, 3))
    stats[name] = squares.detach().sqrt().mean()
    return squares.mean() / 2


def applies(weight: Weight) -> bool:
    """Return whether a term is there at all: a tensor's value is not for the host to read."""
    return isinstance(weight, Tensor) or weight != 0
