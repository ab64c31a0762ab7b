"""Plots of a result: speed-up over eager, and the share of a copy's speed, against the resolution."""

from collections import defaultdict
from pathlib import Path

from bench.traffic import report

COLUMNS = 3


def write(result: dict, folder: Path, name: str) -> list[Path]:
    """`folder/name-speedup.png`, `-share.png` and `-traffic.png`; [] without matplotlib or without anything to plot."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    paths = []
    for kind, other, label in (
        ("speedup", "eager", "times as fast as eager"),
        ("share", "copy", "share of a copy's speed"),
    ):
        suites = lines_of(result["records"], other)
        if not suites:
            continue
        rows = -(-len(suites) // COLUMNS)
        figure = Figure(figsize=(5 * COLUMNS, 3.6 * rows), layout="constrained")
        axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
        for axis, (suite, lines) in zip(axes, suites.items(), strict=False):
            for line, points in sorted(lines.items()):
                axis.plot(*zip(*sorted(points.items()), strict=True), marker="o", label=line)
            axis.axhline(1, color="black", linewidth=0.8)
            axis.set(title=suite, xlabel="resolution", ylabel=label, xscale="log", ylim=(0, None))
            ticks = sorted({x for points in lines.values() for x in points})
            axis.set_xticks(ticks, [str(x) for x in ticks])
            axis.minorticks_off()
            axis.legend(fontsize="x-small")
        for axis in axes[len(suites) :]:
            axis.remove()
        paths.append(folder / f"{name}-{kind}.png")
        figure.savefig(paths[-1], dpi=80)
    traffic = folder / f"{name}-traffic.png"
    return [*paths, traffic] if report.plot(result["records"], traffic) else paths


def lines_of(records: list[dict], other: str) -> dict[str, dict[str, dict[int, float]]]:
    """{suite: {dtype, layout and pass: {resolution: median speed-up of ours over `other`}}} of suites of many sizes."""
    suites: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        sizes = record["shape"].split("x")
        over = record["speedups"].get("ours", {})
        if len(sizes) == 4 and other in over:
            line = f"{record['dtype']} {record['layout']} {record['pass']}"
            suites[record["suite"]][line][int(sizes[3])] = over[other]["median"]
    return {suite: dict(lines) for suite, lines in suites.items() if any(len(points) > 2 for points in lines.values())}
