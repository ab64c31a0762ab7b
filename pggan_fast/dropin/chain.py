"""Chains of nodes that one fused call replaces."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx


@dataclass
class Match:
    """A chain of nodes that one call replaces."""

    what: list[str]
    nodes: list[fx.Node]
    target: Callable
    args: tuple
    kwargs: dict[str, Any]
    clamp: fx.Node | None = None
    """What comes last and stays as it is, but that it may not overwrite the call's result."""

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]


@dataclass
class Epilogue:
    """What of a chain `bias_act` can take; each call of `take` adds a node to it or refuses."""

    bias: fx.Node | None = None
    act: str = "linear"
    slope: float = 0.0
    gain: float = 1.0
    pixel_norm: bool = False
    eps: float = 1e-8

    def options(self) -> dict[str, Any]:
        """What differs from the defaults."""
        given = dict(act=self.act, slope=self.slope, gain=self.gain)
        given |= dict(pixel_norm=True, eps=self.eps) if self.pixel_norm else {}
        defaults = vars(Epilogue())
        return {name: value for name, value in given.items() if value != defaults[name]}


@dataclass
class Norm:
    eps: float
    nodes: list[fx.Node]


@dataclass
class Chain:
    """Nodes after a convolution, or after a bias, and what they mean together."""

    what: list[str] = field(default_factory=list)
    nodes: list[fx.Node] = field(default_factory=list)
    epilogue: Epilogue = field(default_factory=Epilogue)
    down: bool = False
    batch_norm: fx.Node | None = None
    weight_scale: float = 1.0
    clamp: fx.Node | None = None

    def add(self, what: str, *nodes: fx.Node) -> bool:
        self.what.append(what)
        self.nodes += nodes
        return True
