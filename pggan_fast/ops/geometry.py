"""Dtypes, factors, paddings and filters as callers give them, checked: a mistake is one line."""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from pggan_fast.reference import each_side

Pair = int | Sequence[int]

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_floating(op: str, x: Tensor, *also: torch.dtype, name: str = "x") -> None:
    """Refuse what no kernel computes with, and torch's own functions would take in silence."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{op}: {name} is a {type(x).__name__}, must be a tensor")
    if x.dtype not in FLOATING and x.dtype not in also:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in (*FLOATING, *also))
        raise ValueError(f"{op}: {name} is {x.dtype}, allowed: {allowed}")


def checked_axes(op: str, name: str, value: Pair, *, least: int = 1, order: str = "(x, y)") -> tuple[int, int]:
    """The two numbers of a number or a pair, in the pair's order."""
    numbers = _whole_numbers(value)
    if len(numbers) not in (1, 2) or min(numbers) < least:
        raise ValueError(f"{op}: {name} is {value}, must be a number from {least} or a pair {order} of them")
    return numbers * 2 if len(numbers) == 1 else numbers


def checked_factor(op: str, name: str, value: int) -> int:
    """A factor of both axes, from 1."""
    if type(value) is int and value > 0:  # the common case, in less than a microsecond
        return value
    numbers = () if isinstance(value, Sequence) else _whole_numbers(value)
    if not numbers or numbers[0] < 1:
        raise ValueError(f"{op}: {name} is {value}, must be a number from 1")
    return numbers[0]


def checked_sides(op: str, padding: Pair) -> tuple[int, int, int, int]:
    """(x0, x1, y0, y1) of a padding, negative ones too."""
    if type(padding) is int:
        return padding, padding, padding, padding
    numbers = _whole_numbers(padding)
    if len(numbers) not in (1, 2, 4):
        raise ValueError(f"{op}: padding is {padding}, must be a number, (x, y) or (x0, x1, y0, y1)")
    return each_side(numbers * 2 if len(numbers) == 1 else numbers)


def _whole_numbers(value: Pair) -> tuple[int, ...]:
    """The whole numbers that this is or holds, NumPy's among them; nothing if it is something else."""
    if isinstance(value, int):
        return (value,)
    try:
        values = value if isinstance(value, Sequence) else (value,)
        return tuple(v if isinstance(v, int | torch.SymInt) else operator.index(v) for v in values)
    except TypeError:
        return ()


def check_filter(op: str, name: str, f: Tensor | None) -> None:
    """Refuse what is no constant filter [taps] or [fh, fw]."""
    if f is None:
        return
    if not isinstance(f, Tensor):
        raise ValueError(f"{op}: {name} is a {type(f).__name__}, must be a tensor or None; see setup_filter")
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(f"{op}: {name} has shape {list(f.shape)}, must be [taps] or [fh, fw]")
    if f.requires_grad:
        raise ValueError(f"{op}: {name} requires a gradient, must be a constant ({name}.detach())")


def filter_size(f: Tensor | None) -> tuple[int, int]:
    """(fh, fw)"""
    return (1, 1) if f is None else (f.shape[0], f.shape[-1])
