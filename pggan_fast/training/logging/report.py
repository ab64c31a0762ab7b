"""report.html: curves, samples and settings of a run, in one file that needs nothing else to be looked at."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from pggan_fast.training.logging.charts import chart
from pggan_fast.training.logging.statistics import read_lines
from pggan_fast.training.run_folder import RunFolder
from pggan_fast.utils.atomic_write import atomic_write
from pggan_fast.utils.options import to_json
from pggan_fast.utils.progress_bar import duration

GRID_NAME = re.compile(r"[0-9]{9,18}\.png")
GRIDS = 12  # of all sample grids, evenly over time and the last one
WIDEST = 768  # pixels of an embedded grid
REFRESH_SECONDS = 30  # by the browser, while the run continues

CHARTS = {
    "losses": ("d_loss", "g_loss"),
    "mean scores of D": ("real_score", "fake_score"),
    "norm of D's gradient at mixed images": ("gradient_norm",),
    "norms of D's gradient at reals and at fakes": ("real_gradient_norm", "fake_gradient_norm"),
    "images per second": ("images_per_second",),
    "steps left out, not finite": ("skipped",),
    "peak memory, MiB": ("peak_memory_mib",),
}
"""What is plotted together, by title; every other number in stats.jsonl, metrics above all, has a chart of its own."""
POSITION = {"images", "resolution", "alpha", "batch_size", "seconds"}

Line = dict[str, Any]

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #6a737d; --rule: #d8dee4; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #8b949e; --rule: #30363d; --paper: #0d1117; } }
body { margin: 2rem auto; max-width: 1100px; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .25rem 0; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 1rem; }
.chart { width: 100%; font: 11px system-ui, sans-serif; } .chart text { fill: var(--soft); }
.chart .title { fill: var(--ink); font-size: 13px; font-weight: 600; }
.chart path { fill: none; } .grid { stroke: var(--rule); } .mark { stroke: var(--soft); stroke-dasharray: 2 4; }
.line { stroke-width: 1.6; stroke-linejoin: round; stroke: var(--c); } .chart .name { fill: var(--c); font-size: 12px; }
.c0 { --c: #2f81f7; } .c1 { --c: #db6d28; } .c2 { --c: #3fb950; } .c3 { --c: #a371f7; } .c4 { --c: #e5534b; }
.c5 { --c: #b08800; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .85rem; } img { max-width: 100%; display: block; }
.grids { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(240px, 100%), 1fr)); gap: 1rem;
  margin-top: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--rule); text-align: left; }
.settings td:last-child { overflow-wrap: anywhere; } td.n, th.n { text-align: right; }
@media (max-width: 600px) { body { margin: 1rem auto; } table { font-size: .78rem; line-height: 1.35; }
  th, td { padding-right: .4rem; vertical-align: top; } }
@media (max-width: 360px) { table { font-size: .68rem; } th, td { padding-right: .3rem; } }
"""


class Report:
    """The writer of report.html, anew at every tick, from stats.jsonl and the sample grids."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._images: dict[Path, str] = {}

    def write(self, *, running: bool = True) -> None:
        """Write the page; while the run is `running`, the browser is asked to load it again now and then."""
        lines = read_lines(self.run.stats_file)
        with atomic_write(self.run.path / "report.html") as aside:
            # Names of files need not be text.
            aside.write_text(self._page(lines, running), encoding="utf-8", errors="backslashreplace")

    def _page(self, lines: list[Line], running: bool) -> str:
        name = escape(self.run.path.absolute().name)
        refresh = f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">' if running else ""
        body = [f"<h1>{name}</h1>", self._summary(lines)]
        if lines:
            body += ["<h2>Curves</h2>", f'<div class="charts">{"".join(_charts(lines))}</div>']
        body += self._grids()
        if lines:
            body += ["<h2>Stages</h2>", _stages(lines)]
        settings = _table(("setting", "value"), self._settings())
        body += ["<h2>Settings</h2>", f'<div class="settings">{settings}</div>']
        return (
            f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{refresh}<title>{name}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>\n'
            + "\n".join(body)
            + "\n</body></html>\n"
        )

    def _summary(self, lines: list[Line]) -> str:
        total = self.run.config.schedule().total_images
        if not lines:
            return f"<p>0 of {total:,} images</p>"
        last = lines[-1]
        stage = f"{last['resolution']} px, " + (f"alpha {last['alpha']:.2f}" if last["alpha"] < 1 else "stable")
        text = (
            f"{last['images']:,} of {total:,} images ({last['images'] / total:.0%}), {stage},"
            f" {duration(last['seconds'])} so far, {last['images_per_second']:g} images per second"
        )
        return f"<p>{escape(text)}</p>"

    def _settings(self) -> list[tuple[str, str]]:
        data = self.run.data
        about = [("data", f"{data.count:,} images, {data.channels} channels, {len(data.classes)} classes")]
        return about + [(name, _plain(value)) for name, value in to_json(self.run.config).items() if value is not None]

    def _grids(self) -> list[str]:
        files = sorted(path for path in self.run.samples.glob("*.png") if GRID_NAME.fullmatch(path.name))
        chosen = sorted({round(index * (len(files) - 1) / (GRIDS - 1)) for index in range(GRIDS if files else 0)})
        figures = [self._figure(files[index]) for index in chosen]
        *before, newest = [figure for figure in figures if figure] or [""]
        if not newest:
            return []
        return ["<h2>Samples</h2>", newest, f'<div class="grids">{"".join(before)}</div>' if before else ""]

    def _figure(self, file: Path) -> str:
        """Return a sample grid with its caption, nothing for a file that is no image."""
        if file not in self._images:
            try:
                self._images[file] = _embedded(file)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                return ""
        caption = f"{int(file.stem) / 1000:,g} thousand images"
        source = self._images[file]
        return f'<figure><img src="{source}" alt="samples"><figcaption>{escape(caption)}</figcaption></figure>'


def _charts(lines: list[Line]) -> list[str]:
    marks = [
        (before["images"] / 1000, after["resolution"])
        for before, after in pairwise(lines)
        if after["resolution"] != before["resolution"]
    ]
    together = {name for names in CHARTS.values() for name in names}
    numbers = {name for line in lines for name, value in line.items() if isinstance(value, (int, float))}
    alone = {name: (name,) for name in sorted(numbers - together - POSITION)}

    def points(name: str) -> list[tuple[float, float]]:
        return [(line["images"] / 1000, line[name]) for line in lines if line.get(name) is not None]

    charts = {}
    for title, names in {**CHARTS, **alone}.items():
        if any(value for name in names for _, value in points(name)):
            charts[title] = chart(title, {name: points(name) for name in names}, marks)
    return list(charts.values())


def _stages(lines: list[Line]) -> str:
    """A row per resolution, fading and stable: what was shown, how long it took, how fast it was."""
    rows: dict[tuple[int, str], list[float]] = {}
    before = {"images": 0, "seconds": 0.0}
    for line in lines:
        row = rows.setdefault((line["resolution"], "fading in" if line["alpha"] < 1 else "stable"), [0, 0.0, 0])
        row[0] += line["images"] - before["images"]
        row[1] += line["seconds"] - before["seconds"]
        row[2] = line["batch_size"]
        before = line
    return _table(
        ("resolution", "phase", "batch", "images", "time", "images per second"),
        [
            (f"{resolution} px", phase, batch, f"{images:,}", duration(seconds), f"{images / max(seconds, 1e-9):,.1f}")
            for (resolution, phase), (images, seconds, batch) in rows.items()
        ],
        numbers_from=2,
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]], numbers_from: int = 99) -> str:
    def row(values: Sequence[Any], tag: str) -> str:
        cells = (
            f"<{tag}{' class=n' if column >= numbers_from else ''}>{escape(str(value))}</{tag}>"
            for column, value in enumerate(values)
        )
        return f"<tr>{''.join(cells)}</tr>"

    return f"<table>{row(head, 'th')}{''.join(row(values, 'td') for values in rows)}</table>"


def _plain(value: Any) -> str:
    return ", ".join(f"{key}: {item}" for key, item in value.items()) if isinstance(value, dict) else str(value)


def _embedded(file: Path) -> str:
    """Return the image as a data URL, no wider than WIDEST."""
    with Image.open(file, formats=["PNG"]) as image:
        image = image.convert("RGB")
        image.thumbnail((WIDEST, 2 * WIDEST))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
