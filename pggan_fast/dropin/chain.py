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
    """The clamp that comes last, which stays as it is, but that it may not overwrite the call's result."""

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]


@dataclass
class Epilogue:
    """The part of a chain that `bias_act` takes."""

    bias: fx.Node | None = None
    act: str = "linear"
    slope: float = 0.0
    gain: float = 1.0
    pixel_norm: bool = False
    eps: float = 1e-8

    def options(self) -> dict[str, Any]:
        """The options that differ from the defaults."""
        given = dict(act=self.act, slope=self.slope, gain=self.gain)
        given |= dict(pixel_norm=True, eps=self.eps) if self.pixel_norm else {}
        defaults = vars(Epilogue())
        return {name: value for name, value in given.items() if value != defaults[name]}


@dataclass
class Norm:
    """The nodes of a pixel norm."""

    eps: float
    nodes: list[fx.Node]


@dataclass
class Chain:
    """Nodes after a convolution, or after a bias, and what they mean together."""

    what: list[str] = field(default_factory=list)
    nodes: list[fx.Node] = field(default_factory=list)
    epilogue: Epilogue = field(default_factory=Epilogue)
    may_shrink: bool = False
    """Whether a 2x2 mean belongs to it: not after an upsampling, which does not commute with the convolution."""
    down: bool = False
    batch_norm: tuple | None = None
    """(running mean, running variance, weight, bias, eps)."""
    weight_scale: float = 1.0
    clamp: fx.Node | None = None
    reason: str = ""
    """Why it ends where it ends, if there is something to say."""

    def add(self, what: str, *nodes: fx.Node) -> bool:
        self.what.append(what)
        self.nodes += nodes
        return True
