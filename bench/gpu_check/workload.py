"""Networks and images that the parts share."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.baseline import matched_networks
from bench.gpu_check.findings import DEVICE, REHEARSAL
from pggan_fast import Discriminator, Generator

SMALL = {"fmap_base": 64, "fmap_max": 16} if REHEARSAL else {}


def networks(resolution: int, device: str = DEVICE, **options: int) -> tuple[Generator, Discriminator]:
    """Return the paper's networks, or small ones in a rehearsal, with the weights of seed 0."""
    return matched_networks.networks(resolution, device, **{**SMALL, **options})


def images(n: int, resolution: int) -> Tensor:
    """Return [n, 3, resolution, resolution] in -1..1, channels_last, on the CPU, the same on every call."""
    random = torch.Generator().manual_seed(0)
    uniform = torch.rand(n, 3, resolution, resolution, generator=random)
    return (uniform * 2 - 1).contiguous(memory_format=torch.channels_last)
