"""Line charts as SVG text, for the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]
Range = tuple[float, float]

WIDTH, HEIGHT = 520, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 34, 32  # margins around the axes
SHOWN = 400  # points per line: more than a screen can tell apart
SPIKES = 0.01  # of the values at either end may lie outside of the axes
LINES = 5  # of the grid, about


def chart(title: str, lines: Mapping[str, Points], marks: Points = ()) -> str:
    """One chart: lines by name, and `marks` (x, resolution) as dashed verticals where another stage begins.

    Values that are not finite are left out; an axis does not stretch for the few most extreme ones.
    """
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in lines.items()}
    shown = {name: _thinned(points) for name, points in finite.items() if points}
    if not shown:
        return ""
    across = _padded(*_ends([x for points in shown.values() for x, _ in points]), 0.0)
    up = _padded(*_ends([y for points in shown.values() for _, y in points], SPIKES), 0.06)

    def place(x: float, y: float) -> tuple[float, float]:
        inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        right = (x - across[0]) / (across[1] - across[0]) * inner_width
        above = (min(max(y, up[0]), up[1]) - up[0]) / (up[1] - up[0]) * inner_height
        return round(LEFT + right, 1), round(HEIGHT - BOTTOM - above, 1)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts.append(f'<text class="title" x="{LEFT}" y="15">{escape(title)}</text>')
    for value in _ticks(up):
        _, y = place(across[0], value)
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{y + 4}">{value:g}</text>')
    for value in _ticks(across):
        x, _ = place(value, up[0])
        parts.append(f'<text class="tick" text-anchor="middle" x="{x}" y="{HEIGHT - BOTTOM + 16}">{value:g}</text>')
    for at, resolution in marks:
        if across[0] < at < across[1]:
            x, _ = place(at, up[0])
            parts.append(f'<path class="mark" d="M{x} {TOP}V{HEIGHT - BOTTOM}"/>')
            parts.append(f'<text class="tick" x="{x + 3}" y="{TOP + 9}">{resolution:g} px</text>')
    parts.append(f'<text class="tick" text-anchor="end" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}">thousand images</text>')
    right = WIDTH - RIGHT
    for number, (name, points) in reversed(list(enumerate(shown.items()))):
        path = " ".join(f"{x} {y}" for x, y in (place(*point) for point in points))
        parts.append(f'<path class="line c{number % 6}" d="M{path}"/>')
        if len(shown) > 1:
            parts.append(f'<text class="name c{number % 6}" text-anchor="end" x="{right}" y="15">{escape(name)}</text>')
            right -= 7 * len(name) + 14
    return "".join([*parts, "</svg>"])


def _thinned(points: Points) -> Points:
    """Means of neighbours, so many that SHOWN points are left."""
    size = math.ceil(len(points) / SHOWN)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [tuple(sum(values) / len(group) for values in zip(*group, strict=True)) for group in groups]


def _ends(values: list[float], left_out: float = 0.0) -> Range:
    """The smallest and the largest, after a share of them at each end."""
    ordered = sorted(values)
    skipped = int(left_out * len(ordered))
    return ordered[skipped], ordered[len(ordered) - 1 - skipped]


def _padded(low: float, high: float, share: float) -> Range:
    """Wider by `share` at both ends, and never empty."""
    margin = (high - low) * share or (0.0 if high > low else max(abs(low), 1.0) * 0.5)
    return low - margin, high + margin


def _ticks(ends: Range) -> list[float]:
    """Round numbers, about LINES of them."""
    rough = (ends[1] - ends[0]) / LINES
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.ceil(ends[0] / step), math.floor(ends[1] / step)
    return [float(f"{number * step:.6g}") for number in range(first, last + 1)]
