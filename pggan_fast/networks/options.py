"""Options that generator and discriminator share: channel counts, sizes, label encoding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pggan_fast.layers import EqualizedConv2d, EqualizedLinear, spectral_norm


def channels(resolution: int, fmap_base: int, fmap_decay: float, fmap_max: int) -> int:
    """Feature maps of a layer at `resolution` = 2**r: the official nf(r - 1); nf(0) is the latent size."""
    stage = resolution.bit_length() - 2
    return min(int(fmap_base / 2 ** (stage * fmap_decay)), fmap_max)


def normalize_spectra(network: nn.Module) -> None:
    """Puts `spectral_norm` on every convolution and dense layer."""
    for layer in [m for m in network.modules() if isinstance(m, (EqualizedConv2d, EqualizedLinear))]:
        spectral_norm(layer)


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
