"""The plain training step in docs/architecture.md computes what TrainStep computes."""

import copy
import re
from pathlib import Path

import pytest
import torch

from pggan_fast import Discriminator, Generator
from pggan_fast.training import TrainStep

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
SMALL = {"fmap_base": 64, "fmap_max": 8}
# fp32 sums in another order; G's gradients come after D's first Adam step, which enlarges rounding.
TOLERANCE = {"D": 1e-5, "G": 1e-3}
# The last bias of D gets 1 from the fake images and -1 from the real ones: a few eps of 1 remain.
CANCELLED = 1e-6


def plain_step():
    """Return the function that the page shows."""
    (code,) = re.findall(r"```python\n(def plain_step.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    namespace = {"torch": torch}
    exec(compile(code, str(PAGE), "exec"), namespace)
    return namespace["plain_step"]


def first_gradients(network, optimizer):
    """Return a dict that the first step of `optimizer` fills with gradients by parameter."""
    found = {}

    def keep(*_):
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                found.setdefault(name, parameter.grad.clone())

    optimizer.register_step_pre_hook(keep)
    return found


@pytest.mark.parametrize("resolution, alpha", [(4, 1.0), (8, 0.3), (16, 1.0)])
def test_the_plain_step_is_the_step(resolution, alpha):
    torch.manual_seed(0)
    step = TrainStep(Generator(16, **SMALL), Discriminator(16, **SMALL))
    G, D, G_ema = (copy.deepcopy(network) for network in (step.G, step.D, step.G_ema))
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.0, 0.99), eps=1e-8) for net in (G, D)]
    networks = [("G", step.G, step.optimizer_G, G, optimizers[0]), ("D", step.D, step.optimizer_D, D, optimizers[1])]
    gradients = {
        name: (first_gradients(ours, ours_optimizer), first_gradients(plain, plain_optimizer))
        for name, ours, ours_optimizer, plain, plain_optimizer in networks
    }
    real = torch.rand(8, 3, resolution, resolution) * 2 - 1

    torch.manual_seed(1)
    stats = step(real, alpha=alpha)
    torch.manual_seed(1)
    d_loss, g_loss = plain_step()(G, D, G_ema, *optimizers, real, alpha)

    torch.testing.assert_close(stats["d_loss"], d_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stats["g_loss"], g_loss, rtol=1e-4, atol=1e-5)
    for name, (ours, plain) in gradients.items():
        assert ours and ours.keys() == {key for key, value in plain.items() if key in ours}
        for key, value in ours.items():
            error, allowed = (value - plain[key]).abs().max(), TOLERANCE[name] * plain[key].abs().max() + CANCELLED
            assert error <= allowed, f"{name}.{key} is off by {error:.1e}, allowed {allowed:.1e}"
    for ours, plain in zip(step.G_ema.parameters(), G_ema.parameters(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)
