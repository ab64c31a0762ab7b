"""One short run per objective and its distance to the data: `python -m experiments.objectives`.

Prints the rows of the table in docs/training.md. Images of 16 px, no growth, the same networks, batches and
latents for all; `SETTINGS` holds what an objective was given beyond its defaults.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from pggan_fast.interop.weights import load_generator
from pggan_fast.metrics import SlicedWasserstein
from pggan_fast.networks.sampling import generate, latents
from pggan_fast.training import PreparedData, RunFolder, TrainConfig, train
from pggan_fast.training.build import build_networks
from pggan_fast.training.checkpoint import checkpoints, load_checkpoint
from pggan_fast.training.losses import OBJECTIVES

RESOLUTION, COUNT = 16, 1700
SETTINGS: dict[str, dict] = {
    "wgan": {"d_steps": 3},
    "lsgan": {"r1_weight": 1.0},
    "non-saturating": {"r1_weight": 1.0},
    "minimax": {"r1_weight": 1.0},
    "hinge": {"r1_weight": 1.0},
    "kl": {"r1_weight": 1.0},
    "reverse-kl": {"r1_weight": 1.0},
    "pearson": {"r1_weight": 1.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="prepared data of 16 px or more")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs; finished ones are not repeated")
    parser.add_argument("--kimg", type=float, default=7.5, help="thousand images per run")
    parser.add_argument("--only", nargs="*", default=list(OBJECTIVES), help="objectives")
    given = parser.parse_args()
    data = PreparedData(given.data)
    reals = np.array(data.images(RESOLUTION)[: 2 * COUNT : 2])
    print("| objective | settings | SWD at first | after a third | two thirds | all | D loss | G loss | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in given.only:
        print(row(name, data, reals, given.out / name, given.kimg), flush=True)


def row(name: str, data: PreparedData, reals: np.ndarray, out: Path, kimg: float) -> str:
    """Train if that has not been done, and measure."""
    config = settings(name, data.path, out, kimg)
    started = time.monotonic()
    if not (out / "final").is_dir() and not train(RunFolder.create(config)):
        raise SystemExit(f"{out}: stopped")
    torch.manual_seed(config.seed)
    distances = [distance(reals, build_networks(config, data)[0])]
    for part in (1, 2, 3):
        distances.append(distance(reals, average_after(out, part)))
    lines = [json.loads(line) for line in (out / "stats.jsonl").read_text().splitlines()]
    seconds = lines[-1]["seconds"] if "seconds" in lines[-1] else time.monotonic() - started
    assert all(np.isfinite([line["d_loss"], line["g_loss"]]).all() and not line["skipped"] for line in lines), name
    told = ", ".join(f"{key} {value:g}" for key, value in SETTINGS.get(name, {}).items()) or "-"
    numbers = " | ".join(f"{value:.0f}" for value in distances)
    last = lines[-1]
    return f"| {name} | {told} | {numbers} | {last['d_loss']:.2f} | {last['g_loss']:.2f} | {seconds:.0f} |"


def settings(name: str, data: Path, out: Path, kimg: float) -> TrainConfig:
    return TrainConfig(
        data=data,
        out=out,
        device="cpu",
        resolution=RESOLUTION,
        start_resolution=RESOLUTION,
        stable_kimg=kimg,
        total_kimg=kimg,
        batch_size={4: 16},
        learning_rate={4: 1e-3},
        fmap_base=256,
        fmap_max=32,
        ema_decay=0.99,
        objective=name,
        tick_kimg=kimg / 12,
        sample_kimg=kimg / 3,
        checkpoint_kimg=kimg / 3,
        **SETTINGS.get(name, {}),
    )


def average_after(run: Path, part: int):
    """The averaged generator after `part` thirds."""
    if part == 3:
        return load_generator(run / "final" / "generator.safetensors")[0]
    state = load_checkpoint(checkpoints(run / "checkpoints")[part - 1])
    G = load_generator(run / "final" / "generator.safetensors")[0]
    G.load_state_dict(state["step"]["G_ema"])
    return G


def distance(reals: np.ndarray, G) -> float:
    images = generate(G.eval(), latents(G, len(reals), seed=1), None, resolution=RESOLUTION)
    with SlicedWasserstein() as swd:
        swd.add_reals(reals)
        swd.add_fakes(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        return swd.values()["average"]


if __name__ == "__main__":
    main()
