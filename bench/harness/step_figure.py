"""The README's figure: how many times as fast as eager PyTorch a training step is, by resolution.

python -m bench.harness.step_figure
"""

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

DOCS = Path(__file__).parents[2] / "docs"
BASELINES = {"fp32": "eager channels last fp32", "bf16": "eager channels last bf16"}


def speedups(page: str) -> dict[str, dict[int, float]]:
    """Return, by precision and resolution, the speed-up over eager in the same precision and layout."""
    found: dict[str, dict[int, float]] = {name: {} for name in BASELINES}
    (section,) = re.findall(r"^## Training step\n(.*?)^## ", page, flags=re.MULTILINE | re.DOTALL)
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for column, (precision, baseline) in enumerate(BASELINES.items(), start=3):
            if len(cells) == 5 and cells[1] == baseline:
                found[precision][int(cells[0].split("x")[-1])] = float(cells[column])
    return found


def plot(found: dict[str, dict[int, float]], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(7, 3), layout="constrained")
    for shift, (precision, values) in zip((-0.2, 0.2), found.items(), strict=True):
        bars = axes.bar([at + shift for at in range(len(values))], list(values.values()), 0.4, label=precision)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.axhline(1.0, color="black", linewidth=1)
    axes.set_xticks(range(len(found["fp32"])), [f"{resolution} px" for resolution in found["fp32"]])
    axes.set_ylabel("times as fast as eager")
    axes.set_title("A training step on two CPU cores against eager PyTorch, both channels_last", fontsize=10)
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    plot(speedups((DOCS / "benchmarks.md").read_text(encoding="utf-8")), DOCS / "images" / "step.png")
