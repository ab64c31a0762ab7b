"""A D step of R3GAN's networks at 64 px: with R1 and R2 against without, ours and eager, fp32.

pytest bench/bench_r3gan.py
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from bench.baseline import r3gan as plain
from bench.harness.cases import LAYOUTS
from bench.harness.timing import Case
from pggan_fast.networks import R3ganDiscriminator, R3ganGenerator
from pggan_fast.ops import cache_folded_weights
from pggan_fast.training.adam import MomentumFreeAdam
from pggan_fast.training.bound_discriminator import BoundDiscriminator
from pggan_fast.training.losses import Relativistic

RESOLUTION, BATCH, GAMMA = 64, 8, 0.5
OPTIONS = dict(fmap_base=1024, fmap_max=64, group_channels=16)
WIDTHS, GROUPS = [64, 64, 64, 64, 32], [8, 8, 8, 8, 4]
"""A tenth of the published channels, so that a round of all variants takes seconds on one core."""

Step = Callable[[Tensor, Tensor], Tensor]
"""(reals [N, 3, 64, 64], latents [N, 64]) -> D's loss, after its update."""


def test_d_step(device: str, timed, record) -> None:
    record(timed(case(device), seconds=30.0))


def case(device: str = "cpu") -> Case:
    """Four variants on the same weights, images and latents; each trains a D of its own."""
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(BATCH, 3, RESOLUTION, RESOLUTION, generator=generator) * 2 - 1
    real = real.to(device, memory_format=LAYOUTS["channels_last"])
    z = torch.randn(BATCH, 64, generator=generator).to(device)
    variants = {
        "eager": eager_step(device, GAMMA),
        "eager_without_penalties": eager_step(device, 0.0),
        "ours": our_step(device, GAMMA),
        "ours_without_penalties": our_step(device, 0.0),
    }

    def check() -> None:
        losses = {name: step(real, z) for name, step in variants.items()}
        for kind in ("", "_without_penalties"):
            # fp32, thirty layers in a row
            torch.testing.assert_close(losses[f"ours{kind}"], losses[f"eager{kind}"], rtol=1e-3, atol=1e-4)

    labels = {
        "suite": "D step of R3GAN",
        "shape": f"{BATCH}x3x{RESOLUTION}x{RESOLUTION}",
        "dtype": "fp32",
        "layout": "channels_last",
        "pass": "D step",
    }
    calls = {name: lambda _, step=step: step(real, z) for name, step in variants.items()}
    return Case(labels, calls, check, device=device)


def networks(device: str) -> tuple[R3ganGenerator, R3ganDiscriminator]:
    """Small ones from one seed, nothing at 0: the last layer of each block would leave the others without work."""
    torch.manual_seed(0)
    pair = R3ganGenerator(RESOLUTION, **OPTIONS), R3ganDiscriminator(RESOLUTION, **OPTIONS)
    for network in pair:
        for parameter in network.parameters():
            if parameter.ndim == 4 and not parameter.any():
                parameter.data.normal_(0, 0.02)
        network.to(device, memory_format=LAYOUTS["channels_last"])
    return pair


def our_step(device: str, gamma: float) -> Step:
    G, D = networks(device)
    objective, optimizer = Relativistic(r1_weight=gamma, r2_weight=gamma), MomentumFreeAdam(D.parameters(), 2e-4)
    critic = BoundDiscriminator(D, D, 1.0, nullcontext, None)

    def step(real: Tensor, z: Tensor) -> Tensor:
        with cache_folded_weights():
            with torch.no_grad():
                fake = G(z)
            loss = torch.zeros((), device=device)
            for term in objective.discriminator_terms(critic, real, fake, None, None, {}):
                term.backward(inputs=list(D.parameters()))
                loss += term.detach()
            optimizer.step()
            optimizer.zero_grad()
        return loss

    return step


def eager_step(device: str, gamma: float) -> Step:
    G, D = plain.Generator(WIDTHS, GROUPS), plain.Discriminator(WIDTHS, GROUPS)
    for network, ours in zip((G, D), networks(device), strict=True):
        network.load_state_dict(ours.state_dict())
        network.to(device, memory_format=LAYOUTS["channels_last"])
    optimizer = torch.optim.Adam(D.parameters(), 2e-4, betas=(0.0, 0.99))

    def step(real: Tensor, z: Tensor) -> Tensor:
        with torch.no_grad():
            fake = G(z)
        loss = plain.d_loss(D, real, fake, None, gamma)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step
