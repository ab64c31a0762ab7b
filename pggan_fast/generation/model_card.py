"""The model card of a run: what it was trained on, how, and what was measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pggan_fast.training.logging.report import CHARTS, POSITION
from pggan_fast.training.logging.statistics import read_lines
from pggan_fast.training.run_folder import read_config
from pggan_fast.utils.options import table_text

TOLD = (
    "objective",
    "precision",
    "batch_size",
    "learning_rate",
    "fmap_base",
    "fmap_max",
    "augment",
    "seed",
)


def card_of_run(run: Path, metadata: dict[str, Any]) -> str:
    """Return the Markdown text of a run's card below its heading data; no path of this machine is in it.

    The grid is that of `copy_grid`. Raises UserError if `run` is damaged.
    """
    kept, config = read_config(run, "--run")
    data = kept["data"]
    classes = f", {len(data['classes'])} classes" if data.get("classes") else ""
    lines = [
        f"# {one_line(run.absolute().name)}",
        "",
        f"A generator of images, {metadata['resolution']} px on the shorter side, trained by pggan-fast.",
    ]
    if newest_grid(run):
        lines += ["", "![Samples](grid.png)"]
    lines += [
        "",
        "## Training",
        "",
        "| | |",
        "|---|---|",
        f"| data | {one_line(config.data.name)}: {data.get('count', 0):,} images{classes} |",
        f"| images shown | {metadata['images'] / 1000:,.1f} thousand |",
    ]
    for name in TOLD:
        value = getattr(config, name, None)
        lines.append(f"| {name} | {one_line(table_text(value) if isinstance(value, dict) else str(value))} |")
    if measured := metrics_of(run):
        lines += [
            "",
            "## Metrics",
            "",
            "Of the averaged generator, measured during training.",
            "",
            "| | |",
            "|---|---|",
        ]
        lines += [f"| {one_line(name)} | {value:.6g} |" for name, value in measured.items()]
    return "\n".join(lines)


def metrics_of(run: Path) -> dict[str, float]:
    """Return the last value of each metric in stats.jsonl."""
    others = POSITION | {name for names in CHARTS.values() for name in names}
    lines = read_lines(run / "stats.jsonl")
    return {name: value for line in lines for name, value in line.items() if name not in others and value is not None}


def newest_grid(run: Path) -> Path | None:
    """Return the last sample grid of a run, if there is one."""
    grids = sorted((path for path in run.glob("samples/*.png") if path.stem.isdecimal()), key=lambda p: int(p.stem))
    return grids[-1] if grids else None


def copy_grid(run: Path, out: Path) -> None:
    """Copy the last sample grid, if there is one, to the card's folder."""
    if grid := newest_grid(run):
        shutil.copyfile(grid, out / "grid.png")


def one_line(text: str) -> str:
    """Return `text` as Markdown's tables and headings show it, whatever it holds."""
    shown = json.dumps(text, ensure_ascii=False)[1:-1]
    for sign in "\\`*_{}[]<>#|":
        shown = shown.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return shown
