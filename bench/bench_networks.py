"""Layers, whole networks and generation, from small to large."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.baseline import eager
from bench.baseline.matched_networks import baseline, networks
from bench.harness.cases import DTYPES, LAYOUTS, place
from bench.harness.timing import Case, Variant
from pggan_fast import EqualizedConv2d

CHANNELS = {16: 256, 64: 128, 256: 32}
"""Resolution: the most channels, so that two cores take seconds; a GPU takes the paper's."""

BATCH = {16: 16, 64: 8, 256: 2}

FLOOR = {"fp32": 1e-4, "bf16": 0.02}
"""Norm of the difference from the baseline in fp32 over norm: sums in another order over up to a dozen layers; in bf16
also twice what the baseline itself is off."""

CANCELLED = 10
"""How many times as much for D, whose scores are sums of a hundred features that leave a tenth of their size."""


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layer(layout: str, dtype: str, device: str, timed, record) -> None:
    record(timed(layer_case(64, BATCH[64], CHANNELS[64], dtype, layout, device)))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("resolution", CHANNELS)
@pytest.mark.parametrize("what", ["G", "D", "generation"])
def test_network(what: str, resolution: int, dtype: str, device: str, timed, record) -> None:
    channels = CHANNELS[resolution] if device == "cpu" else 512
    record(timed(network_case(what, resolution, BATCH[resolution], channels, dtype, device)))


def layer_case(resolution: int, batch: int, channels: int, dtype: str, layout: str, device: str = "cpu") -> Case:
    """One layer of G: upsampling, convolution, bias, leaky ReLU, pixel norm; forward and backward."""
    torch.manual_seed(0)
    ours = EqualizedConv2d(channels, channels, 3, up=2, act="lrelu", pixel_norm=True).to(device)
    theirs = eager.EqualizedConv2d(channels, channels, 3).to(device)
    theirs.load_state_dict(ours.state_dict())
    for module in (ours, theirs):
        module.to(memory_format=LAYOUTS[layout])

    def plain(x: Tensor) -> Tensor:
        return eager.pixel_norm(F.leaky_relu(theirs(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2))

    x = torch.randn(batch, channels, resolution // 2, resolution // 2)
    x = place(x, LAYOUTS[layout], device).requires_grad_(True)
    labels = {"suite": "layer of G", "dtype": dtype, "layout": layout, "pass": "forward+backward"}
    return _case(labels, {"eager": (plain, theirs), "ours": (ours, ours)}, x, dtype, device)


def network_case(what: str, resolution: int, batch: int, channels: int, dtype: str, device: str = "cpu") -> Case:
    """G or D forward and backward, or G without gradients; the same weights on both sides, channels_last."""
    G, D = networks(resolution, device, fmap_max=channels)
    theirs_G, theirs_D = baseline(G, D, torch.channels_last, fmap_max=channels)
    generator = torch.Generator().manual_seed(0)
    if what == "D":
        x = torch.randn(batch, 3, resolution, resolution, generator=generator)
        functions = {"eager": (theirs_D, theirs_D), "ours": (lambda x: D(x)[0], D)}
    else:
        x = torch.randn(batch, G.latent_dim, generator=generator)
        functions = {"eager": (theirs_G, theirs_G), "ours": (G, G)}
    x = place(x, torch.channels_last, device)
    passes = "forward" if what == "generation" else "forward+backward"
    labels = {"suite": what, "dtype": dtype, "layout": "channels_last", "pass": passes}
    return _case(labels, functions, x.requires_grad_(what == "D"), dtype, device)


def _case(
    labels: dict[str, str],
    functions: dict[str, tuple[Callable[[Tensor], Tensor], nn.Module]],
    x: Tensor,
    dtype: str,
    device: str,
) -> Case:
    """The case of functions of x, each with the module whose parameters its backward goes to."""
    half = None if dtype == "fp32" else DTYPES[dtype]

    def output(function: Callable[[Tensor], Tensor], autocast: torch.dtype | None = half) -> Tensor:
        with torch.autocast(device, autocast or torch.bfloat16, enabled=autocast is not None):
            return function(x)

    def calling(function: Callable[[Tensor], Tensor], module: nn.Module) -> Variant:
        def forward(_: int) -> Tensor:
            with torch.no_grad():
                return output(function)

        def forward_backward(_: int) -> tuple[Tensor | None, ...]:
            inputs = [p for p in module.parameters() if p.requires_grad] + ([x] if x.requires_grad else [])
            return torch.autograd.grad(output(function).float().square().mean(), inputs, allow_unused=True)

        return forward if labels["pass"] == "forward" else forward_backward

    def check() -> None:
        with torch.no_grad():
            expected = output(functions["eager"][0], None).float()
            errors = {
                name: ((output(function).float() - expected).norm() / expected.norm()).item()
                for name, (function, _) in functions.items()
            }
        floor = FLOOR[dtype] * (CANCELLED if labels["suite"] == "D" else 1)
        assert errors["ours"] <= max(floor, 2 * errors["eager"]), f"{labels['suite']}, {dtype}: {errors}"

    labels["shape"] = "x".join(map(str, x.shape))
    return Case(labels, {name: calling(*pair) for name, pair in functions.items()}, check, device=device)
