"""Find what writes over a tensor after it was computed: autograd forbids that for what it keeps for backward.

A fused call keeps its result where the original's last function may have kept only its input. Aliases are read off the
example values: views and in-place results lie in the storage of what they were made of.
"""

from typing import Any

from torch import fx

from pggan_fast.dropin.graph import example, overwrites


def aliases_of(value: fx.Node) -> set[fx.Node]:
    """All nodes whose tensor lies in the value's memory, itself included."""
    storage = _storage(value)
    if storage is None:
        return {value}
    return {value} | {node for node in value.graph.nodes if _storage(node) == storage}


def is_written_over(value: Any, chain: list[fx.Node]) -> bool:
    """Whether a node that comes after the chain's first, and is not of it, writes over the value's memory."""
    if not isinstance(value, fx.Node):
        return False
    order = {node: i for i, node in enumerate(value.graph.nodes)}
    aliases = aliases_of(value)
    for reader in {user for alias in aliases for user in alias.users} - set(chain):
        first = reader.args[0] if reader.args else reader.kwargs.get("input")
        touched = first in aliases or reader.kwargs.get("out") in aliases
        if touched and order[reader] > order[chain[0]] and overwrites(reader):
            return True
    return False


def leaves(value: fx.Node) -> bool:
    """Whether code that the graph does not show gets the value's memory."""
    return any(user.op == "output" for alias in aliases_of(value) for user in alias.users)


def _storage(node: fx.Node) -> int | None:
    value = example(node)
    try:
        return None if value is None else value.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):  # a layout without a storage
        return None
