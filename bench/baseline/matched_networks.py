"""pggan_fast's networks and the baseline's with the same weights."""

import torch

from bench.baseline import eager
from pggan_fast.networks import Discriminator, Generator


def networks(resolution: int, device: str = "cpu", **options: int) -> tuple[Generator, Discriminator]:
    """pggan_fast's networks with biases that are not zero, so that a lost bias shows; channels_last."""
    torch.manual_seed(0)
    pair = Generator(resolution, **options), Discriminator(resolution, **options)
    for network in pair:
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
        network.to(device, memory_format=torch.channels_last)
    return pair


def baseline(
    G: Generator, D: Discriminator, memory_format: torch.memory_format, **options: int
) -> tuple[eager.Generator, eager.Discriminator]:
    """The baseline's networks with the weights of G and D."""
    pair = eager.Generator(G.resolution, **options), eager.Discriminator(D.resolution, **options)
    for theirs, ours in zip(pair, (G, D), strict=True):
        theirs.load_state_dict(ours.state_dict(), strict=True)
        theirs.to(next(ours.parameters()).device, memory_format=memory_format)
    return pair
