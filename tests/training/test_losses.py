"""Objectives and penalties on a critic whose loss can be written down, and f-GAN's against their divergences."""

import math

import pytest
import torch
import torch.nn.functional as F

from pggan_fast.training.losses import OBJECTIVES, Wgan, WganGp

WEIGHT = torch.tensor([0.3, -1.2, 0.5]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4) / 4
ALL = pytest.mark.parametrize("name", OBJECTIVES)


class Linear:
    """scores = <weight, image>: their gradient is the weight everywhere. Logits double the image's means."""

    def __init__(self, labels: bool = False):
        self.labels = labels

    def __call__(self, images, labels):
        scores = (images * WEIGHT).sum(dim=(1, 2, 3))
        return scores, 2 * images.mean(dim=(2, 3)) if self.labels else None

    def gradient(self, images, labels):
        images = images.detach().requires_grad_()
        scores, _ = self(images, labels)
        (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
        return scores, gradient

    def pair(self, real, fake, labels):
        return self(real, labels), self(fake, labels)

    def pair_gradient(self, real, fake, labels, augment=None):
        assert augment is None
        (_, of_real), (_, of_fake) = self.gradient(real, labels), self.gradient(fake, labels)
        return self.pair(real, fake, labels), (of_real, of_fake)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(5, 3, 4, 4, generator=generator) for _ in range(2))
    return real, fake, torch.rand(5, 1, 1, 1, generator=generator)


def scores_of(images):
    return torch.stack([torch.dot(WEIGHT.flatten(), image.flatten()) for image in images])


def d_loss(objective, batch, *, critic=None, labels=None, stats=None):
    real, fake, interpolation = batch
    critic, stats = critic or Linear(), {} if stats is None else stats
    return sum(objective.discriminator_terms(critic, real, fake, labels, interpolation, stats))


# WGAN-GP and what every objective takes


@pytest.mark.parametrize("target", [1.0, 750.0])
def test_wgan_gp(batch, target):
    stats = {}
    loss = d_loss(WganGp(penalty_target=target), batch, stats=stats)
    reals, fakes = scores_of(batch[0]), scores_of(batch[1])
    penalty = 10 * (WEIGHT.norm() - target) ** 2 / target**2
    expected = fakes.mean() - reals.mean() + penalty + 0.001 * (reals**2).mean()
    # fp32 sums of a few dozen terms of order one
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats["gradient_norm"], WEIGHT.norm(), rtol=1e-5, atol=0)
    torch.testing.assert_close(stats["real_score"] - stats["fake_score"], reals.mean() - fakes.mean())
    torch.testing.assert_close(WganGp().generator_loss(Linear(), batch[1], None), -fakes.mean())


def test_penalty_at_full_resolution_is_that_of_enlarged_images(batch):
    """The penalty is taken as the official code takes it: D sees 2x2 means of the images whose gradient is meant."""
    real, fake, interpolation = batch

    class OfEnlarged(Linear):
        def __call__(self, images, labels):
            return super().__call__(F.avg_pool2d(images, 4), labels)

    enlarged = [F.interpolate(images, scale_factor=4.0, mode="nearest") for images in (real, fake)]
    official = d_loss(WganGp(), (*enlarged, interpolation), critic=OfEnlarged())
    torch.testing.assert_close(d_loss(WganGp(full_resolution=16), batch), official)
    assert not torch.allclose(d_loss(WganGp(), batch), official)


@ALL
def test_penalties_and_drift_go_with_any_objective(batch, name):
    def loss(**options):
        return d_loss(OBJECTIVES[name](**{"penalty_weight": 0, "drift_weight": 0} | options), batch, stats=stats)

    stats = {}
    plain = loss()
    assert stats.keys() == {"real_score", "fake_score"}
    norm = WEIGHT.norm()
    tolerance = dict(rtol=1e-4, atol=1e-5)  # differences of sums of order ten
    torch.testing.assert_close(loss(penalty_weight=3.0) - plain, 3 * (norm - 1) ** 2, **tolerance)
    torch.testing.assert_close(loss(r1_weight=5.0) - plain, 5 * norm**2 / 2, **tolerance)
    torch.testing.assert_close(stats["real_gradient_norm"], norm)
    torch.testing.assert_close(loss(r2_weight=4.0) - plain, 4 * norm**2 / 2, **tolerance)
    torch.testing.assert_close(loss(r1_weight=5.0, r2_weight=4.0) - plain, 9 * norm**2 / 2, **tolerance)
    torch.testing.assert_close(stats["fake_gradient_norm"], norm)
    torch.testing.assert_close(loss(drift_weight=0.1) - plain, 0.1 * (scores_of(batch[0]) ** 2).mean(), **tolerance)


@ALL
@pytest.mark.parametrize("one_hot", [False, True])
def test_labels_add_cross_entropy_of_reals_and_fakes(batch, name, one_hot):
    indices = torch.tensor([0, 2, 1, 1, 0])
    labels = F.one_hot(indices, 3) if one_hot else indices
    with_labels, without = (d_loss(OBJECTIVES[name](), batch, critic=Linear(on), labels=labels) for on in (True, False))
    entropies = [-F.log_softmax(2 * x.mean(dim=(2, 3)), 1)[range(5), indices].mean() for x in batch[:2]]
    torch.testing.assert_close(with_labels - without, sum(entropies), rtol=1e-4, atol=1e-5)
    generator = [OBJECTIVES[name]().generator_loss(Linear(on), batch[1], labels, batch[0]) for on in (True, False)]
    torch.testing.assert_close(generator[0] - generator[1], entropies[1], rtol=1e-4, atol=1e-5)


def test_overfitting_is_the_share_of_reals_beyond_the_middle(batch):
    objective, stats = WganGp(), {}
    objective.reports_overfitting = True
    d_loss(objective, batch, stats=stats)
    middle = (scores_of(batch[0]).mean() + scores_of(batch[1]).mean()) / 2
    above = sum((score > middle).item() for score in scores_of(batch[0]))
    torch.testing.assert_close(stats["overfitting"].item(), (2 * above - 5) / 5)


# Losses as functions of scores

REAL, FAKE = torch.tensor([2.0, -0.5, 0.3, 1.5]), torch.tensor([-1.5, 0.2, -3.0, 1.2])
ONES, ZEROS = torch.ones(4), torch.zeros(4)
BCE = F.binary_cross_entropy_with_logits
EXPECTED = {
    "wgan-gp": (-(REAL - FAKE).mean(), -FAKE.mean()),
    "wgan": (-(REAL - FAKE).mean(), -FAKE.mean()),
    "lsgan": ((F.mse_loss(REAL, ONES) + F.mse_loss(FAKE, ZEROS)) / 2, F.mse_loss(FAKE, ONES) / 2),
    "minimax": (BCE(REAL, ONES) + BCE(FAKE, ZEROS), -BCE(FAKE, ZEROS)),
    "non-saturating": (BCE(REAL, ONES) + BCE(FAKE, ZEROS), BCE(FAKE, ONES)),
    # torch's hinge loss is by pairs of a label and a score: max(0, -label * (a - b) + margin).
    "hinge": (
        F.margin_ranking_loss(REAL, ZEROS, ONES, margin=1.0) + F.margin_ranking_loss(FAKE, ZEROS, -ONES, margin=1.0),
        -FAKE.mean(),
    ),
    # With s the sigmoid: -log s(real - fake) for D, -log s(fake - real) for G, by pairs.
    "relativistic": (BCE(REAL - FAKE, ONES), BCE(FAKE - REAL, ONES)),
    "ebgan": (-REAL.mean() + F.margin_ranking_loss(-FAKE, ZEROS, ONES, margin=0.3), -FAKE.mean()),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_losses(name):
    objective = OBJECTIVES[name]()
    torch.testing.assert_close(objective.d_loss(REAL, FAKE), EXPECTED[name][0])
    torch.testing.assert_close(objective.g_loss(FAKE, REAL), EXPECTED[name][1])


@ALL
def test_g_wants_higher_scores_and_d_tells_them_apart(name):
    """The gradients' signs, at scores between the values that any objective aims at."""
    real, fake = (torch.tensor([0.1, 0.4, 0.25], requires_grad=True) for _ in range(2))
    objective = OBJECTIVES[name]()
    (gradient,) = torch.autograd.grad(objective.g_loss(fake, real), fake)
    assert (gradient < 0).all()
    real_gradient, fake_gradient = torch.autograd.grad(objective.d_loss(real, fake), (real, fake))
    assert (real_gradient < 0).all() and (fake_gradient > 0).all()


P, Q = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.1, 0.2, 0.3, 0.4])
RATIO = (P / Q).log()
JENSEN_SHANNON = (
    F.kl_div(((P + Q) / 2).log(), P, reduction="sum") + F.kl_div(((P + Q) / 2).log(), Q, reduction="sum")
) / 2
DIVERGENCES = {
    # the best scores for real ~ P and fake ~ Q, and what -d_loss then is
    "kl": (1 + RATIO, F.kl_div(Q.log(), P, reduction="sum")),
    "reverse-kl": (RATIO, F.kl_div(P.log(), Q, reduction="sum")),
    "pearson": (2 * (P / Q - 1), ((P - Q) ** 2 / Q).sum()),
    "minimax": (RATIO, 2 * JENSEN_SHANNON - math.log(4)),
    "non-saturating": (RATIO, 2 * JENSEN_SHANNON - math.log(4)),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_best_discriminator_finds_the_divergence(name):
    """Return samples of two distributions over four images, drawn 20 times in proportion."""
    best, divergence = DIVERGENCES[name]
    real, fake = (best.repeat_interleave((20 * p).round().long()) for p in (P, Q))
    objective = OBJECTIVES[name]()
    found = -objective.d_loss(real, fake)
    torch.testing.assert_close(found, divergence)
    for other in (best + 0.1, best * 0.9, best.roll(1)):
        real, fake = (other.repeat_interleave((20 * p).round().long()) for p in (P, Q))
        assert -objective.d_loss(real, fake) < found


def test_weights_are_clipped():
    D = torch.nn.Linear(30, 30)
    inside = D.weight.detach().clone().clamp(-0.1, 0.1)
    Wgan(clip=0.1).constrain(D)
    assert torch.equal(D.weight, inside) and D.weight.abs().max() == 0.1
    WganGp().constrain(D)
    assert torch.equal(D.weight, inside)
