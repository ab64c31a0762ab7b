"""One meaning for each node, however it was written: `x.add(y)`, `x + y`, `torch.add(x, y)` and `x += y` alike.

The graphs are TorchDynamo's: modules are inlined, parameters are inputs, and every node carries an example value with
its shape, dtype and device.
"""

import inspect
import math
import operator
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor


@dataclass(frozen=True)
class Op:
    """`name` applied to `x`; `other` is the second operand; `options` the rest, all constants."""

    name: str
    x: Any
    other: Any = None
    options: dict[str, Any] = field(default_factory=dict)


# In-place forms compute the same where the overwritten tensor has no other reader.
_FUNCTIONS: dict[Any, str] = {}
for _name, _functions in {
    "add": (operator.add, operator.iadd, torch.add),
    "sub": (operator.sub, operator.isub, torch.sub),
    "mul": (operator.mul, operator.imul, torch.mul, torch.multiply),
    "div": (operator.truediv, operator.itruediv, torch.div, torch.true_divide),
    "pow": (operator.pow, operator.ipow, torch.pow),
    "square": (torch.square,),
    "mean": (torch.mean,),
    "sqrt": (torch.sqrt,),
    "rsqrt": (torch.rsqrt,),
    "relu": (F.relu, torch.relu, torch.relu_, F.relu_),
    "lrelu": (F.leaky_relu, F.leaky_relu_, torch._C._nn.leaky_relu, torch._C._nn.leaky_relu_),
    "clamp": (torch.clamp, torch.clip, torch.clamp_, torch.clip_, F.hardtanh, F.hardtanh_, F.relu6),
    "conv": (F.conv2d,),
    "interpolate": (F.interpolate, F.upsample),
    "avg_pool": (F.avg_pool2d,),
    "batch_norm": (F.batch_norm,),
    "cat": (torch.cat, torch.concat),
}.items():
    for _function in _functions:
        _FUNCTIONS[_function] = _name
_METHODS = {name: name for name in ("add", "sub", "mul", "div", "pow", "square", "mean", "sqrt", "rsqrt", "relu")}
_METHODS |= {f"{name}_": name for name in ("add", "sub", "mul", "div", "relu")}
_METHODS |= dict.fromkeys(("clamp", "clamp_", "clip", "clip_"), "clamp")
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow}
_OUT_OF_PLACE = {torch.clamp_: torch.clamp, torch.clip_: torch.clip, F.hardtanh_: F.hardtanh}
_IN_PLACE |= {torch.relu_, F.relu_, F.leaky_relu_, torch._C._nn.leaky_relu_, operator.setitem, *_OUT_OF_PLACE}


def meaning(node: Any) -> Op | None:
    """The node's meaning, or None for one that is of no interest or that is not sure."""
    if not isinstance(node, fx.Node):
        return None
    names = {"call_function": _FUNCTIONS, "call_method": _METHODS}.get(node.op, {})
    name = names.get(node.target)
    if name is None:
        return None
    read = _READERS.get(name, lambda *operands, **named: _operands(name, *operands, **named))
    try:
        return read(*node.args, **node.kwargs)
    except TypeError:  # arguments that none of the readers below expects
        return None


def _operands(name: str, x: Any, other: Any = None) -> Op:
    """A function of one or two operands and no options; a constant comes second where the order is free."""
    if name in ("add", "mul") and is_number(x):
        x, other = other, x
    return Op(name, x, other)


def _relu(input: Any, inplace: bool = False) -> Op:
    return Op("relu", input, options={"slope": 0.0})


def _lrelu(input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Op | None:
    return Op("lrelu", input, options={"slope": float(negative_slope)}) if is_number(negative_slope) else None


def _pow(input: Any, exponent: Any) -> Op | None:
    if not is_number(exponent):
        return None
    return Op("square", input) if exponent == 2 else Op("power", input, exponent)


def _mul(input: Any, other: Any) -> Op:
    return Op("square", input) if input is other else _operands("mul", input, other)


def _mean(input: Any, dim: Any = None, keepdim: bool = False, *, keepdims: bool = False) -> Op:
    dims = (dim,) if isinstance(dim, int) else tuple(dim) if isinstance(dim, (list, tuple)) else None
    return Op("mean", input, options={"dims": dims, "keepdim": keepdim or keepdims})


def _clamp(input: Any, *bounds: Any, **named: Any) -> Op:
    return Op("clamp", input)


def _conv(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Op:
    return Op("conv", input, (weight, bias), dict(stride=stride, padding=padding, dilation=dilation, groups=groups))


def _interpolate(
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: bool = False,
) -> Op | None:
    shape = shape_of(input)
    if shape is None or len(shape) != 4 or mode not in ("nearest", "nearest-exact"):
        return None
    if size is not None:  # to the doubled size, however it was given
        sizes = [size, size] if isinstance(size, int) else list(size)
        twice = all(_is_int(n) for n in (*sizes, *shape[2:])) and sizes == [2 * n for n in shape[2:]]
        return Op("up", input) if twice and scale_factor is None else None
    twice = scale_factor in (2, (2, 2), [2, 2])
    return Op("up", input) if twice and not recompute_scale_factor else None


def _avg_pool(
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Op | None:
    both = (2, (2, 2), [2, 2])
    fits = kernel_size in both and (stride in both or stride in (None, [], ())) and padding in (0, (0, 0), [0, 0])
    return Op("down", input) if fits and not ceil_mode and divisor_override is None else None


def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Op | None:
    if training is not False or running_mean is None or running_var is None or not is_number(eps):
        return None
    return Op("batch_norm", input, (running_mean, running_var, weight, bias, float(eps)))


def _cat(tensors: Any, dim: Any = 0, *, axis: Any = None) -> Op | None:
    dim = dim if axis is None else axis
    return Op("cat", tuple(tensors), options={"dim": dim}) if isinstance(tensors, (list, tuple)) else None


_READERS = {
    "relu": _relu,
    "lrelu": _lrelu,
    "pow": _pow,
    "square": lambda input: Op("square", input),
    "mul": _mul,
    "mean": _mean,
    "clamp": _clamp,
    "conv": _conv,
    "interpolate": _interpolate,
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "cat": _cat,
}


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: Any) -> bool:
    return type(value) is int


def example(node: Any) -> Tensor | None:
    """The example value of a node that computes a plain tensor."""
    value = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return value if type(value) in (FakeTensor, Tensor, torch.nn.Parameter) else None


def shape_of(node: Any) -> tuple | None:
    """The shape of a node's tensor; sizes that vary between calls are symbols, equal to nothing."""
    value = example(node)
    return None if value is None else tuple(n if _is_int(n) else object() for n in value.shape)


def dtype_of(node: Any) -> torch.dtype | None:
    value = example(node)
    return None if value is None else value.dtype


def is_per_channel(node: Any, of: fx.Node) -> bool:
    """Whether adding `node` to `of` [N, C, ...] adds one value to each channel: 1 everywhere but at dimension 1."""
    shape, target = shape_of(node), shape_of(of)
    if shape is None or target is None or len(target) < 2 or not len(target) - 1 <= len(shape) <= len(target):
        return False
    rest = list(shape)
    channels = rest.pop(len(shape) - len(target) + 1)
    return _is_int(channels) and channels == target[1] and all(_is_int(n) and n == 1 for n in rest)


def overwrites(node: fx.Node) -> bool:
    """Whether the node may write over its first argument."""
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        return node.target in _IN_PLACE or _ends_in_place(name) or "out" in node.kwargs or _is_flagged(node)
    return node.op == "call_method" and _ends_in_place(node.target)


def _ends_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _is_flagged(node: fx.Node) -> bool:
    """Whether a function is told to work in place."""
    try:
        arguments = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments
    except (TypeError, ValueError):  # builtins have no signature and no such flag but by name
        arguments = node.kwargs
    return arguments.get("inplace", False) is not False


def out_of_place(clamp: fx.Node) -> None:
    """Makes a clamp write elsewhere than over its input, if it does not already."""
    if clamp.op == "call_method":
        clamp.target = clamp.target.rstrip("_")
        return
    clamp.target = _OUT_OF_PLACE.get(clamp.target, clamp.target)
    clamp.args = tuple(a for a in clamp.args if a is not True)  # `inplace` by position
    clamp.kwargs = {name: value for name, value in clamp.kwargs.items() if name != "inplace"}
