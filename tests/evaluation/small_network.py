"""A small network in the place of Inception, whose weights are a download; run under torchrun it is a command line.

python -m tests.evaluation.small_network COMMAND ...: `pggan-fast COMMAND ...` with it.
"""

import sys

import torch
from torch import Tensor

from pggan_fast import cli
from pggan_fast.metrics import collection


class SmallNetwork:
    """Sixteen ReLU features of 5x5 patches' random projections, pooled, and ten logits of them."""

    name = "Inception"
    seed = 0

    def __init__(self, device: torch.device, weights=None) -> None:
        random = torch.Generator().manual_seed(self.seed)
        self.weight = torch.randn(16, 3, 5, 5, generator=random).to(device) / 9
        self.to_logits = torch.randn(16, 10, generator=random).to(device) * 4

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        patches = torch.nn.functional.conv2d(images.float() / 127.5 - 1, self.weight)
        features = patches.relu().mean(dim=(2, 3))
        return {"features": features, "logits": features @ self.to_logits}


if __name__ == "__main__":
    collection.Inception = SmallNetwork
    sys.exit(cli.main(sys.argv[1:]))
