"""Parts of a page that a command writes, between `<!-- written by `COMMAND` -->` and `<!-- end -->`."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
KERNELS_PAGE = ROOT / "docs/kernels.md"


def marked_part(page: str, command: str) -> str:
    """Return what a page has between the marks of a command."""
    return _pattern(command).search(page)[2]


def with_part(page: str, command: str, part: str) -> str:
    """Return the page with a new part between the marks of a command."""
    found, times = _pattern(command).subn(lambda match: match[1] + part + match[3], page)
    if times != 1:
        raise ValueError(f"the page has {times} parts that are written by `{command}`, expected 1")
    return found


def write_part(path: Path, command: str, part: str) -> None:
    path.write_text(with_part(path.read_text(encoding="utf-8"), command, part), encoding="utf-8")


def _pattern(command: str) -> re.Pattern:
    # The comments are paragraphs of their own, or Markdown would take a table beside them for text.
    return re.compile(rf"(<!-- written by `{re.escape(command)}` -->\n\n)(.*?)(\n\n<!-- end -->)", re.DOTALL)
