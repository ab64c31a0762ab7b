"""One meaning for each node, however it was written: `x.add(y)`, `x + y`, `torch.add(x, y)` and `x += y` alike."""

import inspect
import math
import operator
import types
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from pggan_fast.dropin import identify


class Op(types.SimpleNamespace):
    """An operation: its `name` in the table below, and its arguments by theirs; `x` is what it is applied to.

    Rescaling by 2 may take several `nodes`: "up" (nearest upsampling) or "down" (2x2 means, see `identify.rescaling`).
    """

    @property
    def factor(self) -> float | None:
        """The constant by which x is multiplied, if that is all and leaves room for products with it in fp32."""
        if self.name not in ("mul", "div") or not is_number(self.other) or not 1e-30 < abs(self.other) < 1e30:
            return None
        return float(self.other) if self.name == "mul" else 1 / float(self.other)

    @property
    def slope(self) -> float:
        """The slope of an activation below zero."""
        return 0.0 if self.name == "relu" else float(self.negative_slope)

    @property
    def geometry(self) -> dict[str, Any]:
        """The constant arguments of a convolution."""
        names = ("stride", "padding", "output_padding", "dilation", "groups")
        return {name: value for name, value in vars(self).items() if name in names}

    def sides(self, taps: tuple) -> list[tuple[int, int]] | None:
        """[(pixels above, below), (left, right)] that a convolution with such a kernel adds, if they are constants."""
        sides = (0, 0) if isinstance(self.padding, str) else pair(self.padding)
        if not all(type(n) is int for n in (*sides, *taps)):
            return None
        return [((k - 1) // 2, k // 2) for k in taps] if self.padding == "same" else [(p, p) for p in sides]


def pair(value: Any) -> tuple:
    """(height's, width's) of an argument of a convolution."""
    return tuple(value) * (2 // len(value)) if isinstance(value, (tuple, list)) else (value, value)


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


# {name: (a function with its parameters, spellings: functions and names of methods)}. In-place forms compute the same
# where the overwritten tensor has no other reader.
_TABLE = {
    "add": (lambda input, other: 0, (operator.add, operator.iadd, torch.add, "add", "add_")),
    "mul": (lambda input, other: 0, (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_")),
    "div": (lambda input, other: 0, (operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "div_")),
    "relu": (F.relu, (F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_")),
    "lrelu": (F.leaky_relu, (F.leaky_relu, F.leaky_relu_, torch._C._nn.leaky_relu, torch._C._nn.leaky_relu_)),
    "conv": (lambda input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1: 0, (F.conv2d,)),
    "transposed conv": (
        lambda input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1: 0,
        (F.conv_transpose2d,),
    ),
    "batch_norm": (F.batch_norm, (F.batch_norm,)),
    "instance_norm": (F.instance_norm, (F.instance_norm,)),
    "pad": (F.pad, (F.pad, torch._C._nn.pad)),
    "cat": (lambda tensors, dim=0, *, axis=None: 0, (torch.cat, torch.concat)),
}
_SPELLINGS = {target: (name, inspect.signature(f)) for name, (f, targets) in _TABLE.items() for target in targets}

_SURE = {
    "lrelu": lambda op: is_number(op.negative_slope),
    "batch_norm": lambda op: (
        op.training is False and None not in (op.running_mean, op.running_var) and is_number(op.eps)
    ),
    "instance_norm": lambda op: (
        op.running_mean is op.running_var is None and op.use_input_stats is True and is_number(op.eps)
    ),
    "pad": lambda op: (
        op.mode == "constant"
        and (op.value is None or is_number(op.value) and op.value == 0)
        and len(op.pad) in (2, 4)
        and all(type(p) is int and p >= 0 for p in op.pad)
    ),
    "cat": lambda op: isinstance(op.x, (list, tuple)),
}
"""{name: whether a call computes what is replaced, where not every one does}"""


def meaning(node: Any) -> Op | None:
    """The node's meaning, or None for one that is of no interest or that is not sure."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return None
    if node.target not in _SPELLINGS:
        return None if (found := identify.rescaling(node)) is None else Op(**found)
    name, signature = _SPELLINGS[node.target]
    try:
        bound = signature.bind(*node.args, **node.kwargs)
        bound.apply_defaults()
        (_, x), *rest = bound.arguments.items()
        op = Op(name=name, x=x, **dict(rest))
        sure = name not in _SURE or _SURE[name](op)
    except TypeError:  # arguments of other names or kinds
        return None
    if name in ("add", "mul") and is_number(op.x):  # a constant comes second
        op.x, op.other = op.other, op.x
    return op if sure else None
