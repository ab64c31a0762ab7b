"""Objectives: what the discriminator and the generator minimise.

An objective yields the discriminator's loss in terms, so that the step can differentiate each
and free its graph before the next is built.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Scored = tuple[Tensor, Tensor | None]  # scores [N], class logits [N, label_dim] or None
Stats = dict[str, Tensor]


class Critic(Protocol):
    """The discriminator as an objective sees it: alpha and precision are settled."""

    def __call__(self, images: Tensor, labels: Tensor | None) -> Scored: ...

    def pair(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Scored, Scored]:
        """Both batches scored, as two calls would."""


class WganGp:
    """WGAN-GP with drift (paper, appendix A.1), and AC-GAN's cross-entropy where there are labels (the official code).

    D: mean(fake) - mean(real) + 10 mean((|gradient| - target)^2) / target^2 + 0.001 mean(real^2);
    G: -mean(fake). The gradient is the score's with respect to random mixtures of reals and fakes.
    The CIFAR-10 record used a target of 750.
    """

    def __init__(
        self,
        penalty_weight: float = 10.0,
        penalty_target: float = 1.0,
        drift_weight: float = 0.001,
        label_weight: float = 1.0,
    ):
        self.penalty_weight, self.penalty_target = penalty_weight, penalty_target
        self.drift_weight, self.label_weight = drift_weight, label_weight

    def discriminator_terms(
        self, critic: Critic, real: Tensor, fake: Tensor, labels: Tensor | None, mixing: Tensor, stats: Stats
    ) -> Iterator[Tensor]:
        """Yields two terms whose sum is D's loss; `mixing` [N, 1, 1, 1] is uniform in 0..1."""
        yield self._penalty(critic, real, fake, labels, mixing, stats)
        (real_scores, real_logits), (fake_scores, fake_logits) = critic.pair(real, fake, labels)
        stats["real_score"], stats["fake_score"] = real_scores.detach().mean(), fake_scores.detach().mean()
        loss = fake_scores.mean() - real_scores.mean() + self.drift_weight * real_scores.square().mean()
        yield loss + self._label_loss(real_logits, labels) + self._label_loss(fake_logits, labels)

    def generator_loss(self, critic: Critic, fake: Tensor, labels: Tensor | None) -> Tensor:
        scores, logits = critic(fake, labels)
        return self._label_loss(logits, labels) - scores.mean()

    def _penalty(self, critic, real, fake, labels, mixing, stats) -> Tensor:
        mixed = torch.lerp(real, fake, mixing).requires_grad_()
        scores, _ = critic(mixed, labels)
        (gradient,) = torch.autograd.grad(scores.sum(), mixed, create_graph=True)
        norms = gradient.float().square().sum(dim=(1, 2, 3)).sqrt()
        stats["gradient_norm"] = norms.detach().mean()
        return self.penalty_weight / self.penalty_target**2 * (norms - self.penalty_target).square().mean()

    def _label_loss(self, logits: Tensor | None, labels: Tensor | None) -> Tensor | float:
        if logits is None:
            return 0.0
        target = labels.to(logits.dtype) if labels.ndim == 2 else labels
        return self.label_weight * F.cross_entropy(logits, target)


OBJECTIVES = {"wgan-gp": WganGp}
