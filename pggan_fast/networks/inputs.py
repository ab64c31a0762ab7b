"""Inputs of networks as they are checked and converted: images, labels, and the weight of the newest layers."""

import torch
import torch.nn.functional as F
from torch import Tensor


def check_images(images: Tensor) -> None:
    """Raise ValueError unless `images` are floating-point: integers, as files hold them, have another range."""
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, must be floating-point in -1..1: see fade_reals for uint8 images")


def one_hot(labels: Tensor | None, label_dim: int, batch: int, like: Tensor) -> Tensor | None:
    """Labels as [N, label_dim] of like's dtype; class indices [N] and one-hot rows are both taken."""
    if label_dim == 0:
        if labels is not None and labels.numel():
            raise ValueError("labels were given to a network with label_dim=0")
        return None
    if labels is None:
        raise ValueError(f"labels are missing: the network has label_dim={label_dim}")
    if labels.ndim == 1 and not labels.is_floating_point():
        labels = F.one_hot(labels.long(), label_dim)
    if labels.shape != (batch, label_dim):
        raise ValueError(
            f"labels have shape {list(labels.shape)}, must be class indices [{batch}] or one-hot rows "
            f"[{batch}, {label_dim}]"
        )
    return labels.to(device=like.device, dtype=like.dtype)


def blends(alpha: float | Tensor) -> bool:
    """Whether the old path is live. A tensor always blends; the Python float 1.0 is structural and skips it."""
    return isinstance(alpha, torch.Tensor) or alpha != 1.0
