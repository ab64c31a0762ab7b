"""The recipe's losses, penalties and updates against one in plain PyTorch, float64."""

from functools import partial

import pytest
import torch

from bench.baseline import eager
from pggan_fast import Discriminator, Generator
from pggan_fast.training import TrainStep
from pggan_fast.training.augment import DiffAugment
from pggan_fast.training.losses import OBJECTIVES
from tests.training import plain_recipe

SMALL = dict(fmap_base=64, fmap_max=8)
N, RESOLUTION = 8, 8
AUGMENT = DiffAugment()


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Tensors are tiny: a second thread gains nothing, and on a busy machine it is waited for."""
    torch.set_num_threads(1)


def networks():
    torch.manual_seed(0)
    G, D = Generator(RESOLUTION, **SMALL), Discriminator(RESOLUTION, **SMALL)
    for parameter in D.parameters():  # biases away from 0, where the leaky ReLU has its kink
        parameter.data += 0.1 * torch.randn_like(parameter)
    return G.double(), D.double()


def plain(G, D):
    made = eager.Generator(RESOLUTION, **SMALL), eager.Discriminator(RESOLUTION, **SMALL)
    for theirs, ours in zip(made, (G, D), strict=True):
        theirs.double().load_state_dict(ours.state_dict())
    return made


def draws(steps, augmented, pairs):
    """Random numbers of all steps, in the order that TrainStep takes them: z, mix, noise; noise, z."""
    random = torch.Generator().manual_seed(3)
    made = []
    for _ in range(steps):
        z, z_G = (torch.randn(N, 8, generator=random, dtype=torch.float64) for _ in range(2))
        mix = torch.rand(N, 1, 1, 1, generator=random, dtype=torch.float64)
        noise = torch.rand(N, 14, generator=random, dtype=torch.float64) if augmented else None
        noise_G = torch.rand(N, 14 if pairs else 7, generator=random, dtype=torch.float64) if augmented else None
        made.append((z, mix, noise, noise_G, z_G))
    return made


def worst_error(found, expected):
    """Relative to each gradient's largest value; one of a millionth of all of them is a difference of larger ones."""
    floor = max(b.abs().max() for b in expected) / 1e6
    return max(
        ((a - b).abs().max() / b.abs().max().clamp_min(floor)).item() for a, b in zip(found, expected, strict=True)
    )


CASES = {
    "relativistic": dict(objective="relativistic"),
    "relativistic-r1-r2": dict(objective="relativistic", r1=2.0, r2=3.0),
    "relativistic-r2": dict(objective="relativistic", r2=3.0),
    "lazy": dict(objective="relativistic", r1=2.0, r2=3.0, every=3),
    "lazy-gp": dict(objective="wgan-gp", gp=10.0, every=2),
    "raw": dict(objective="relativistic", r1=2.0, r2=3.0, raw=True, augmented=True),
    "raw-r1": dict(objective="non-saturating", r1=2.0, raw=True, augmented=True),
    "raw-gp": dict(objective="wgan-gp", gp=10.0, raw=True, augmented=True),
    "raw-lazy": dict(objective="relativistic", r1=2.0, r2=3.0, raw=True, augmented=True, every=2),
    "augmented": dict(objective="relativistic", r1=2.0, r2=3.0, augmented=True),
    "momentum": dict(objective="relativistic", r1=2.0, r2=3.0, every=2, betas=(0.5, 0.9), eps=1e-6),
    "uncorrected": dict(objective="non-saturating", r1=2.0, betas=(0.5, 0.9), eps=1e-3, uncorrected=True),
    "scheduled": dict(objective="relativistic", r1=2.0, r2=3.0, every=2, scheduled=True),
}


@pytest.mark.parametrize("micro_batch", [None, 4], ids=["whole", "parts"])
@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_plain_pytorch(name, alpha, micro_batch):
    case = dict(CASES[name])
    augmented, scheduled = case.pop("augmented", False), case.pop("scheduled", False)
    G, D = networks()
    reference = plain_recipe.Step(*plain(G, D), **case)
    objective = OBJECTIVES[case["objective"]](
        penalty_weight=case.get("gp", 0.0), r1_weight=case.get("r1", 0.0), r2_weight=case.get("r2", 0.0)
    )
    step = TrainStep(
        G,
        D,
        objective=objective,
        betas=case.get("betas", (0.0, 0.99)),
        eps=case.get("eps", 1e-8),
        eps_place="uncorrected" if case.get("uncorrected") else "corrected",
        penalty_every=case.get("every", 1),
        penalty_on="raw" if case.get("raw") else "augmented",
        augment="diffaugment" if augmented else None,
        micro_batch=micro_batch,
    )
    found = []
    for optimizer in (step.optimizer_D, step.optimizer_G):

        def record(*_, optimizer=optimizer):
            found.append([p.grad.clone() for g in optimizer.param_groups for p in g["params"] if p.grad is not None])

        optimizer.register_step_pre_hook(record)
    numbers = draws(4, augmented, objective.compares)
    random = torch.Generator().manual_seed(4)
    for index, (z, mix, noise, noise_G, z_G) in enumerate(numbers):
        queue = [tensor for tensor in (z, mix, noise, noise_G, z_G) if tensor is not None]
        step._draw = lambda *_, queue=queue: queue.pop(0)
        real = torch.rand(N, 3, RESOLUTION, RESOLUTION, generator=random, dtype=torch.float64) * 2 - 1
        if scheduled:
            share = 2 / 3
            step.set_hyperparameters(beta2=0.9 + 0.02 * index, r1_weight=2.0 - 0.1 * index, r2_weight=1.0 + index)
            reference.adam_D.betas, reference.adam_G.betas = ((0.0, (0.9 + 0.02 * index) ** s) for s in (share, 1.0))
            reference.r1, reference.r2 = 2.0 - 0.1 * index, 1.0 + index
        augments = {}
        if augmented:
            halves, of_G = noise.chunk(2, dim=1), noise_G.split(7, dim=1)
            augments["augments_D"] = tuple(partial(AUGMENT, uniform=u) for u in halves)
            augments["augments_G"] = tuple(partial(AUGMENT, uniform=u) for u in of_G)
        scalars = step(real, alpha=alpha)
        expected = reference(real, z, mix, z_G, alpha, **augments)
        for name, value in zip(("d_loss", "g_loss", "penalty"), expected, strict=True):
            if name in scalars:
                # Losses are summed in fp32, whatever the images' type.
                assert scalars[name].item() == pytest.approx(value, rel=1e-5, abs=1e-6), name
        assert ("penalty" in scalars) == (case.get("every", 1) > 1 and index % case["every"] == 0)
        assert not scalars["skipped"]
    assert len(found) == len(reference.gradients)
    for own, theirs in zip(found, reference.gradients, strict=True):
        # fp64 gradients; Adam's rate, and settings on the device, are fp32, so that weights differ by 1e-7 of a step.
        assert worst_error(own, theirs) < 1e-5
