"""A program on the public functions, as people write it: `make types` checks it by mypy --strict, nothing runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import pggan_fast
from pggan_fast import Discriminator, EqualizedConv2d, EqualizedLinear, Generator, MinibatchStdDev, PixelNorm
from pggan_fast.interop import from_official
from pggan_fast.training import PreparedData, RunFolder, TrainConfig, TrainStep, train


def ops(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    assert_type(pggan_fast.bias_act(x, bias, act="lrelu", slope=0.2, gain=1.0, pixel_norm=True), Tensor)
    assert_type(pggan_fast.pixel_norm(x), Tensor)
    assert_type(pggan_fast.equalized_conv2d(x, weight, bias, up=2, act="lrelu", impl="reference"), Tensor)
    assert_type(pggan_fast.equalized_linear(x, weight), Tensor)
    assert_type(pggan_fast.fade_in(x, pggan_fast.upsample2x(x), 0.3), Tensor)
    assert_type(pggan_fast.fade_in(x, pggan_fast.upsample2x(x), torch.tensor(0.3)), Tensor)
    assert_type(pggan_fast.fade_reals(x, 0.5, dtype=torch.float16), Tensor)
    assert_type(pggan_fast.minibatch_stddev(x, group_size=2), Tensor)
    assert_type(pggan_fast.downsample2x(x), Tensor)
    assert_type(pggan_fast.upfirdn2d(x, pggan_fast.setup_filter([1, 3, 3, 1]), up=2), Tensor)
    with pggan_fast.use_impl("reference"):
        pggan_fast.bias_act(x)


def layers() -> nn.Module:
    convolution = EqualizedConv2d(64, 32, 3, up=2, act="lrelu", pixel_norm=True)
    return nn.Sequential(convolution, PixelNorm(), MinibatchStdDev(), nn.Flatten(), EqualizedLinear(33, 1))


def networks(z: Tensor, images: Tensor, labels: Tensor) -> None:
    G, D = Generator(64, label_dim=3), Discriminator(64, label_dim=3, label_mode="projection")
    assert_type(G(z, labels, resolution=16, alpha=0.5), Any)  # nn.Module.__call__ is untyped
    assert_type(G.forward(z, labels, resolution=16, alpha=0.5), Tensor)
    assert_type(D.forward(images, labels), tuple[Tensor, Tensor | None])
    step = TrainStep(G, D, objective="wgan-gp", precision="bf16")
    assert_type(step(images, labels, alpha=1.0), dict[str, Tensor])
    assert_type(from_official({}, label_dim=3), Generator | Discriminator)


def runs(folder: Path) -> None:
    config = TrainConfig(data=folder / "data", out=folder / "run", batch_size={4: 16}, total_kimg=1.0)
    assert_type(PreparedData(config.data).resolution, int)
    assert_type(train(RunFolder.create(config)), bool)


def dropped_in(model: nn.Module) -> None:
    fast = pggan_fast.accelerate(model)
    print(pggan_fast.explain(fast))


def mistakes(x: Tensor) -> None:
    """A wrong type that is none to mypy is an error of warn_unused_ignores."""
    pggan_fast.bias_act(x, slope="steep")  # type: ignore[arg-type]
    pggan_fast.fade_in(x, x)  # type: ignore[call-arg]
    Generator("64")  # type: ignore[arg-type]
    TrainConfig(data=3, out=Path())  # type: ignore[arg-type]
