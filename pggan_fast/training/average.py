"""The moving average of G's weights: by a decay per step, or by a half-life in images."""

from __future__ import annotations

import torch
from torch import Tensor


def decay_of(half_life_images: float, step_images: int, *, images: int = 0, ramp: float | None = None) -> float:
    """Return the weight of the past in one step that shows `step_images` images: 0.5 ** (step / half-life).

    The same half-life serves every batch size. With `ramp` it is at most `ramp * images`, the images shown before the
    step, so that the average forgets the first, random weights (Karras et al. 2020, ADA; their `ema_rampup`).
    A half-life of 0 keeps nothing of the past.
    """
    if ramp is not None:
        half_life_images = min(half_life_images, ramp * images)
    return 0.5 ** (step_images / half_life_images) if half_life_images > 0 else 0.0


@torch.no_grad()
def follow(averages: list[Tensor], weights: list[Tensor], decay: float | Tensor) -> None:
    """Move `averages` towards `weights`, in place: decay * average + (1 - decay) * weight.

    A `decay` of a 0-d fp32 tensor is read on the device, as a captured step needs it.
    """
    if not isinstance(decay, Tensor):
        torch._foreach_lerp_(averages, weights, 1 - decay)
        return
    steps = torch._foreach_sub(weights, averages)
    # The overload by name: a 0-d tensor would be taken for a number, which reads it.
    torch.ops.aten._foreach_mul_.Tensor(steps, 1 - decay)
    torch._foreach_add_(averages, steps)
