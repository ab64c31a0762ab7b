"""One training step in plain PyTorch, float64: the losses and penalties of the modern recipe, as their papers say them.

Networks are the baseline's (bench/baseline/eager.py); nothing here is of pggan_fast.
"""

import torch
import torch.nn.functional as F


def losses(name, real, fake):
    """D's and G's loss from scores [N] each."""
    if name == "relativistic":  # Huang et al. 2024, equation 2
        return F.softplus(-(real - fake)).mean(), F.softplus(-(fake - real)).mean()
    if name == "non-saturating":  # Goodfellow et al. 2014, section 3
        return (F.softplus(-real) + F.softplus(fake)).mean(), F.softplus(-fake).mean()
    if name == "wgan-gp":
        return fake.mean() - real.mean() + 0.001 * real.square().mean(), -fake.mean()
    raise KeyError(name)


def zero_centered(D, images, alpha, augment):
    """mean(|gradient|^2) / 2 in the images before `augment` (Mescheder et al. 2018)."""
    images = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(D(augment(images), alpha).sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / 2


def one_centered(D, real, fake, mix, alpha, augment):
    """mean((|gradient| - 1)^2) between reals and fakes (Gulrajani et al. 2017)."""
    mixed = (real + (fake - real) * mix).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(D(augment(mixed), alpha).sum(), mixed, create_graph=True)
    return (gradient.square().sum(dim=(1, 2, 3)).sqrt() - 1).square().mean()


class Adam:
    """Kingma and Ba 2015, algorithm 1; `uncorrected` is the form at the end of its section 2."""

    def __init__(self, parameters, lr, betas, eps, uncorrected=False):
        self.parameters, self.lr, self.betas, self.eps, self.uncorrected = list(parameters), lr, betas, eps, uncorrected
        self.state = {}

    def step(self, gradients):
        b1, b2 = self.betas
        for p, g in zip(self.parameters, gradients, strict=True):
            if g is None:
                continue
            m, v, t = self.state.get(p, (torch.zeros_like(p), torch.zeros_like(p), 0))
            m, v, t = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g, t + 1
            self.state[p] = m, v, t
            with torch.no_grad():
                if self.uncorrected:
                    p -= self.lr * (1 - b2**t) ** 0.5 / (1 - b1**t) * m / (v.sqrt() + self.eps)
                else:
                    p -= self.lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + self.eps)


class Step:
    """D, average, G: `__call__` returns D's and G's loss and the penalty's, the gradients kept in `gradients`."""

    def __init__(
        self,
        G,
        D,
        *,
        objective,
        r1=0.0,
        r2=0.0,
        gp=0.0,
        lr=1e-3,
        betas=(0.0, 0.99),
        eps=1e-8,
        every=1,
        raw=False,
        uncorrected=False,
    ):
        self.G, self.D, self.objective = G, D, objective
        self.r1, self.r2, self.gp, self.every, self.raw = r1, r2, gp, every, raw
        share = every / (every + 1) if every > 1 else 1.0
        d_betas = tuple(beta**share for beta in betas)
        self.adam_G = Adam(G.parameters(), lr, betas, eps, uncorrected)
        self.adam_D = Adam(D.parameters(), lr * share, d_betas, eps, uncorrected)
        self.count, self.gradients = 0, []

    def penalty(self, real, fake, mix, alpha, augments):
        if not self.raw:
            real, fake = augments[0](real), augments[1](fake)
            augments = (lambda images: images,) * 2
        total = torch.zeros((), dtype=torch.float64)
        if self.r1:
            total = total + self.r1 * zero_centered(self.D, real, alpha, augments[0])
        if self.r2:
            total = total + self.r2 * zero_centered(self.D, fake, alpha, augments[1])
        if self.gp:
            total = total + self.gp * one_centered(self.D, real, fake, mix, alpha, augments[0])
        return total

    def update(self, adam, loss, penalty=False):
        gradients = torch.autograd.grad(loss, adam.parameters, allow_unused=True)
        if penalty:  # it does not depend on the last biases, whose gradient autograd writes as None or as zeros
            gradients = [None if g is None or not g.any() else g for g in gradients]
        self.gradients.append([g for g in gradients if g is not None])
        adam.step(gradients)
        return loss.item()

    def __call__(self, real, z_D, mix, z_G, alpha=1.0, augments_D=None, augments_G=None):
        same = (lambda images: images,) * 2
        augments_D, augments_G = augments_D or same, augments_G or same
        with torch.no_grad():
            fake = self.G(z_D, alpha)

        def score_loss():
            scores = self.D(augments_D[0](real), alpha), self.D(augments_D[1](fake), alpha)
            return losses(self.objective, *scores)[0]

        due, penalty = self.count % self.every == 0, 0.0
        if self.every == 1:
            d_loss = self.update(self.adam_D, score_loss() + self.penalty(real, fake, mix, alpha, augments_D))
        else:
            d_loss = self.update(self.adam_D, score_loss())
            if due:
                loss = self.every * self.penalty(real, fake, mix, alpha, augments_D)
                penalty = self.update(self.adam_D, loss, penalty=True) / self.every
        self.count += 1
        fake_scores = self.D(augments_G[-1](self.G(z_G, alpha)), alpha)
        real_scores = self.D(augments_G[0](real), alpha)
        g_loss = self.update(self.adam_G, losses(self.objective, real_scores, fake_scores)[1])
        return d_loss, g_loss, penalty
