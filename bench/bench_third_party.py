"""Whole training steps and generation against pro-gan-pth, a PyTorch implementation on PyPI, with equal channels.

pip install --no-deps pro-gan-pth, and torchvision and tensorboard, which it imports. Its functions differ from the
paper's in details (constant input, order of the blend), so there is no gate on equal results: shapes and parameter
counts are compared instead.
"""

import contextlib
import functools
import io

import pytest
import torch
from torch import Tensor, nn

from bench.harness.timing import Case
from pggan_fast import cache_folded_weights
from pggan_fast.networks import Discriminator, Generator
from pggan_fast.training import TrainStep

RESOLUTION, BATCH, CHANNELS = 64, 8, 128
SECONDS = 15.0


@pytest.fixture(scope="module")
def pro_gan_pth() -> object:
    """pro-gan-pth's module `gan`, its channel table cut to CHANNELS."""
    gan = pytest.importorskip(
        "pro_gan_pytorch.gan", reason="needs pro-gan-pth, torchvision and tensorboard", exc_type=ImportError
    )
    networks = pytest.importorskip("pro_gan_pytorch.networks")
    before, networks.nf = networks.nf, functools.partial(networks.nf, fmap_max=CHANNELS)
    yield gan
    networks.nf = before


def networks_of_pro_gan_pth(gan: object) -> object:
    """Its two networks and the average. The equalized first layer of G does not run with today's torch: it is left
    plain, which is the faster one."""
    depth = RESOLUTION.bit_length() - 1
    G = gan.Generator(depth, latent_size=CHANNELS)
    G.layers[0] = type(G.layers[0])(CHANNELS, CHANNELS, use_eql=False)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its networks
        return gan.ProGAN(G, gan.Discriminator(depth, latent_size=CHANNELS))


class ProGanPthStep:
    """One iteration of pro-gan-pth's training loop, on its own classes."""

    def __init__(self, gan: object):
        self.model, self.loss = networks_of_pro_gan_pth(gan), gan.WganGP()
        adam = dict(lr=1e-3, betas=(0.0, 0.99), eps=1e-8)
        self.optimizers = [torch.optim.Adam(m.parameters(), **adam) for m in (self.model.dis, self.model.gen)]
        self.average = gan.update_average

    def __call__(self, real: Tensor) -> None:
        model, depth = self.model, self.model.depth
        D_optimizer, G_optimizer = self.optimizers
        z = torch.randn(len(real), model.latent_size)
        z = z / z.norm(dim=-1, keepdim=True) * model.latent_size**0.5
        model.optimize_discriminator(self.loss, D_optimizer, z, real, depth, 1.0)
        model.optimize_generator(self.loss, G_optimizer, z, real, depth, 1.0)
        self.average(model.gen_shadow, model.gen, beta=0.999)


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def pair() -> tuple[Generator, Discriminator]:
    return Generator(RESOLUTION, fmap_max=CHANNELS), Discriminator(RESOLUTION, fmap_max=CHANNELS)


def test_step_against_pro_gan_pth(pro_gan_pth, timed, record) -> None:
    theirs = ProGanPthStep(pro_gan_pth)
    steps = {
        "pro_gan_pth": theirs,
        "ours_fp32": TrainStep(*pair(), precision="fp32"),
        "ours_bf16": TrainStep(*pair(), precision="bf16"),
    }
    real = torch.rand(BATCH, 3, RESOLUTION, RESOLUTION) * 2 - 1

    def check() -> None:
        ours = parameters(steps["ours_fp32"].G, steps["ours_fp32"].D)
        # Its first layers are convolutions of another shape.
        assert abs(parameters(theirs.model.gen, theirs.model.dis) / ours - 1) < 0.1

    labels = {"suite": "third-party step", "shape": "x".join(map(str, real.shape)), "dtype": "by variant"}
    labels |= {"layout": "by variant", "pass": "training step"}
    variants = {name: lambda _, step=step: step(real) for name, step in steps.items()}
    record(timed(Case(labels, variants, check), seconds=SECONDS))


def test_generation_against_pro_gan_pth(pro_gan_pth, timed, record) -> None:
    theirs, ours = networks_of_pro_gan_pth(pro_gan_pth).gen_shadow, pair()[0].to(memory_format=torch.channels_last)
    z = torch.randn(BATCH, CHANNELS)

    @torch.no_grad()
    def generate(network: nn.Module, half: bool = False) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return network(z)

    variants = {
        "pro_gan_pth": lambda _: generate(theirs),
        "ours_fp32": lambda _: generate(ours),
        "ours_bf16": lambda _: generate(ours, half=True),
    }

    def check() -> None:
        assert {variant(0).shape for variant in variants.values()} == {(BATCH, 3, RESOLUTION, RESOLUTION)}

    labels = {"suite": "third-party generation", "shape": f"{BATCH}x{CHANNELS}", "dtype": "by variant"}
    labels |= {"layout": "by variant", "pass": "forward"}
    with cache_folded_weights():  # as in `generate` and `evaluate`
        record(timed(Case(labels, variants, check), seconds=6.0))
