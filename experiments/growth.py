"""Growing against training at the full size, on equal CPU time: `python -m experiments.growth`.

    python -m experiments.growth train progressive --data DATA --out FOLDER      (and full-size, conditional)
    python -m experiments.growth plot --out FOLDER --figure docs/images/growth.png

Every run has the same networks, data and seed; what differs is in `RUNS`. Time is that of the processor, so that
other work on the machine counts less; measuring the distance is left out of it.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.timed_run import lines_of, run_for
from pggan_fast.training import TrainConfig

RESOLUTION = 32
GAP = 16  # pixels between grids
RUNS: dict[str, dict[str, Any]] = {
    "progressive": {},
    "full-size": {"progressive": False},
    "conditional": {"progressive": False, "labels": True},
}
NAMES = {
    "progressive": "grown from 4 px",
    "full-size": "32 px from the start",
    "conditional": "32 px from the start, with labels",
}


def train_one(name: str, data: Path, out: Path, seconds: float, kimg: float) -> None:
    """One of RUNS in out/name, its distances in out/name.jsonl. `kimg`: per phase of the growth."""
    config = TrainConfig(
        data=data,
        out=out / name,
        device="cpu",
        resolution=RESOLUTION,
        stable_kimg=kimg,
        transition_kimg=kimg,
        total_kimg=10_000,
        batch_size={4: 16},
        learning_rate={4: 2e-3},
        fmap_base=256,
        fmap_max=32,
        ema_decay=0.99,
        metrics="swd",
        metric_kimg=1.0,
        metric_images=1024,
        tick_kimg=1.0,
        sample_kimg=1.0,
        tensorboard=False,
        **RUNS[name],
    )
    run_for(config, seconds)


def plot(out: Path, path: Path) -> None:
    """Distance over time of every run that there is, and how long each took to what all of them have reached."""
    import matplotlib.pyplot as plt  # only here: it is for this figure alone

    found = {name: lines_of(out / f"{name}.jsonl") for name in RUNS if (out / f"{name}.jsonl").exists()}
    figure, axes = plt.subplots(figsize=(7.5, 4))
    for name, lines in found.items():
        axes.plot([line["seconds"] for line in lines], [line["swd_average"] for line in lines], label=NAMES[name])
    stages = sorted({line["resolution"] for line in found["progressive"]})
    for before, after in pairwise(found["progressive"]):
        if after["resolution"] != before["resolution"]:
            axes.axvline(before["seconds"], color="0.8", linestyle=":", zorder=0)
            # Each a line above the one before: the first stages take seconds.
            place = (before["seconds"], 0.01 + 0.05 * stages.index(after["resolution"]))
            axes.annotate(
                f" {after['resolution']} px", place, xycoords=("data", "axes fraction"), fontsize=8, color="0.4"
            )
    axes.set(xlabel="seconds of one CPU core", ylabel="sliced Wasserstein distance x 1000", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)

    # Blurred images of smaller stages can be close by accident: only the full resolution counts.
    full = {name: [line for line in lines if line["resolution"] == RESOLUTION] for name, lines in found.items()}
    equal = max(min(line["swd_average"] for line in lines) for lines in full.values())
    print("| | seconds | last distance | best distance | seconds to", f"{equal:.1f} |")
    print("|---|---|---|---|---|")
    for name, lines in full.items():
        best = min(line["swd_average"] for line in lines)
        first = next(line for line in lines if line["swd_average"] <= equal)
        last = lines[-1]
        numbers = [f"{last['seconds']:.0f}", f"{last['swd_average']:.1f}", f"{best:.1f}", f"{first['seconds']:.0f}"]
        print(f"| {NAMES[name]} | {' | '.join(numbers)} |")


def grids(out: Path, path: Path) -> None:
    """The newest sample grids of all runs side by side, six columns of each."""
    newest = [Image.open(max((out / name / "samples").glob("*.png"))) for name in RUNS]
    parts = [image.crop((0, 0, image.width // 2, image.height)) for image in newest]
    size = sum(part.width + GAP for part in parts) - GAP, max(part.height for part in parts)
    joined = Image.new("RGB", size, "white")
    left = 0
    for part in parts:
        joined.paste(part, (left, 0))
        left += part.width + GAP
    joined.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train")
    one.add_argument("name", choices=tuple(RUNS))
    one.add_argument("--data", type=Path, required=True, help="prepared data of 32 px or more, with classes")
    one.add_argument("--seconds", type=float, default=300.0, help="of the processor")
    one.add_argument("--kimg", type=float, default=2.0, help="thousand images per phase of the growth")
    plots = commands.add_parser("plot")
    plots.add_argument(
        "--figure", type=Path, required=True, help="the curves; the grids go beside it as NAME-grids.png"
    )
    given = parser.parse_args()
    if given.command == "plot":
        plot(given.out, given.figure)
        grids(given.out, given.figure.with_name(f"{given.figure.stem}-grids.png"))
    else:
        train_one(given.name, given.data, given.out, given.seconds, given.kimg)


if __name__ == "__main__":
    main()
