"""One meaning for each node, however it was written: `x.add(y)`, `x + y`, `torch.add(x, y)` and `x += y` alike."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from pggan_fast.dropin import identify


@dataclass(frozen=True)
class Op:
    """`name` applied to `x`; `other` is the second operand; `options` the rest, all constants."""

    name: str
    x: Any
    other: Any = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def factor(self) -> float | None:
        """The constant by which x is multiplied, if that is all."""
        if self.name not in ("mul", "div") or not is_number(self.other) or self.other == 0:
            return None
        return float(self.other) if self.name == "mul" else 1 / float(self.other)


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _free_order(name: str) -> Callable:
    """Reader of a function of two operands in either order: a constant comes second."""
    return lambda input, other: Op(name, other, input) if is_number(input) else Op(name, input, other)


def _conv(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Op:
    return Op("conv", input, (weight, bias), dict(stride=stride, padding=padding, dilation=dilation, groups=groups))


def _transposed(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1) -> Op:
    options = dict(stride=stride, padding=padding, output_padding=output_padding, groups=groups, dilation=dilation)
    return Op("transposed conv", input, (weight, bias), options)


def _batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5
) -> Op | None:
    known = training is False and running_mean is not None and running_var is not None and is_number(eps)
    return Op("batch_norm", input, (running_mean, running_var, weight, bias, float(eps))) if known else None


def _instance_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
) -> Op | None:
    known = running_mean is None and running_var is None and use_input_stats is True and is_number(eps)
    return Op("instance_norm", input, (weight, bias, float(eps))) if known else None


def _pad(input, pad, mode="constant", value=None) -> Op | None:
    zeros = mode == "constant" and (value is None or is_number(value) and value == 0)
    return Op("pad", input, options={"pad": tuple(pad)}) if zeros else None


# In-place forms compute the same where the overwritten tensor has no other reader.
_TABLE: tuple[tuple[Callable, tuple], ...] = (
    (_free_order("add"), (operator.add, operator.iadd, torch.add, "add", "add_")),
    (_free_order("mul"), (operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_")),
    (
        lambda input, other: Op("div", input, other),
        (operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "div_"),
    ),
    (
        lambda input, inplace=False: Op("relu", input, options={"slope": 0.0}),
        (F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"),
    ),
    (
        lambda input, negative_slope=0.01, inplace=False: (
            Op("lrelu", input, options={"slope": float(negative_slope)}) if is_number(negative_slope) else None
        ),
        (F.leaky_relu, F.leaky_relu_, torch._C._nn.leaky_relu, torch._C._nn.leaky_relu_),
    ),
    (_conv, (F.conv2d,)),
    (_transposed, (F.conv_transpose2d,)),
    (_batch_norm, (F.batch_norm,)),
    (_instance_norm, (F.instance_norm,)),
    (_pad, (F.pad, torch._C._nn.pad)),
    (
        lambda tensors, dim=0, *, axis=None: (
            Op("cat", tuple(tensors), options={"dim": dim if axis is None else axis})
            if isinstance(tensors, (list, tuple))
            else None
        ),
        (torch.cat, torch.concat),
    ),
)
_READERS = {target: read for read, targets in _TABLE for target in targets}
"""{function, or name of a method: what reads its arguments}"""


def meaning(node: Any) -> Op | None:
    """The node's meaning, or None for one that is of no interest or that is not sure.

    Rescaling may take several nodes, of which this is the last: they are the meaning's `other`.
    """
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return None
    if node.target in _READERS:
        try:
            return _READERS[node.target](*node.args, **node.kwargs)
        except TypeError:  # arguments that the reader does not expect
            return None
    found = identify.rescaling(node)
    return found and Op(*found)
