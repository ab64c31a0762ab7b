"""A node's meaning, however it was written: `x.add(y)`, `x + y`, `torch.add(x, y)`, `x += y` and modules alike."""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from pggan_fast.dropin.trace import has_hooks

Value = fx.Node | float | int | None


@dataclass(frozen=True)
class Op:
    """`name` applied to `x`; `other` is the second operand; `options` the rest, all constants."""

    name: str
    x: Any
    other: Any = None
    options: dict[str, Any] = field(default_factory=dict)


# torch.conv2d is F.conv2d; in-place forms compute the same where the overwritten tensor has no other reader.
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
    "lrelu": (F.leaky_relu, F.leaky_relu_),
    "clamp": (torch.clamp, torch.clip, torch.clamp_, torch.clip_, F.hardtanh, F.hardtanh_, F.relu6),
    "conv": (F.conv2d,),
    "conv_transpose": (F.conv_transpose2d,),
    "linear": (F.linear,),
    "interpolate": (F.interpolate, F.upsample),
    "avg_pool": (F.avg_pool2d,),
    "batch_norm": (F.batch_norm,),
    "view": (torch.reshape,),
    "cat": (torch.cat, torch.concat),
}.items():
    for _function in _functions:
        _FUNCTIONS[_function] = _name
_METHODS = {name: name for name in ("add", "sub", "mul", "div", "pow", "square", "mean", "sqrt", "rsqrt", "relu")}
_METHODS |= {f"{name}_": name for name in ("add", "sub", "mul", "div", "relu")}
_METHODS |= dict.fromkeys(("clamp", "clamp_", "clip", "clip_"), "clamp") | {"view": "view", "reshape": "view"}
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow}
_OUT_OF_PLACE = {torch.clamp_: torch.clamp, torch.clip_: torch.clip, F.hardtanh_: F.hardtanh}
_IN_PLACE |= {torch.relu_, F.relu_, F.leaky_relu_, operator.setitem, *_OUT_OF_PLACE}


class Meaning:
    """Reads nodes of one graph; modules of `root` are looked at, what is read of them goes to `note`."""

    def __init__(self, root: nn.Module, note: Callable[[nn.Module, str, Any], None] = lambda *_: None):
        self.root, self.note = root, note

    def __call__(self, node: Any) -> Op | None:
        """The node's meaning, or None for one that is of no interest or that is not sure."""
        if not isinstance(node, fx.Node):
            return None
        if node.op == "call_module":
            return self._module(node)
        if node.op == "call_function":
            name, arguments = _FUNCTIONS.get(node.target), list(node.args)
        elif node.op == "call_method":
            name, arguments = _METHODS.get(node.target), list(node.args)
        else:
            return None
        if name is None:
            return None
        read = getattr(self, f"_{name}", None)
        try:
            return read(*arguments, **node.kwargs) if read else _operands(name, *arguments, **node.kwargs)
        except TypeError:  # arguments that none of the readers below expects
            return None

    def module(self, node: fx.Node) -> nn.Module:
        return self.root.get_submodule(node.target)

    def options(self, module: nn.Module, *names: str) -> dict[str, Any]:
        """Attributes of one of torch's modules, which the rewritten forward will depend on."""
        options = {name: getattr(module, name) for name in names}
        for name, value in options.items():
            self.note(module, name, value)
        return options

    def _module(self, node: fx.Node) -> Op | None:
        module, kind = self.module(node), type(self.module(node))
        if len(node.args) != 1 or node.kwargs or has_hooks(module):
            return None
        x = node.args[0]
        if kind is nn.Conv2d:
            names = ("stride", "padding", "dilation", "groups", "padding_mode")
            return Op("conv", x, None, self.options(module, *names))
        if kind is nn.LeakyReLU:
            return Op("lrelu", x, options={"slope": self.options(module, "negative_slope")["negative_slope"]})
        if kind is nn.ReLU:
            return Op("relu", x)
        if kind in (nn.Hardtanh, nn.ReLU6):
            return Op("clamp", x)
        if kind in (nn.Upsample, nn.UpsamplingNearest2d):
            return self._interpolate(x, **self.options(module, "size", "scale_factor", "mode", "align_corners"))
        if kind is nn.AvgPool2d:
            names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
            return self._avg_pool(x, **self.options(module, *names))
        if kind is nn.BatchNorm2d:
            return Op("batch_norm", x)
        return None

    # One reader per function that has options: `_name` for the names above.

    def _relu(self, input: Any, inplace: bool = False) -> Op:
        return Op("relu", input)

    def _lrelu(self, input: Any, negative_slope: float = 0.01, inplace: bool = False) -> Op | None:
        return Op("lrelu", input, options={"slope": negative_slope}) if is_number(negative_slope) else None

    def _pow(self, input: Any, exponent: Any) -> Op | None:
        if not is_number(exponent):
            return None
        return Op("square", input) if exponent == 2 else Op("power", input, exponent)

    def _square(self, input: Any) -> Op:
        return Op("square", input)

    def _mul(self, input: Any, other: Any) -> Op:
        return Op("square", input) if input is other else _operands("mul", input, other)

    def _mean(self, input: Any, dim: Any = None, keepdim: bool = False, *, keepdims: bool = False) -> Op:
        dims = (dim,) if isinstance(dim, int) else tuple(dim) if isinstance(dim, (list, tuple)) else None
        return Op("mean", input, options={"dims": dims, "keepdim": keepdim or keepdims})

    def _clamp(self, input: Any, *bounds: Any, **named: Any) -> Op:
        return Op("clamp", input)

    def _view(self, input: Any, *shape: Any) -> Op:
        if len(shape) == 1 and isinstance(shape[0], (list, tuple)):
            shape = tuple(shape[0])
        return Op("view", input, options={"shape": tuple(shape)})

    def _conv(
        self,
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Op:
        options = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, padding_mode="zeros")
        return Op("conv", input, (weight, bias), options)

    def _interpolate(
        self,
        input: Any,
        size: Any = None,
        scale_factor: Any = None,
        mode: str = "nearest",
        align_corners: Any = None,
        recompute_scale_factor: Any = None,
        antialias: bool = False,
    ) -> Op | None:
        twice = scale_factor in (2, (2, 2), [2, 2])
        if size is not None or not twice or mode not in ("nearest", "nearest-exact") or recompute_scale_factor:
            return None
        return Op("up", input)

    def _avg_pool(
        self,
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Op | None:
        both = (2, (2, 2), [2, 2])
        fits = kernel_size in both and (stride in both or stride in (None, [])) and padding in (0, (0, 0), [0, 0])
        return Op("down", input) if fits and not ceil_mode and divisor_override is None else None

    def _cat(self, tensors: Any, dim: Any = 0, *, axis: Any = None) -> Op | None:
        dim = dim if axis is None else axis
        return Op("cat", tuple(tensors), options={"dim": dim}) if isinstance(tensors, (list, tuple)) else None


def _operands(name: str, x: Any, other: Any = None) -> Op:
    """A function of one or two operands and no options; a constant comes second where the order is free."""
    if name in ("add", "mul") and is_number(x):
        x, other = other, x
    return Op(name, x, other)


def is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def overwrites(node: fx.Node) -> bool:
    """Whether the node may write over an argument; a True among the arguments may be the `inplace` of a function."""
    if node.op == "call_function":
        flagged = node.kwargs.get("inplace") is True or any(a is True for a in node.args)
        return node.target in _IN_PLACE or flagged or "out" in node.kwargs
    return node.op == "call_method" and node.target.endswith("_") and not node.target.endswith("__")


def out_of_place(clamp: fx.Node, meaning: Meaning) -> None:
    """Makes a clamp write elsewhere than over its input, if it does not already."""
    if clamp.op == "call_module" and meaning.module(clamp).inplace:
        module = meaning.module(clamp)
        bounds = meaning.options(module, "min_val", "max_val")
        with clamp.graph.inserting_before(clamp):
            call = clamp.graph.call_function(F.hardtanh, clamp.args, bounds)
        call.meta.update(clamp.meta)
        clamp.replace_all_uses_with(call)
        clamp.graph.erase_node(clamp)
    elif clamp.op == "call_method":
        clamp.target = clamp.target.rstrip("_")
    elif clamp.op == "call_function":
        clamp.target = _OUT_OF_PLACE.get(clamp.target, clamp.target)
        clamp.args = tuple(a for a in clamp.args if a is not True)  # `inplace` by position
        clamp.kwargs = {name: value for name, value in clamp.kwargs.items() if name != "inplace"}


def shape_of(node: Any) -> tuple[int, ...] | None:
    """The shape of a node's tensor where the trace knows it in numbers."""
    value = node.meta.get("value", node.meta.get("example_value")) if isinstance(node, fx.Node) else None
    if not isinstance(value, torch.Tensor) or not all(type(n) is int for n in value.shape):
        return None
    return tuple(value.shape)
