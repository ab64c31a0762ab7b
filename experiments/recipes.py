"""The paper's recipe against modern ones, on equal processor time: `python -m experiments.recipes`.

    python -m experiments.recipes train paper --seed 0 --data DATA --out FOLDER --resolution 32 --seconds 3600
    python -m experiments.recipes plot --out FOLDER --figure docs/images/recipes.png
    python -m experiments.recipes plot --out experiments/results/64px --figure docs/images/recipes-64.png

Every run has one thread, the same data, batches and channels; what differs is in `RECIPES`. A run that was interrupted
continues when it is asked for again, and one that has ended can be given more time. The plot shows every seed, the
table medians over them, and when a recipe reached the paper's end. What docs/training.md shows of an hour at
64 px lies in experiments/results, for more seeds to be added.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.timed_run import lines_of, run_for
from pggan_fast.training import TrainConfig

FULL_SIZE: dict[str, Any] = {"progressive": False}
FROM_16_PX: dict[str, Any] = {"start_resolution": 16, "stable_kimg": 16.0, "transition_kimg": 4.0}
CONSTANT: dict[str, Any] = {"learning_rate": {4: 2e-3}}
# A relativistic run with weights of 1 had a KID of 0.19 at 32 px after 300 seconds, one with 0.1 had 0.12.
SINGLE: dict[str, Any] = {
    "objective": "non-saturating",
    "r1_weight": 0.1,
    "ema_half_life_kimg": 4.0,
    "learning_rate": "cosine:3e-3:5e-4:{rate_kimg:g}",
}
PAIRED: dict[str, Any] = {**SINGLE, "objective": "relativistic", "r2_weight": 0.1}
LAZY: dict[str, Any] = {"penalty_every": 8}
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "non-saturating": {**SINGLE, **FULL_SIZE},
    "non-saturating, grown": SINGLE,
    "non-saturating, lazy": {**SINGLE, **FULL_SIZE, **LAZY},
    "non-saturating, lazy, constant rate": {**SINGLE, **FULL_SIZE, **LAZY, **CONSTANT},
    "non-saturating, lazy, ADA": {**SINGLE, **FULL_SIZE, **LAZY, "augment": "ada"},
    "relativistic": {**PAIRED, **FULL_SIZE},
    "relativistic, grown": PAIRED,
    "relativistic, lazy": {**PAIRED, **FULL_SIZE, **LAZY},
    "relativistic, lazy, from 16 px": {**PAIRED, **LAZY, **FROM_16_PX},
    "relativistic, lazy, from 16 px, ADA": {**PAIRED, **LAZY, **FROM_16_PX, "augment": "ada"},
    "relativistic, lazy, ADA": {**PAIRED, **FULL_SIZE, **LAZY, "augment": "ada"},
}
METRICS = ("swd_average", "kid_lite0")


def settings(name: str, seed: int, data: Path, out: Path, resolution: int, rate_kimg: float = 160.0) -> TrainConfig:
    """Return one recipe's run: at 32 px phases of 4 kimg, at 64 px of 8, as its growth needs them.

    Modern recipes lower their learning rate over `rate_kimg` thousand images.
    """
    kimg = resolution / 8
    paper = TrainConfig(
        data=data,
        out=out,
        device="cpu",
        seed=seed,
        resolution=resolution,
        stable_kimg=kimg,
        transition_kimg=kimg,
        total_kimg=100_000,
        batch_size={4: 16},
        learning_rate={4: 2e-3},
        fmap_base=8 * resolution,
        fmap_max=32,
        ema_decay=0.99,
        metrics="swd,kid-lite0",
        metric_kimg=16.0,
        metric_images=1024,
        tick_kimg=1.0,
        sample_kimg=16.0,
        tensorboard=False,
    )
    recipe = dict(RECIPES[name])
    if isinstance(curve := recipe.get("learning_rate"), str):
        recipe["learning_rate"] = curve.format(rate_kimg=rate_kimg)
    return replace(paper, **recipe)


def train(
    name: str, seed: int, data: Path, out: Path, resolution: int, seconds: float, rate_kimg: float = 160.0
) -> None:
    """Train one recipe in out/NAME-SEED until it has had its time, from where it was stopped."""
    folder = out / f"{_file_name(name)}-{seed}"
    run_for(settings(name, seed, data, folder, resolution, rate_kimg), seconds)


def _file_name(recipe: str) -> str:
    return recipe.replace(",", "").replace(" ", "-")


def found(out: Path) -> dict[str, list[list[dict[str, float]]]]:
    """{recipe: the distances of each seed}, at the full resolution alone: blurred images can be close by accident."""
    runs = {}
    for name in RECIPES:
        files = sorted(out.glob(f"{_file_name(name)}-[0-9]*.jsonl"))
        lines = [lines_of(file) for file in files]
        full = max((line["resolution"] for run in lines for line in run), default=0)
        if lines:
            runs[name] = [[line for line in run if line["resolution"] == full] for run in lines]
    return runs


def reached(run: list[dict[str, float]], metric: str, distance: float) -> float | None:
    """Return the seconds after which a run was as near as this, None if it never was."""
    return next((line["seconds"] for line in run if line[metric] <= distance), None)


def table(runs: dict[str, list[list[dict[str, float]]]], metric: str) -> str:
    """Markdown: medians over the seeds of the last distance, and of the time to what the paper's recipe ended with."""
    goal = statistics.median(run[-1][metric] for run in runs["paper"])
    lines = [f"| recipe | seeds | {metric} at the end | seconds to {goal:.4g} | times less |", "|---|---|---|---|---|"]
    paper = statistics.median(run[-1]["seconds"] for run in runs["paper"])
    for name, seeds in runs.items():
        last = statistics.median(run[-1][metric] for run in seeds)
        times = [seconds for run in seeds if (seconds := reached(run, metric, goal)) is not None]
        # Reached by the median seed or not at all.
        shown = ("never", "") if 2 * len(times) <= len(seeds) else _against(statistics.median(times), paper)
        lines.append(f"| {name} | {len(seeds)} | {last:.4g} | {shown[0]} | {shown[1]} |")
    return "\n".join(lines)


def _against(seconds: float, paper: float) -> tuple[str, str]:
    return f"{seconds:.0f}", f"{paper / seconds:.2f}"


def plot(runs: dict[str, list[list[dict[str, float]]]], path: Path) -> None:
    """Draw every seed thinly and in one colour for a recipe."""
    import matplotlib.pyplot as plt  # only here: it is for this figure alone

    figure, all_axes = plt.subplots(1, len(METRICS), figsize=(11, 4))
    for axes, metric in zip(all_axes, METRICS, strict=True):
        for index, (name, seeds) in enumerate(runs.items()):
            for number, run in enumerate(seeds):
                label = name if number == 0 else None
                values = [line[metric] for line in run]
                axes.plot([line["seconds"] for line in run], values, color=f"C{index}", linewidth=1, label=label)
        axes.set(xlabel="seconds of one CPU core", ylabel=metric, ylim=(0, None))
    all_axes[0].legend(fontsize="x-small")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.recipes", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train", help="Train one recipe.")
    one.add_argument("name", choices=tuple(RECIPES), help="Recipe.")
    one.add_argument("--seed", type=int, default=0, metavar="N", help="Seed of the run.")
    one.add_argument("--data", type=Path, required=True, metavar="PATH", help="Prepared dataset.")
    one.add_argument("--resolution", type=int, default=32, metavar="PX", help="Resolution of the images.")
    one.add_argument("--seconds", type=float, default=3600.0, metavar="X", help="Seconds of the processor.")
    one.add_argument(
        "--rate-kimg", type=float, default=160.0, metavar="KIMG", help="Modern recipes lower the rate over so much."
    )
    plots = commands.add_parser("plot", help="Draw the curves and print the tables.")
    plots.add_argument("--figure", type=Path, required=True, metavar="PATH", help="PNG that is written.")
    for each in (one, plots):
        each.add_argument("--out", type=Path, required=True, metavar="PATH", help="Folder of all runs.")
    given = parser.parse_args()
    if given.command == "train":
        train(given.name, given.seed, given.data, given.out, given.resolution, given.seconds, given.rate_kimg)
        return
    runs = found(given.out)
    plot(runs, given.figure)
    print("\n\n".join(table(runs, metric) for metric in METRICS))


if __name__ == "__main__":
    main()
