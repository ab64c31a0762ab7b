"""`torch_utils.ops.*` of NVIDIA's StyleGAN2-ADA and StyleGAN3, and of what was made from them."""

import functools
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from pggan_fast import ops
from pggan_fast.compat.gradfix import conv2d_gradfix, gated
from pggan_fast.ops.activation_op import value_at
from pggan_fast.ops.activations import ACTIVATIONS
from pggan_fast.ops.geometry import Pair, filter_size
from pggan_fast.reference import each_axis, each_side


def _pair(value: Pair) -> Pair:
    """Return the argument as our ops take it: lists may hold numbers of numpy."""
    return int(value) if not isinstance(value, Sequence) else tuple(int(v) for v in value)


def _check_impl(impl: str) -> None:
    assert impl in ("ref", "cuda"), f"impl is {impl!r}, allowed: ref, cuda"


def _init(*_, **__) -> bool:
    """There is no extension that could fail to compile; forks take how much to print."""
    return True


# upfirdn2d


def setup_filter(
    f: Tensor | Sequence[float] | float | None,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor | None:
    return ops.setup_filter(
        f, device=device, normalize=normalize, flip_filter=flip_filter, gain=gain, separable=separable
    )


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    _check_impl(impl)
    options = dict(up=_pair(up), down=_pair(down), padding=_pair(padding))
    return ops.upfirdn2d(x, f, **options, flip_filter=flip_filter, gain=gain)


def filter2d(
    x: Tensor,
    f: Tensor | None,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    _check_impl(impl)
    return ops.filter2d(x, f, padding=_pair(padding), flip_filter=flip_filter, gain=gain)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    _check_impl(impl)
    return ops.upsample2d(x, f, _pair(up), padding=_pair(padding), flip_filter=flip_filter, gain=gain)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    _check_impl(impl)
    return ops.downsample2d(x, f, _pair(down), padding=_pair(padding), flip_filter=flip_filter, gain=gain)


def _parse_scaling(scaling):
    return each_axis(_pair(scaling))


def _parse_padding(padding):
    return each_side(_pair(padding))


def _get_filter_size(f):
    """(width, height), in this order."""
    return filter_size(f)[::-1]


# bias_act


class _Activation(dict):
    """A dict whose items are attributes too, as theirs is."""

    def __getattr__(self, name: str) -> object:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _activation(name: str, index: int, ref: str, has_2nd_grad: bool) -> _Activation:
    known = ACTIVATIONS[name]
    function = lambda x, alpha=known.slope, **_: value_at(x, name, alpha)  # noqa: E731
    return _Activation(
        func=function,
        def_alpha=known.slope,
        def_gain=known.gain,
        cuda_idx=index,
        ref=ref,
        has_2nd_grad=has_2nd_grad,
    )


activation_funcs = {
    "linear": _activation("linear", 1, "", False),
    "relu": _activation("relu", 2, "y", False),
    "lrelu": _activation("lrelu", 3, "y", False),
    "tanh": _activation("tanh", 4, "y", True),
    "sigmoid": _activation("sigmoid", 5, "y", True),
    "elu": _activation("elu", 6, "y", True),
    "selu": _activation("selu", 7, "y", True),
    "softplus": _activation("softplus", 8, "y", True),
    "swish": _activation("swish", 9, "x", True),
}


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "cuda",
) -> Tensor:
    _check_impl(impl)
    assert clamp is None or clamp >= 0, f"clamp is {clamp}, must be at least 0"
    known = ACTIVATIONS[act]
    alpha = known.slope if alpha is None else float(alpha)
    gain = known.gain if gain is None else float(gain)
    # A fused backward reads the activation's sign off its output, and takes x that has channels.
    if gain < 0 or alpha < 0 or not x.numel() or (b is None and x.ndim < 2):
        y = x if b is None else x + b.reshape([-1 if i == dim else 1 for i in range(x.ndim)])
        y = value_at(y, act, alpha) * gain
        return y if clamp is None else y.clamp(-clamp, clamp)
    if b is None:
        dim = 1
    return ops.bias_act(x, b, dim=dim, act=act, slope=alpha, gain=gain, clamp=clamp)


# The others


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    options = dict(up=int(up), down=int(down), padding=_pair(padding), groups=int(groups))
    return ops.conv2d_resample(x, w, f, **options, flip_weight=flip_weight, flip_filter=flip_filter)


def _get_weight_shape(w):
    return [int(size) for size in w.shape]


def _conv2d_wrapper(x, w, stride=1, padding=0, groups=1, transpose=False, flip_weight=True):
    """torch's convolution, or its transpose, which flips no weight; with flip_weight=False a true convolution."""
    w = w if flip_weight else w.flip([2, 3])
    return (F.conv_transpose2d if transpose else F.conv2d)(x, w, stride=stride, padding=padding, groups=groups)


def _resampling(module: ModuleType) -> dict[str, object]:
    """The contents of conv2d_resample, whose weights get no gradient while conv2d_gradfix beside it disables them."""
    beside = f"{module.__name__.rpartition('.')[0]}.conv2d_gradfix"

    def with_gate(convolution: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(convolution)
        def gated_convolution(x, w, *args, **kwargs):
            return convolution(x, gated(w, sys.modules.get(beside)), *args, **kwargs)

        return gated_convolution

    return {
        "conv2d_resample": with_gate(conv2d_resample),
        "_conv2d_wrapper": with_gate(_conv2d_wrapper),
        "_get_weight_shape": _get_weight_shape,
        "_get_filter_size": _get_filter_size,
        "_parse_padding": _parse_padding,
    }


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = 2**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
    impl: str = "cuda",
) -> Tensor:
    _check_impl(impl)
    options = dict(up=int(up), down=int(down), padding=_pair(padding), gain=float(gain), slope=float(slope))
    return ops.filtered_lrelu(x, fu, fd, b, **options, clamp=clamp, flip_filter=flip_filter)


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a * b + c"""
    return torch.addcmul(c, a, b) if a.dtype == b.dtype == c.dtype else a * b + c


def grid_sample(input: Tensor, grid: Tensor) -> Tensor:
    return ops.grid_sample(input, grid.to(input.dtype))


class _GridSample2dForward:
    @staticmethod
    def apply(input: Tensor, grid: Tensor) -> Tensor:
        return grid_sample(input, grid)


class _GridSample2dBackward:
    @staticmethod
    def apply(grad_output: Tensor, input: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of (input, grid)."""
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = [t if t.requires_grad else t.detach().requires_grad_() for t in (input, grid)]
            return torch.autograd.grad(grid_sample(*inputs), inputs, grad_output, create_graph=create_graph)


def _gradfix_of_grids(module: ModuleType) -> dict[str, object]:
    return {
        "grid_sample": grid_sample,
        "enabled": vars(module).get("enabled", True),
        "_should_use_custom_op": lambda: bool(module.enabled),
        "_GridSample2dForward": _GridSample2dForward,
        "_GridSample2dBackward": _GridSample2dBackward,
    }


def _upfirdn2d_ref(x, f, up=1, down=1, padding=0, flip_filter=False, gain=1):
    return upfirdn2d(x, f, up, down, padding, flip_filter, gain)


def _bias_act_ref(x, b=None, dim=1, act="linear", alpha=None, gain=None, clamp=None):
    return bias_act(x, b, dim, act, alpha, gain, clamp)


def _filtered_lrelu_ref(
    x, fu=None, fd=None, b=None, up=1, down=1, padding=0, gain=2**0.5, slope=0.2, clamp=None, flip_filter=False
):
    return filtered_lrelu(x, fu, fd, b, up, down, padding, gain, slope, clamp, flip_filter)


# Scripts that compile ahead or that report find extensions loaded: None would mean that they failed to compile.
_EXTENSION = {"_init": _init, "_inited": True, "_plugin": torch.ops.pggan_fast}
_FILTERING = {
    **_EXTENSION,
    "_parse_scaling": _parse_scaling,
    "_parse_padding": _parse_padding,
    "_get_filter_size": _get_filter_size,
}
_UPFIRDN2D = {
    "setup_filter": setup_filter,
    "upfirdn2d": upfirdn2d,
    "_upfirdn2d_ref": _upfirdn2d_ref,
    "filter2d": filter2d,
    "upsample2d": upsample2d,
    "downsample2d": downsample2d,
    **_FILTERING,
}
_BIAS_ACT = {"bias_act": bias_act, "_bias_act_ref": _bias_act_ref, "activation_funcs": activation_funcs, **_EXTENSION}
_FILTERED = {"filtered_lrelu": filtered_lrelu, "_filtered_lrelu_ref": _filtered_lrelu_ref, **_FILTERING}

MODULES = {
    "torch_utils.ops.upfirdn2d": lambda module: dict(_UPFIRDN2D),
    "torch_utils.ops.bias_act": lambda module: dict(_BIAS_ACT),
    "torch_utils.ops.conv2d_resample": _resampling,
    "torch_utils.ops.filtered_lrelu": lambda module: dict(_FILTERED),
    "torch_utils.ops.fma": lambda module: {"fma": fma},
    "torch_utils.ops.grid_sample_gradfix": _gradfix_of_grids,
    "torch_utils.ops.conv2d_gradfix": conv2d_gradfix,
}
"""{module: a function of the module to what it holds}"""
