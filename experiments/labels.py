"""Whether a conditional generator heeds its labels: `python -m experiments.labels --run RUN --data DATA`.

Each generated image, and each of every second real one, is given the class that most of its 10 nearest neighbours
among the other reals have, by their pixels, every class having one vote per share of its size. Prints how often that is
the class that the image was generated for, or has: the second is what such a simple classifier can reach at all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pggan_fast.generation.trained import alpha_of, generator_of_run
from pggan_fast.networks.sampling import generate, latents
from pggan_fast.training import PreparedData

NEIGHBOURS = 10
PER_CLASS = 100
RESOLUTION = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="a run with --labels")
    parser.add_argument("--data", type=Path, required=True, help="its data")
    given = parser.parse_args()
    data = PreparedData(given.data)
    reals = pixels(np.array(data.images(RESOLUTION)))
    labels = torch.from_numpy(np.array(data.labels))
    known, held_out = slice(0, None, 2), slice(1, None, 2)

    G, metadata = generator_of_run(given.run)
    labels_of_fakes = torch.arange(len(data.classes)).repeat_interleave(PER_CLASS)
    alpha = alpha_of(metadata)
    images = generate(
        G.eval(),
        latents(G, len(labels_of_fakes), seed=1),
        labels_of_fakes,
        resolution=metadata["resolution"],
        alpha=alpha,
    )
    fakes = pixels(images.transpose(0, 3, 1, 2))
    print("| class | real | generated |")
    print("|---|---|---|")
    right = [
        (classify(x, reals[known], labels[known]) == y).double()
        for x, y in ((reals[held_out], labels[held_out]), (fakes, labels_of_fakes))
    ]
    shares = [
        [found[of == index].mean().item() for found, of in zip(right, (labels[held_out], labels_of_fakes), strict=True)]
        for index in range(len(data.classes))
    ]
    for name, (real, fake) in zip(data.classes, shares, strict=True):
        print(f"| {name} | {real:.0%} | {fake:.0%} |")
    real, fake = np.mean(shares, axis=0)
    print(f"| mean (by chance {1 / len(data.classes):.0%}) | {real:.0%} | {fake:.0%} |")


def pixels(images: np.ndarray) -> Tensor:
    """uint8 [N, C, H, W] as fp32 rows at RESOLUTION."""
    x = torch.from_numpy(np.ascontiguousarray(images)).float()
    return torch.nn.functional.adaptive_avg_pool2d(x, RESOLUTION).flatten(1)


def classify(x: Tensor, known: Tensor, labels: Tensor) -> Tensor:
    """The class, int64 [N], of the nearest neighbours of x [N, D] in known [M, D]."""
    nearest = torch.cdist(x, known).topk(NEIGHBOURS, largest=False).indices
    votes = torch.nn.functional.one_hot(labels)[nearest].sum(dim=1) / torch.bincount(labels)
    return votes.argmax(dim=1)


if __name__ == "__main__":
    main()
