"""WGAN-GP on a critic whose loss can be written down."""

import pytest
import torch
import torch.nn.functional as F

from pggan_fast.training.losses import WganGp

WEIGHT = torch.tensor([0.3, -1.2, 0.5]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4) / 4


class Linear:
    """scores = <weight, image>: their gradient is the weight everywhere. Logits double the image's means."""

    def __init__(self, labels: bool = False):
        self.labels = labels

    def __call__(self, images, labels):
        scores = (images * WEIGHT).sum(dim=(1, 2, 3))
        return scores, 2 * images.mean(dim=(2, 3)) if self.labels else None

    def pair(self, real, fake, labels):
        return self(real, labels), self(fake, labels)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(5, 3, 4, 4, generator=generator) for _ in range(2))
    return real, fake, torch.rand(5, 1, 1, 1, generator=generator)


def scores_of(images):
    return torch.stack([torch.dot(WEIGHT.flatten(), image.flatten()) for image in images])


@pytest.mark.parametrize("target", [1.0, 750.0])
def test_discriminator(batch, target):
    real, fake, mixing = batch
    stats = {}
    terms = list(WganGp(penalty_target=target).discriminator_terms(Linear(), real, fake, None, mixing, stats))
    reals, fakes = scores_of(real), scores_of(fake)
    penalty = 10 * (WEIGHT.norm() - target) ** 2 / target**2
    expected = fakes.mean() - reals.mean() + penalty + 0.001 * (reals**2).mean()
    # fp32 sums of a few dozen terms of order one
    torch.testing.assert_close(sum(terms), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(stats["gradient_norm"], WEIGHT.norm(), rtol=1e-5, atol=0)
    torch.testing.assert_close(stats["real_score"] - stats["fake_score"], reals.mean() - fakes.mean())


def test_drift_counts_real_scores_alone(batch):
    real, fake, mixing = batch
    with_drift, without = (
        sum(WganGp(drift_weight=weight).discriminator_terms(Linear(), real * 100, fake, None, mixing, {}))
        for weight in (0.001, 0.0)
    )
    torch.testing.assert_close(with_drift - without, 0.001 * (scores_of(real * 100) ** 2).mean(), rtol=1e-4, atol=0)


def test_generator(batch):
    _, fake, _ = batch
    torch.testing.assert_close(WganGp().generator_loss(Linear(), fake, None), -scores_of(fake).mean())


@pytest.mark.parametrize("one_hot", [False, True])
def test_labels_add_cross_entropy_of_reals_and_fakes(batch, one_hot):
    real, fake, mixing = batch
    indices = torch.tensor([0, 2, 1, 1, 0])
    labels = F.one_hot(indices, 3) if one_hot else indices
    terms = [
        sum(WganGp().discriminator_terms(Linear(with_labels), real, fake, labels, mixing, {}))
        for with_labels in (True, False)
    ]
    entropies = [-F.log_softmax(2 * x.mean(dim=(2, 3)), 1)[range(5), indices].mean() for x in (real, fake)]
    torch.testing.assert_close(terms[0] - terms[1], sum(entropies), rtol=1e-4, atol=1e-5)
    generator = [WganGp().generator_loss(Linear(with_labels), fake, labels) for with_labels in (True, False)]
    torch.testing.assert_close(generator[0] - generator[1], entropies[1], rtol=1e-4, atol=1e-5)
