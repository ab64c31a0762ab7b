"""Objectives: what the discriminator and the generator minimise.

Each is a class with the two losses as functions of scores, `d_loss(real, fake)` and `g_loss(fake)`, or
`g_loss(fake, real)` where G's loss compares with reals, all means over a batch; high scores mean "real" throughout.
`Objective` adds what any of them can be combined with: penalties, drift and AC-GAN's cross-entropy. It yields each
network's loss in terms, so that the step can differentiate each and free its graph before the next is built.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pggan_fast.training.penalties import (
    Augmented,
    Critic,
    Scored,
    Stats,
    Weight,
    applies,
    gradient_penalty,
    zero_centered_penalty,
)


class Objective(ABC):
    """Base of all objectives.

    Args:
        penalty_weight: of `gradient_penalty`; None is the objective's own default, 10 for wgan-gp and 0 elsewhere.
        penalty_target: gradient norm that the penalty pulls to.
        full_resolution: None takes the penalty's gradient with respect to the images as they are; a resolution takes
            it with respect to images enlarged to that, as the official code does: the target at r px is then
            `penalty_target * full_resolution / r`.
        r1_weight, r2_weight: of `zero_centered_penalty` at the reals and at the fakes; a 0-d tensor may change.
        drift_weight: of mean(real scores^2); None is the default, 0.001 for wgan-gp and 0 elsewhere.
        label_weight: of the cross-entropy of class logits, on reals and fakes for D and on fakes for G, where the
            discriminator returns logits (the official code).
        g_label_weight: the same for G alone; None is `label_weight`.
    """

    default_penalty_weight = 0.0
    default_drift_weight = 0.0
    compares = False  # whether G's loss needs the scores of reals
    reports_overfitting = False  # for augmentation that adapts to it

    def __init__(
        self,
        *,
        penalty_weight: float | None = None,
        penalty_target: float = 1.0,
        full_resolution: int | None = None,
        r1_weight: Weight = 0.0,
        r2_weight: Weight = 0.0,
        drift_weight: float | None = None,
        label_weight: float = 1.0,
        g_label_weight: float | None = None,
    ):
        self.penalty_weight = self.default_penalty_weight if penalty_weight is None else penalty_weight
        self.drift_weight = self.default_drift_weight if drift_weight is None else drift_weight
        self.penalty_target, self.full_resolution = penalty_target, full_resolution
        self.r1_weight, self.r2_weight = r1_weight, r2_weight
        self.label_weight = label_weight
        self.g_label_weight = label_weight if g_label_weight is None else g_label_weight

    @abstractmethod
    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return D's loss from scores [N] each."""

    def g_loss(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        """Return G's loss from scores [N]. Wasserstein's by default, which several objectives share.

        The scores of the reals are given where the class says that it `compares`.
        """
        return -fake.mean()

    def constrain(self, D: nn.Module) -> None:  # noqa: B027 - most objectives constrain nothing
        """Change D's weights after each of its updates."""

    @property
    def penalizes(self) -> bool:
        """Whether any of the penalties on gradients applies."""
        return any(applies(weight) for weight in (self.penalty_weight, self.r1_weight, self.r2_weight))

    def discriminator_terms(
        self,
        critic: Critic,
        real: Tensor,
        fake: Tensor,
        labels: Tensor | None,
        interpolation: Tensor,
        stats: Stats,
        augment: tuple[Augmented, Augmented] | None = None,
    ) -> Iterator[Tensor]:
        """Yield the terms whose sum is D's loss; interpolation weights [N, 1, 1, 1], uniform in 0..1.

        With `augment`, of reals and of fakes, the images are raw ones: D sees them augmented, and penalties are on
        gradients in the raw images.
        """
        if self.penalty_weight:
            yield self._gradient_penalty(critic, real, fake, labels, interpolation, stats, augment)
        if applies(self.r1_weight) and applies(self.r2_weight):
            # Both at once, and with the scores that the loss needs: one pass through D instead of three.
            scored, gradients = critic.pair_gradient(real, fake, labels, augment)
            yield self._r1_and_r2(gradients, stats) + self._score_loss(*scored, labels, stats)
            return
        yield from self._r1_or_r2(critic, real, fake, labels, stats, augment)
        yield from self.score_terms(critic, real, fake, labels, stats, augment)

    def penalty_terms(
        self,
        critic: Critic,
        real: Tensor,
        fake: Tensor,
        labels: Tensor | None,
        interpolation: Tensor,
        stats: Stats,
        augment: tuple[Augmented, Augmented] | None = None,
    ) -> Iterator[Tensor]:
        """Yield the penalties of `discriminator_terms` alone."""
        if self.penalty_weight:
            yield self._gradient_penalty(critic, real, fake, labels, interpolation, stats, augment)
        if applies(self.r1_weight) and applies(self.r2_weight):
            _, gradients = critic.pair_gradient(real, fake, labels, augment)
            yield self._r1_and_r2(gradients, stats)
        else:
            yield from self._r1_or_r2(critic, real, fake, labels, stats, augment)

    def score_terms(
        self,
        critic: Critic,
        real: Tensor,
        fake: Tensor,
        labels: Tensor | None,
        stats: Stats,
        augment: tuple[Augmented, Augmented] | None = None,
    ) -> Iterator[Tensor]:
        """Yield the terms of `discriminator_terms` that are no penalties."""
        if augment is not None:
            real, fake = (function(images) for function, images in zip(augment, (real, fake), strict=True))
        yield self._score_loss(*critic.pair(real, fake, labels), labels, stats)

    def generator_terms(
        self, critic: Critic, real: Tensor | None, fake: Tensor, labels: Tensor | None, stats: Stats
    ) -> Iterator[Tensor]:
        """Yield the terms whose sum is G's loss. The reals are scored where the objective `compares` alone."""
        real_scores = None
        if self.compares:
            with torch.no_grad():
                real_scores, _ = critic(real, labels)
        scores, logits = critic(fake, labels)
        loss = self.g_loss(scores) if real_scores is None else self.g_loss(scores, real_scores)
        yield self._label_loss(logits, labels, self.g_label_weight) + loss

    def generator_loss(self, critic: Critic, fake: Tensor, labels: Tensor | None, real: Tensor | None = None) -> Tensor:
        """Return the sum of `generator_terms`; the reals are needed where the objective `compares`."""
        return sum(self.generator_terms(critic, real, fake, labels, {}))

    def _gradient_penalty(self, critic, real, fake, labels, interpolation, stats, augment) -> Tensor:
        target = self.penalty_target
        if self.full_resolution is not None:
            target *= self.full_resolution / min(real.shape[-2:])
        # Between reals and fakes there is one augmentation to be had: that of the reals.
        of_real = None if augment is None else augment[0]
        penalty = gradient_penalty(critic, real, fake, labels, interpolation, target, stats, of_real)
        return self.penalty_weight * penalty

    def _r1_and_r2(self, gradients: tuple[Tensor, Tensor], stats: Stats) -> Tensor:
        r1 = zero_centered_penalty(gradients[0], "real_gradient_norm", stats)
        return self.r1_weight * r1 + self.r2_weight * zero_centered_penalty(gradients[1], "fake_gradient_norm", stats)

    def _r1_or_r2(self, critic, real, fake, labels, stats, augment) -> Iterator[Tensor]:
        sides = ((self.r1_weight, real, "real_gradient_norm"), (self.r2_weight, fake, "fake_gradient_norm"))
        for index, (weight, images, name) in enumerate(sides):
            if applies(weight):
                through = () if augment is None else (augment[index],)
                _, gradient = critic.gradient(images, labels, *through)
                yield weight * zero_centered_penalty(gradient, name, stats)

    def _score_loss(self, real: Scored, fake: Scored, labels: Tensor | None, stats: Stats) -> Tensor:
        (real_scores, real_logits), (fake_scores, fake_logits) = real, fake
        stats["real_score"], stats["fake_score"] = real_scores.detach().mean(), fake_scores.detach().mean()
        if self.reports_overfitting:
            # Scores of most objectives have no meaningful 0: the boundary is the middle between both means.
            boundary = (stats["real_score"] + stats["fake_score"]) / 2
            stats["overfitting"] = (real_scores.detach() - boundary).sign().mean()
        loss = self.d_loss(real_scores, fake_scores)
        if self.drift_weight:
            loss = loss + self.drift_weight * real_scores.square().mean()
        weight = self.label_weight
        return loss + self._label_loss(real_logits, labels, weight) + self._label_loss(fake_logits, labels, weight)

    @staticmethod
    def _label_loss(logits: Tensor | None, labels: Tensor | None, weight: float) -> Tensor | float:
        if logits is None:
            return 0.0
        target = labels.to(logits.dtype) if labels.ndim == 2 else labels
        return weight * F.cross_entropy(logits, target)


class WganGp(Objective):
    """WGAN-GP with drift (Gulrajani et al. 2017; PGGAN, appendix A.1), the paper's and the default.

    D: mean(fake) - mean(real), and penalty and drift by default; G: -mean(fake). The CIFAR-10 record used
    `penalty_target=750`.
    """

    default_penalty_weight = 10.0
    default_drift_weight = 0.001

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean()


class Wgan(Objective):
    """WGAN with clipped weights (Arjovsky et al. 2017). Losses of WGAN-GP, without its penalty and drift.

    After each update D's parameters are cut to -clip..clip. They are the stored ones, which start as N(0, 1) and are
    multiplied by the equalized constant afterwards: one bound fits every layer.
    """

    def __init__(self, *, clip: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.clip = clip

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean()

    @torch.no_grad()
    def constrain(self, D: nn.Module) -> None:
        for parameter in D.parameters():
            parameter.clamp_(-self.clip, self.clip)


class Lsgan(Objective):
    """Least squares (Mao et al. 2017). D: ((real - 1)^2 + fake^2) / 2; G: (fake - 1)^2 / 2."""

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return ((real - 1).square().mean() + fake.square().mean()) / 2

    def g_loss(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return (fake - 1).square().mean() / 2


class Minimax(Objective):
    """The original game (Goodfellow et al. 2014, equation 1), scores being logits s of D = sigmoid(s).

    D: -log D(real) - log(1 - D(fake)); G: log(1 - D(fake)).
    """

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def g_loss(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return -F.softplus(fake).mean()


class NonSaturating(Minimax):
    """D as in the minimax game; G: -log D(fake) (Goodfellow et al. 2014, section 3)."""

    def g_loss(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return F.softplus(-fake).mean()


class Hinge(Objective):
    """D: max(0, 1 - real) + max(0, 1 + fake); G: -fake (Lim and Ye 2017; Miyato et al. 2018)."""

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


class KullbackLeibler(Objective):
    """f-GAN for KL(real || fake) (Nowozin et al. 2016, tables 2 and 6): g(s) = s, f*(t) = exp(t - 1).

    D: mean f*(g(fake)) - mean g(real); G: -mean g(fake), the form that their section 3.2 trains with.
    """

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return (fake - 1).exp().mean() - real.mean()


class ReverseKullbackLeibler(Objective):
    """f-GAN for KL(fake || real): g(s) = -exp(-s), f*(t) = -1 - log(-t); losses as for KL.

    So D: mean(fake) - 1 + mean exp(-real); G: mean exp(-fake).
    """

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - 1 + real.neg().exp().mean()

    def g_loss(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return fake.neg().exp().mean()


class Pearson(Objective):
    """f-GAN for Pearson's chi^2: g(s) = s, f*(t) = t^2 / 4 + t; losses as for KL."""

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return (fake.square() / 4 + fake).mean() - real.mean()


class Relativistic(Objective):
    """Pairs of a real and a fake score (RpGAN: Jolicoeur-Martineau 2018; Huang et al. 2024, equation 2).

    With s = softplus, D: mean s(fake - real); G: mean s(real - fake), over the pairs of a batch: the first real with
    the first fake, and so on. R3GAN adds R1 and R2 of one weight.
    """

    compares = True

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(fake - real).mean()

    def g_loss(self, fake: Tensor, real: Tensor | None = None) -> Tensor:
        return F.softplus(real - fake).mean()


class Ebgan(Objective):
    """Energy-based GAN (Zhao et al. 2017), the energy E being minus the score of `AutoencoderDiscriminator`.

    D: E(real) + max(0, margin - E(fake)); G: E(fake). The margin is in units of the mean squared error of a pixel, of
    images in -1..1.
    """

    def __init__(self, *, margin: float = 0.3, **options: Any) -> None:
        super().__init__(**options)
        self.margin = margin

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return -real.mean() + F.relu(self.margin + fake).mean()


OBJECTIVES: dict[str, type[Objective]] = {
    "wgan-gp": WganGp,
    "wgan": Wgan,
    "lsgan": Lsgan,
    "non-saturating": NonSaturating,
    "minimax": Minimax,
    "hinge": Hinge,
    "kl": KullbackLeibler,
    "reverse-kl": ReverseKullbackLeibler,
    "pearson": Pearson,
    "ebgan": Ebgan,
    "relativistic": Relativistic,
}
