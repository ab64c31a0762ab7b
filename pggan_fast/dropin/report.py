"""The report of `explain`: captured graphs, and what was replaced or left in them."""

from dataclasses import dataclass, field
from typing import Any

STATE, COMPILED, JIT_IGNORED = "_pggan_fast", "_compiled_call_impl", "__jit_ignored_attributes__"
"""Attributes of an accelerated module."""


@dataclass(frozen=True)
class Row:
    """`module` is a path; `status` "replaced" or "left"; `what` the operations replaced, or why they were left."""

    module: str
    kind: str
    status: str
    what: str


@dataclass
class Graph:
    """The outcome of one captured graph."""

    function: str
    rows: list[Row] = field(default_factory=list)
    ends: str = ""
    """Why it ends before the function does."""
    runs: int = 0

    @property
    def replaced(self) -> list[Row]:
        return [row for row in self.rows if row.status == "replaced"]


class Explanation(tuple[Row, ...]):
    """The rows of `explain`; prints as a table. `graphs` are the captured graphs, `reasons` why code was left."""

    graphs: tuple[Graph, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def replaced(self) -> list[Row]:
        return [row for row in self if row.status == "replaced"]

    @property
    def left(self) -> list[Row]:
        return [row for row in self if row.status == "left"]

    def __str__(self) -> str:
        if not self:
            return "nothing is accelerated"
        rows = [("module", "class", "", "operations, or the reason")]
        rows += [(row.module or "(the model)", row.kind, row.status, row.what) for row in self]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [] if self.replaced or not self.graphs else ["nothing is replaced: what runs is the model's own code"]
        lines += ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows]
        for i, graph in enumerate(self.graphs):
            lines.append(f"graph {i}: {graph.function}, calls put in: {len(graph.replaced)}, runs: {graph.runs}")
            lines += [f"  ends at a graph break: {graph.ends}"] if graph.ends else []
        return "\n".join(lines)

    __repr__ = __str__


def reason(error: Any) -> str:
    """The first line of an error, with the line of the source where Dynamo says it."""
    return located(str(error).strip() or type(error).__name__, getattr(error, "real_stack", None))


def located(text: str, stack: Any) -> str:
    """The first line of a text, with the innermost line of the source in a stack."""
    text = text.strip().partition("\n")[0]
    if not stack:
        return text
    line = list(stack)[-1]
    return f"{text} at {line.filename.rpartition('/')[2]}:{line.lineno}: {line.line or ''}".strip(": ")
