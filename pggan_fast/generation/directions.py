"""Directions in the latent space along which a generator's images change most."""

from __future__ import annotations

import torch
from torch import Tensor

from pggan_fast.networks.base import BaseGenerator


def principal_directions(G: BaseGenerator, count: int) -> Tensor:
    """Return unit latents [count, latent_dim], fp32 on the CPU, at most latent_dim of them, the strongest first.

    They are the eigenvectors of W^T W for the weight W of the first dense layer without its columns for classes (SeFa:
    Shen & Zhou, "Closed-Form Factorization of Latent Semantics in GANs", CVPR 2021, section 3.2). Their sign makes the
    largest component positive.
    """
    with torch.no_grad():
        # The parameter, which spectral norm divides by a number that changes no direction.
        dense = next(p for p in G.input.parameters() if p.ndim == 2 and p.shape[1] >= G.latent_dim)
        weight = dense[:, : G.latent_dim].double().cpu()
    _, vectors = torch.linalg.eigh(weight.T @ weight)  # in columns, the weakest first
    chosen = vectors.T.flip(0)[:count]
    largest = chosen.gather(1, chosen.abs().argmax(dim=1, keepdim=True))
    return (chosen * largest.sign()).float()
