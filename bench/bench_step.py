"""One whole training step: D with gradient penalty and drift, moving average, G, Adam."""

import pytest
import torch
from torch import Tensor

from bench.baseline import eager
from bench.baseline.matched_networks import baseline, networks
from bench.harness.cases import LAYOUTS
from bench.harness.timing import Case
from pggan_fast.training import TrainStep

SIZES = {4: (16, 128), 8: (16, 128), 16: (16, 128), 32: (16, 128), 64: (8, 128), 128: (4, 64), 256: (2, 32)}
"""Resolution: (batch, channels), below the paper's, so that a round of all variants takes seconds on two cores."""

PAPER_SIZES = {4: 128, 8: 128, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8}
"""Resolution: batch, on a GPU, with the paper's channels."""

SECONDS = {32: 15.0, 64: 15.0}
"""Where a target stands; elsewhere OTHER_SECONDS."""

OTHER_SECONDS = 2.0


@pytest.mark.parametrize("resolution", SIZES)
def test_step(resolution: int, device: str, timed, record, request) -> None:
    batch, channels = SIZES[resolution] if device == "cpu" else (PAPER_SIZES[resolution], 512)
    # torch.compile takes a minute for each resolution.
    compiled = resolution in SECONDS or request.config.getoption("compile_all")
    case = step_case(resolution, batch, channels, device, compiled=compiled)
    record(timed(case, seconds=SECONDS.get(resolution, OTHER_SECONDS)))


def step_case(resolution: int, batch: int, channels: int, device: str = "cpu", *, compiled: bool = False) -> Case:
    """Five variants from the same weights, on the same images, with the same latents, or six: `eager.TrainStep`."""
    variants = {
        "eager_nchw_fp32": eager_step(resolution, channels, "nchw", None, device),
        "eager_channels_last_fp32": eager_step(resolution, channels, "channels_last", None, device),
        "ours_fp32": TrainStep(*networks(resolution, device, fmap_max=channels), precision="fp32"),
        "eager_channels_last_bf16": eager_step(resolution, channels, "channels_last", torch.bfloat16, device),
        "ours_bf16": TrainStep(*networks(resolution, device, fmap_max=channels), precision="bf16"),
    }
    if compiled:
        variants["eager_compiled_fp32"] = eager_step(resolution, channels, "channels_last", None, device, compiled=True)
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(batch, 3, resolution, resolution, generator=generator) * 2 - 1).to(device)
    reals = {
        name: images.contiguous(memory_format=LAYOUTS["nchw" if "nchw" in name else "channels_last"])
        for name in variants
    }

    def check() -> None:
        results = {name: first_steps(step, reals[name]) for name, step in variants.items()}
        expected = results["eager_nchw_fp32"]
        for what, fp32_tolerance in TOLERANCE.items():
            errors = {
                name: ((found[what] - expected[what]).norm() / expected[what].norm()).item()
                for name, found in results.items()
            }
            bf16_tolerance = max(BF16_FLOOR, 2 * errors["eager_channels_last_bf16"])
            for name, error in errors.items():
                allowed = fp32_tolerance if name.endswith("fp32") else bf16_tolerance
                assert error <= allowed, f"{name}: {what} off by {error:.1e} of their norm, allowed {allowed:.0e}"

    labels = {
        "suite": "step",
        "shape": f"{batch}x3x{resolution}x{resolution}",
        "dtype": "by variant",
        "layout": "by variant",
        "pass": "training step",
    }
    calls = {name: lambda _, name=name: variants[name](reals[name]) for name in variants}
    return Case(labels, calls, check, device=device)


TOLERANCE = {"losses": 1e-3, "D's gradients": 1e-3, "G's gradients": 1e-2}
BF16_FLOOR = 0.05
"""Norm of the difference over norm, against the baseline in fp32. Everything but the first D loss and D's first
gradients comes after Adam steps, the first of which is the gradients' signs and so makes much of rounding.
bf16 may err twice as much as the baseline does in bf16."""


def eager_step(
    resolution: int,
    channels: int,
    layout: str,
    autocast: torch.dtype | None,
    device: str,
    *,
    compiled: bool = False,
) -> eager.TrainStep:
    ours = networks(resolution, device, fmap_max=channels)
    return eager.TrainStep(*baseline(*ours, LAYOUTS[layout], fmap_max=channels), autocast, compiled=compiled)


def first_steps(step: TrainStep | eager.TrainStep, real: Tensor) -> dict[str, Tensor]:
    """The losses of two steps on one seed, and the gradients of the first."""
    torch.manual_seed(1)
    results = {}
    hooks = []
    for name, network, optimizer in (("G", step.G, step.optimizer_G), ("D", step.D, step.optimizer_D)):

        def record(*_, name=name, network=network):
            gradients = [p.grad for _, p in sorted(network.named_parameters()) if p.grad is not None]
            results[f"{name}'s gradients"] = torch.cat([gradient.flatten() for gradient in gradients])

        hooks.append(optimizer.register_step_pre_hook(record))
    losses = [step(real)]
    for hook in hooks:
        hook.remove()
    losses.append(step(real))
    results["losses"] = torch.stack([each[name].float() for each in losses for name in ("d_loss", "g_loss")])
    return results
