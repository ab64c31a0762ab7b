"""What may write over a tensor after it was computed: autograd forbids that for what it keeps for backward.

A fused call keeps its result where the original's last function may have kept only its input.
"""

from collections.abc import Iterator

from torch import fx

from pggan_fast.dropin.graph import Meaning, overwrites
from pggan_fast.dropin.trace import is_of_torch

_VIEWS = frozenset(
    (
        *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze"),
        *("transpose", "t", "permute", "swapaxes", "swapdims", "movedim", "moveaxis", "expand", "expand_as"),
        *("broadcast_to", "chunk", "split", "tensor_split", "unbind", "narrow", "select", "diagonal", "as_strided"),
        *("unfold", "contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda"),
        *("detach", "alias", "getitem", "getattr", "dropout", "dropout2d", "feature_dropout", "alpha_dropout"),
    )
)
"""Functions and methods whose result may be the memory of their first argument."""

_VIEW_MODULES = ("Identity", "Flatten", "Unflatten", "Dropout", "AlphaDropout", "FeatureAlphaDropout")


def is_written_over(value: fx.Node, after: fx.Node, meaning: Meaning) -> bool:
    """Whether a node that comes after `after` writes over the value's memory."""
    order = {node: i for i, node in enumerate(value.graph.nodes)}
    aliases = {value, *_views(value, meaning)}
    for reader in (user for alias in aliases for user in alias.users):
        first = reader.args[0] if reader.args else reader.kwargs.get("input")
        touched = first in aliases or reader.kwargs.get("out") in aliases
        if touched and order[reader] > order[after] and writes(reader, meaning):
            return True
    return False


def leaves(value: fx.Node, meaning: Meaning) -> bool:
    """Whether code that the graph does not show gets the value's memory: the caller's, or a module with hooks."""
    aliases = [value, *_views(value, meaning)]
    return any(
        user.op == "output" or (user.op == "call_module" and not is_of_torch(meaning.module(user)))
        for alias in aliases
        for user in alias.users
    )


def _views(value: fx.Node, meaning: Meaning) -> Iterator[fx.Node]:
    for user in value.users:
        if user.op == "call_module":
            view = type(meaning.module(user)).__name__.rstrip("123d") in _VIEW_MODULES
        else:
            view = (user.target if isinstance(user.target, str) else user.target.__name__) in _VIEWS
        if view and user.op != "output":
            yield user
            yield from _views(user, meaning)


def writes(node: fx.Node, meaning: Meaning) -> bool:
    """Whether a node of torch's own writes over its input."""
    return getattr(meaning.module(node), "inplace", False) if node.op == "call_module" else overwrites(node)
