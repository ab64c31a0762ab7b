"""Networks built from a file's description: options within bounds, and no larger than the numbers that the file has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from pggan_fast.networks import NETWORKS
from pggan_fast.networks.base import BaseGenerator, Network
from pggan_fast.networks.options import schema_of
from pggan_fast.utils.schema import find_problem

AnyNetwork = TypeVar("AnyNetwork", bound=Network)

SLACK = 1 << 20  # parameters: below, a network costs too little to refuse it before its tensors are compared
NAMED = 5  # tensors named in a message


def build_network(kind: type[AnyNetwork], options: Mapping[str, Any], numbers: int) -> AnyNetwork:
    """Build a network that a file of `numbers` numbers describes.

    Raises:
        ValueError: an option that is unknown or out of bounds, or a network far larger than the file.
    """
    network = build_on_meta(kind, options)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if parameters > 2 * numbers + SLACK:
        raise ValueError(f"a {kind.__name__} with these options has {parameters:,} parameters, the file {numbers:,}")
    return kind(**options)


def build_on_meta(kind: type[AnyNetwork], options: Mapping[str, Any]) -> AnyNetwork:
    """Build a network without memory, on the meta device. Raises ValueError as `build_network` does."""
    known = schema_of(kind.Options)
    if unknown := sorted(map(repr, options.keys() - known.keys())):
        raise ValueError(f"a {kind.__name__} has no option {unknown[0][:40]}")
    if problem := find_problem(dict(options), known, "options"):
        raise ValueError(problem)
    try:
        with torch.device("meta"):
            return kind(**options)
    except (RuntimeError, ArithmeticError) as error:  # sizes whose product no tensor has
        raise ValueError(f"options that make no network ({_one_line(error)})") from error


def generator_kind(options: Mapping[str, Any]) -> type[BaseGenerator]:
    """Return the class of the generator that `options` describe. Raises ValueError if there is none."""
    name = options.get("network", "pggan")
    if not isinstance(name, str) or name not in NETWORKS:
        raise ValueError(f"options.network is {repr(name)[:40]}, must be one of {', '.join(NETWORKS)}")
    return NETWORKS[name].generator


def find_misfit(weights: Mapping[str, Tensor], network: Network) -> str | None:
    """Return what is wrong with `weights` as the state dict of `network`, None if they fit."""
    expected = network.state_dict()
    if missing := expected.keys() - weights.keys():
        return f"lacks {some_of(missing)}"
    if unknown := weights.keys() - expected.keys():
        return f"has the unknown tensors {some_of(unknown)}"
    for name, parameter in expected.items():
        value = weights[name]
        if value.shape != parameter.shape or not value.is_floating_point():
            found, required = (f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (value, parameter))
            return f"{name} is {found}, must be {required}"
        if not is_finite(value):
            return f"{name} has values that are not finite"
    return None


def is_finite(values: Tensor) -> bool:
    """Return whether all are finite, in float32 as the networks are."""
    return bool(values.to(torch.float32).isfinite().all())


def some_of(names: set[str]) -> str:
    """Return a few of `names` for a message, whatever letters they have."""
    shown = [name[:80].encode("unicode_escape").decode() for name in sorted(names)[:NAMED]]
    return ", ".join(shown) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
