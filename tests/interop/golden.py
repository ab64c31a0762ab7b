"""The official networks' numbers, and our networks loaded from the same variables."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from pggan_fast.interop import from_official

GOLDEN = Path(__file__).parents[1] / "golden"
RESOLUTION = 16

# float32, against another float32 implementation that sums in another order.
IMAGE_TOLERANCE = 1e-4  # activations of order 1 to 10 through six layers of 144 products
SCORE_TOLERANCE = 1e-5  # scores, logits and losses
FLIPPED_TOLERANCE = 1e-4  # gradient norms where a leaky ReLU's slope may flip
GRADIENT_TOLERANCE = (1e-5, 1e-4)  # absolute, and relative to the tensor's largest entry
PIXEL_TOLERANCE = 1e-6  # four roundings of values in -1..1


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def under(golden: dict, prefix: str) -> dict[str, np.ndarray]:
    """Return what lies under `prefix/`, by its name there."""
    start = f"{prefix}/"
    return {k.removeprefix(start): v for k, v in golden.items() if k.startswith(start)}


def network(golden: dict, letter: str, **kwargs):
    """G or D."""
    return from_official(under(golden, f"{letter}_var"), label_dim=golden["labels"].shape[1], **kwargs)


def tensor(golden: dict, key: str, layout=torch.contiguous_format) -> torch.Tensor:
    values = torch.from_numpy(golden[key])
    return values.contiguous(memory_format=layout) if values.ndim == 4 else values


def growth(lod: float) -> tuple[int, float]:
    """Official lod -> (how many times smaller than full the live resolution is, alpha)."""
    lod = float(np.float32(lod))
    return 2 ** int(lod), 1 - (lod - int(lod))


def assert_close(actual: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    expected = torch.from_numpy(np.asarray(expected)).reshape(actual.shape)
    torch.testing.assert_close(actual.detach(), expected, atol=tolerance, rtol=0)


class OfficialView:
    """Our networks under the official ones' manners: images of full resolution in and out."""

    def __init__(self, golden: dict, lod: float, layout: torch.memory_format):
        self.G, self.D = (network(golden, letter).to(memory_format=layout) for letter in "GD")
        self.factor, self.alpha = growth(lod)
        self.latents, labels = tensor(golden, "latents"), tensor(golden, "labels")
        self.labels = labels if labels.numel() else None
        self.reals = tensor(golden, "images", layout)
        self.mixing = tensor(golden, "mixing")

    def generate(self) -> torch.Tensor:
        live = RESOLUTION // self.factor
        images = self.G(self.latents, self.labels, resolution=live, alpha=self.alpha)
        return F.interpolate(images, scale_factor=self.factor, mode="nearest")

    def score(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.D(F.avg_pool2d(images, self.factor), alpha=self.alpha)

    def label_penalty(self, logits: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits, self.labels, reduction="none")

    def d_loss(self) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """WGAN-GP with drift and AC-GAN terms, and the terms by their names in the file."""
        with torch.no_grad():
            fakes = self.generate()
        real_scores, real_logits = self.score(self.reals)
        fake_scores, fake_logits = self.score(fakes)
        mixed = (self.reals + (fakes - self.reals) * self.mixing).requires_grad_()
        mixed_scores, _ = self.score(mixed)
        (gradient,) = torch.autograd.grad(mixed_scores.sum(), mixed, create_graph=True)
        norms = gradient.square().sum(dim=(1, 2, 3)).sqrt()
        terms = {
            "real_scores": real_scores,
            "fake_scores": fake_scores,
            "mixed_scores": mixed_scores,
            "mixed_norms": norms,
            "epsilon_penalty": real_scores.square(),
        }
        loss = fake_scores.mean() - real_scores.mean() + 10 * (norms - 1).square().mean()
        loss = loss + 0.001 * real_scores.square().mean()
        if self.labels is not None:
            terms["label_penalty_reals"] = self.label_penalty(real_logits)
            terms["label_penalty_fakes"] = self.label_penalty(fake_logits)
            loss = loss + terms["label_penalty_reals"].mean() + terms["label_penalty_fakes"].mean()
        return loss, terms

    def g_loss(self) -> torch.Tensor:
        scores, logits = self.score(self.generate())
        loss = -scores.mean()
        return loss if self.labels is None else loss + self.label_penalty(logits).mean()
