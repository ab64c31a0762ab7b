"""The findings as one page that a person reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.gpu_check.findings import read
from bench.harness.report import table


def text(out: Path) -> str:
    """Return the page: how the parts ended, what failed, then a table of each part's findings."""
    found = read(out)
    ended = [line for line in found if line["part"] == "gpu_check"]
    findings = [line for line in found if line["part"] != "gpu_check"]
    sections = [
        "# What this GPU showed",
        f"```\n{(out / 'machine.txt').read_text(encoding='utf-8')}```",
        table(
            ["part", "result", "seconds", "last line"],
            [[line["what"], line["result"], line["elapsed"], line["last_line"].replace("|", "\\|")] for line in ended],
        ),
    ]
    failed = [line for line in findings if "failed" in line]
    if failed:
        rows = [[line["part"], line["what"], line["failed"].replace("|", "\\|")] for line in failed]
        sections += ["## What failed", table(["part", "what", "error"], rows)]
    for name in dict.fromkeys(line["part"] for line in findings):
        lines = [line for line in findings if line["part"] == name and "failed" not in line]
        sections += [f"## {name}", *_tables(lines)]
    return "\n\n".join(sections) + "\n"


def _tables(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return one table with a column for every value that any of the lines has."""
    lines = list(lines)
    columns = list(dict.fromkeys(name for line in lines for name in line if name not in ("part", "what")))
    if not columns:
        return []
    return [table(["what", *columns], [[line["what"], *(line.get(name, "") for name in columns)] for line in lines])]
