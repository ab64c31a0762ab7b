"""Objectives: what the discriminator and the generator minimise.

Each is a class with the two losses as functions of scores, `d_loss(real, fake)` and `g_loss(fake)`, all means over a
batch; high scores mean "real" throughout. `Objective` adds what any of them can be combined with: penalties, drift and
AC-GAN's cross-entropy. It yields the discriminator's loss in terms, so that the step can differentiate each and free
its graph before the next is built.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Scored = tuple[Tensor, Tensor | None]  # scores [N], class logits [N, label_dim] or None
Stats = dict[str, Tensor]


class Critic(Protocol):
    """The discriminator as an objective calls it; `BoundDiscriminator` binds alpha and precision."""

    def __call__(self, images: Tensor, labels: Tensor | None) -> Scored: ...

    def gradient(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return scores [N] and the gradient of their sum in the images [N, C, H, W], fp32 and differentiable."""

    def pair(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Scored, Scored]:
        """Score both batches, as two calls would."""


def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    labels: Tensor | None,
    interpolation: Tensor,
    target: float,
    stats: Stats,
) -> Tensor:
    """mean((|gradient| - target)^2) / target^2 between reals and fakes (Gulrajani et al. 2017).

    Images [N, C, H, W], interpolation weights [N, 1, 1, 1] of the fakes. stats gets "gradient_norm", the mean norm.
    """
    _, gradient = critic.gradient(torch.lerp(real, fake, interpolation), labels)
    norms = gradient.square().sum(dim=(1, 2, 3)).sqrt()
    stats["gradient_norm"] = norms.detach().mean()
    return (norms - target).square().mean() / target**2


def r1_penalty(critic: Critic, real: Tensor, labels: Tensor | None, stats: Stats) -> Tensor:
    """mean(|gradient|^2) / 2 at the reals (Mescheder et al. 2018). stats gets "real_gradient_norm"."""
    _, gradient = critic.gradient(real, labels)
    squares = gradient.square().sum(dim=(1, 2, 3))
    stats["real_gradient_norm"] = squares.detach().sqrt().mean()
    return squares.mean() / 2


class Objective(ABC):
    """Base of all objectives.

    Args:
        penalty_weight: of `gradient_penalty`; None is the objective's own default, 10 for wgan-gp and 0 elsewhere.
        penalty_target: gradient norm that the penalty pulls to.
        full_resolution: None takes the penalty's gradient with respect to the images as they are; a resolution takes
            it with respect to images enlarged to that, as the official code does: the target at r px is then
            `penalty_target * full_resolution / r`.
        r1_weight: of `r1_penalty`.
        drift_weight: of mean(real scores^2); None is the default, 0.001 for wgan-gp and 0 elsewhere.
        label_weight: of the cross-entropy of class logits, on reals and fakes for D and on fakes for G, where the
            discriminator returns logits (the official code).
    """

    default_penalty_weight = 0.0
    default_drift_weight = 0.0
    reports_overfitting = False  # for augmentation that adapts to it

    def __init__(
        self,
        *,
        penalty_weight: float | None = None,
        penalty_target: float = 1.0,
        full_resolution: int | None = None,
        r1_weight: float = 0.0,
        drift_weight: float | None = None,
        label_weight: float = 1.0,
    ):
        self.penalty_weight = self.default_penalty_weight if penalty_weight is None else penalty_weight
        self.drift_weight = self.default_drift_weight if drift_weight is None else drift_weight
        self.penalty_target, self.full_resolution = penalty_target, full_resolution
        self.r1_weight, self.label_weight = r1_weight, label_weight

    @abstractmethod
    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return D's loss from scores [N] each."""

    def g_loss(self, fake: Tensor) -> Tensor:
        """Return G's loss from scores [N]. Wasserstein's by default, which several objectives share."""
        return -fake.mean()

    def constrain(self, D: nn.Module) -> None:  # noqa: B027 - most objectives constrain nothing
        """Change D's weights after each of its updates."""

    def discriminator_terms(
        self, critic: Critic, real: Tensor, fake: Tensor, labels: Tensor | None, interpolation: Tensor, stats: Stats
    ) -> Iterator[Tensor]:
        """Yield the terms whose sum is D's loss; interpolation weights [N, 1, 1, 1], uniform in 0..1."""
        if self.penalty_weight:
            target = self.penalty_target
            if self.full_resolution is not None:
                target *= self.full_resolution / min(real.shape[-2:])
            yield self.penalty_weight * gradient_penalty(critic, real, fake, labels, interpolation, target, stats)
        if self.r1_weight:
            yield self.r1_weight * r1_penalty(critic, real, labels, stats)
        (real_scores, real_logits), (fake_scores, fake_logits) = critic.pair(real, fake, labels)
        stats["real_score"], stats["fake_score"] = real_scores.detach().mean(), fake_scores.detach().mean()
        if self.reports_overfitting:
            # Scores of most objectives have no meaningful 0: the boundary is the middle between both means.
            boundary = (stats["real_score"] + stats["fake_score"]) / 2
            stats["overfitting"] = (real_scores.detach() - boundary).sign().mean()
        loss = self.d_loss(real_scores, fake_scores)
        if self.drift_weight:
            loss = loss + self.drift_weight * real_scores.square().mean()
        yield loss + self._label_loss(real_logits, labels) + self._label_loss(fake_logits, labels)

    def generator_loss(self, critic: Critic, fake: Tensor, labels: Tensor | None) -> Tensor:
        scores, logits = critic(fake, labels)
        return self._label_loss(logits, labels) + self.g_loss(scores)

    def _label_loss(self, logits: Tensor | None, labels: Tensor | None) -> Tensor | float:
        if logits is None:
            return 0.0
        target = labels.to(logits.dtype) if labels.ndim == 2 else labels
        return self.label_weight * F.cross_entropy(logits, target)


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

    def __init__(self, *, clip: float = 0.5, **options):
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

    def g_loss(self, fake: Tensor) -> Tensor:
        return (fake - 1).square().mean() / 2


class Minimax(Objective):
    """The original game (Goodfellow et al. 2014, equation 1), scores being logits s of D = sigmoid(s).

    D: -log D(real) - log(1 - D(fake)); G: log(1 - D(fake)).
    """

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-real).mean() + F.softplus(fake).mean()

    def g_loss(self, fake: Tensor) -> Tensor:
        return -F.softplus(fake).mean()


class NonSaturating(Minimax):
    """D as in the minimax game; G: -log D(fake) (Goodfellow et al. 2014, section 3)."""

    def g_loss(self, fake: Tensor) -> Tensor:
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

    def g_loss(self, fake: Tensor) -> Tensor:
        return fake.neg().exp().mean()


class Pearson(Objective):
    """f-GAN for Pearson's chi^2: g(s) = s, f*(t) = t^2 / 4 + t; losses as for KL."""

    def d_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        return (fake.square() / 4 + fake).mean() - real.mean()


class Ebgan(Objective):
    """Energy-based GAN (Zhao et al. 2017), the energy E being minus the score of `AutoencoderDiscriminator`.

    D: E(real) + max(0, margin - E(fake)); G: E(fake). The margin is in units of the mean squared error of a pixel, of
    images in -1..1.
    """

    def __init__(self, *, margin: float = 0.3, **options):
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
}
