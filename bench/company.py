"""A training step beside another busy program: `python -m bench.company`.

Each way of waiting (libgomp's spin count) and of choosing threads runs in a process of its own, alone and then beside
a process that keeps one core busy; the ways take turns, so that a noisy machine meets all of them alike.
"""

import argparse
import os
import statistics
import subprocess
import sys

WAYS = {
    "libgomp's default": ({}, None),
    "spins 10,000": ({"GOMP_SPINCOUNT": "10000"}, None),
    "no spins": ({"GOMP_SPINCOUNT": "0"}, None),
    "spins 10,000, follows the load": ({"GOMP_SPINCOUNT": "10000"}, 0),
    "no spins, follows the load": ({"GOMP_SPINCOUNT": "0"}, 0),
    "one thread": ({}, 1),
}
"""{way: (environment, --threads)}"""


def images_per_second(seconds: float, resolution: int, batch: int, threads: int | None) -> float:
    """Train for so long, after a fifth of it as warm-up, and return what was reached."""
    import time

    import torch

    from pggan_fast.networks import Discriminator, Generator
    from pggan_fast.training import TrainStep
    from pggan_fast.training.runtime.threads import Threads

    if threads:
        torch.set_num_threads(threads)
    following = Threads() if threads == 0 else None
    step = TrainStep(*(network(resolution, fmap_base=1024, fmap_max=128) for network in (Generator, Discriminator)))
    real = torch.rand(batch, 3, resolution, resolution) * 2 - 1
    begin, done, counted = time.monotonic(), 0, 0.0
    while (now := time.monotonic()) - begin < seconds:
        if not counted and now - begin > seconds / 5:
            counted, done = now, 0
        if following is not None:
            following.follow()
        step(real)
        done += batch
    return done / (time.monotonic() - counted)


def run(way: str, busy: bool, seconds: float, resolution: int, batch: int) -> float:
    """Measure one way in a process of its own."""
    environment, threads = WAYS[way]
    others = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")}
    company = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        code = f"from bench.company import *; print(images_per_second({seconds}, {resolution}, {batch}, {threads}))"
        found = subprocess.run(
            [sys.executable, "-c", code], env=others | environment, capture_output=True, text=True, check=True
        )
        return float(found.stdout)
    finally:
        if company is not None:
            company.kill()
            company.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.company", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, metavar="X", help="Seconds of one measurement.")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="Measurements of each way.")
    parser.add_argument("--resolution", type=int, default=16, metavar="PX", help="Resolution of the images.")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="Images of a batch.")
    given = parser.parse_args()
    found: dict[tuple[str, bool], list[float]] = {(way, busy): [] for way in WAYS for busy in (False, True)}
    for _ in range(given.rounds):
        for (way, busy), rates in found.items():
            rates.append(run(way, busy, given.seconds, given.resolution, given.batch))
    print("| way | images a second alone | beside one busy process | times slower |\n|---|---|---|---|")
    for way in WAYS:
        alone, beside = (statistics.median(found[way, busy]) for busy in (False, True))
        print(f"| {way} | {alone:.1f} | {beside:.1f} | {alone / beside:.2f} |")


if __name__ == "__main__":
    main()
