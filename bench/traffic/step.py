"""A whole training step's launches and bytes, of the baseline and of ours, at the paper's sizes.

    python -m bench.traffic.step 256 8          resolution, batch; what contributes most
    python -m bench.traffic.step 256 8 --bf16   ours under autocast, weights and their gradients still in fp32

fp32 on every side otherwise. "The convolutions' own" bytes are those of ours with folded kernels, each tensor once
for each convolution and each of its gradients: what is left if everything else were free.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from unittest import mock

import torch
from torch import Tensor

from bench.baseline import eager
from bench.traffic.count import Traffic
from bench.traffic.kernels import counted
from pggan_fast.networks import Discriminator, Generator
from pggan_fast.ops import conv, linear
from pggan_fast.training import TrainStep

SIZES = {4: 128, 8: 128, 16: 128, 32: 16, 64: 16, 128: 16, 256: 8, 512: 4, 1024: 4}
"""Resolution: batch."""

PROVIDERS = ("eager", "native", "triton", "auto")


@contextmanager
def _meta_as_gpu(bf16: bool) -> Iterator[None]:
    """Let steps run on meta tensors: autocast as our ops see it, and the baseline's Adam as on a GPU."""
    # CUDA's default is foreach.
    adam = partial(torch.optim.Adam, foreach=True)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.optim, "Adam", adam))
        stack.enter_context(mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext()))
        if bf16:
            for module in (conv, linear):
                stack.enter_context(mock.patch.object(module, "autocast_input", _to_bf16))
        yield


def _to_bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16)


@cache
def step_traffic(provider: str, resolution: int, batch: int, bf16: bool = False, **options: int) -> Traffic:
    """The traffic of one of PROVIDERS (in bf16, of ours), a step after the first; options are those of the networks."""
    real = torch.empty(batch, 3, resolution, resolution, device="meta")
    count = Traffic if provider == "eager" else partial(counted, provider)
    with _meta_as_gpu(bf16):
        with torch.device("meta"):
            make = _eager_step if provider == "eager" else _our_step
            step = make(resolution, **options)
        with count():
            step(real)
        with count() as traffic:
            step(real)
    return traffic


def _eager_step(resolution: int, **options: int) -> eager.TrainStep:
    return eager.TrainStep(eager.Generator(resolution, **options), eager.Discriminator(resolution, **options))


def _our_step(resolution: int, **options: int) -> TrainStep:
    return TrainStep(Generator(resolution, **options), Discriminator(resolution, **options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("resolution", type=int)
    parser.add_argument("batch", type=int)
    parser.add_argument("--rows", type=int, default=12, help="contributors to list")
    parser.add_argument("--bf16", action="store_true", help="under autocast, without eager's step")
    given = parser.parse_args()
    for provider in PROVIDERS[given.bf16 :]:
        traffic = step_traffic(provider, given.resolution, given.batch, given.bf16)
        own = step_traffic("native", given.resolution, given.batch, given.bf16).of_convolutions
        print(f"\n{provider}: {traffic.total_launches:,} launches, {traffic.total_bytes / 1e9:.2f} GB, ", end="")
        print(f"{traffic.total_bytes / own:.2f} times the convolutions' own")
        for name, size in traffic.bytes.most_common(given.rows):
            print(f"{name:34} {traffic.launches[name]:6,} launches {size / 1e9:8.2f} GB")


if __name__ == "__main__":
    main()
