"""The discriminator as objectives call it, bound to a stage, a precision and a way to run."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pggan_fast.networks import BaseDiscriminator
from pggan_fast.reference import stddev_group
from pggan_fast.training.penalties import Augmented, Scored


class BoundDiscriminator:
    """`penalties.Critic` of D at one stage.

    Args:
        D: the discriminator, and `run`: the same as a function, compiled or not.
        alpha: weight of the newest layers.
        autocast: makes the context that D runs in.
        scale: fp16's loss scale, None for the other precisions.
    """

    def __init__(
        self,
        D: BaseDiscriminator,
        run: nn.Module,
        alpha: float | Tensor,
        autocast: Callable[[], torch.autocast],
        scale: Tensor | None,
    ):
        self.D, self.run, self.alpha, self.autocast, self.scale = D, run, alpha, autocast, scale

    def __call__(self, images: Tensor, labels: Tensor | None) -> Scored:
        with self.autocast():
            return self.run(images, labels, alpha=self.alpha)

    def gradient(
        self, images: Tensor, labels: Tensor | None, augment: Augmented | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return scores [N] and the gradient of their sum in the images [N, C, H, W], fp32 and differentiable.

        D itself runs: torch cannot differentiate a compiled backward.
        """
        images = images.detach().requires_grad_()
        seen = images if augment is None else augment(images)
        with self.autocast():
            scores, _ = self.D(seen, labels, alpha=self.alpha)  # [N]
        (gradient,) = self._gradients(scores.sum(), images)  # [N, C, H, W]
        return scores, gradient

    def pair_gradient(
        self, real: Tensor, fake: Tensor, labels: Tensor | None, augment: tuple[Augmented, Augmented] | None = None
    ) -> tuple[tuple[Scored, Scored], tuple[Tensor, Tensor]]:
        """Score both batches as `pair` does, and return the gradient of each batch's scores in its images.

        A score depends on images of its own batch alone, so the gradient of the sum of all serves both.
        """
        real, fake = (images.detach().requires_grad_() for images in (real, fake))
        seen = (real, fake)
        if augment is not None:
            seen = tuple(function(images) for function, images in zip(augment, seen, strict=True))
        scored = self._pair(self.D, *seen, labels)
        total = scored[0][0].sum() + scored[1][0].sum()
        return scored, self._gradients(total, real, fake)

    def _gradients(self, total: Tensor, *images: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of `total` in each of `images` [N, C, H, W], fp32 and differentiable.

        Under fp16 they are computed with the loss scale, as the official code does: a score's gradient with respect
        to one of many pixels would round to zero.
        """
        total = total if self.scale is None else total * self.scale
        gradients = torch.autograd.grad(total, images, create_graph=True)
        gradients = (gradient.to(torch.promote_types(gradient.dtype, torch.float32)) for gradient in gradients)
        return tuple(gradient if self.scale is None else gradient / self.scale for gradient in gradients)

    def pair(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Scored, Scored]:
        """Score both batches in one call, ordered so that each stddev group holds what it would hold in two calls.

        With groups of G, there are M = N / G of them, and group m has the samples m, m + M, m + 2M, ... In a batch of
        2N that alternates M reals and M fakes, group m has those reals and group M + m those fakes.
        """
        return self._pair(self.run, real, fake, labels)

    def _pair(self, run: nn.Module, real: Tensor, fake: Tensor, labels: Tensor | None) -> tuple[Scored, Scored]:
        def score(images: Tensor, labels: Tensor | None) -> Scored:
            with self.autocast():
                return run(images, labels, alpha=self.alpha)

        n, group_size = len(real), self.D.mbstd_group_size
        group = stddev_group(n, group_size)
        # Activation checkpointing saves memory, of which one call for both takes twice as much.
        separately = self.D.activation_checkpointing or self.D.sees_minibatch
        if separately or stddev_group(2 * n, group_size) != group:
            return score(real, labels), score(fake, labels)

        def interleave(real: Tensor, fake: Tensor) -> Tensor:
            runs = tuple(t.unflatten(0, (group, n // group)) for t in (real, fake))  # two of [G, M, ...]
            both = torch.stack(runs, dim=1).flatten(0, 2)  # [G, 2, M, ...] -> [2N, ...]
            return both.contiguous(memory_format=torch.channels_last) if both.ndim == 4 else both

        def separate(both: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
            if both is None:
                return None, None
            runs = both.unflatten(0, (group, 2, n // group))  # [2N, ...] -> [G, 2, M, ...]
            return runs[:, 0].flatten(0, 1), runs[:, 1].flatten(0, 1)  # [N, ...] each

        scores, logits = score(interleave(real, fake), None if labels is None else interleave(labels, labels))
        return tuple(zip(separate(scores), separate(logits), strict=True))
