"""bias_act with every activation of the StyleGAN family, a clamp, and the bias along any dimension.

linear, relu and lrelu take the fused pass, which has no clamp. With one, and for the smooth activations, a CPU has the
op of activation_op.py; elsewhere they are composites of torch's functions, in fp32 for half precision. All are
differentiable twice, which the gradient penalties of a network with them need.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from pggan_fast.ops import small
from pggan_fast.ops.activation_op import PIECEWISE, activation, value_at
from pggan_fast.ops.bias_act import BiasAct, check_epilogue
from pggan_fast.ops.bias_act import bias_act as fused_bias_act
from pggan_fast.ops.bias_act import pixel_norm as fused_pixel_norm
from pggan_fast.ops.dispatch import choose
from pggan_fast.ops.geometry import check_floating
from pggan_fast.ops.registry import through_dispatcher
from pggan_fast.reference import accumulation_dtype


class Activation(NamedTuple):
    gain: float  # that keeps the variance, as StyleGAN's layers use it
    slope: float


ACTIVATIONS: dict[str, Activation] = {
    "linear": Activation(1.0, 0.0),
    "relu": Activation(2**0.5, 0.0),
    "lrelu": Activation(2**0.5, 0.2),
    "tanh": Activation(1.0, 0.0),
    "sigmoid": Activation(1.0, 0.0),
    "elu": Activation(1.0, 0.0),
    "selu": Activation(1.0, 0.0),
    "softplus": Activation(1.0, 0.0),
    "swish": Activation(2**0.5, 0.0),
}
"""The nine activations by name."""


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    act: str = "lrelu",
    slope: float = 0.2,
    gain: float = 1.0,
    pixel_norm: bool = False,
    eps: float = 1e-8,
    dim: int = 1,
    clamp: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """Compute, in this order:

    1. `scale * x + bias`, the bias along dimension `dim`, broadcast over the others;
    2. the activation: "linear", "relu", "lrelu" with `slope` below zero, "tanh", "sigmoid", "elu", "selu", "softplus"
       or "swish";
    3. `* gain`;
    4. if `clamp` is given, limits of -clamp and clamp, between which alone gradients pass;
    5. if `pixel_norm`, division by `sqrt(mean over channels of its square + eps)` (paper, section 4.2).

    x: [N, C, *spatial], any strides; fp64, fp32, bf16 or fp16, computed in fp32 (fp64 for fp64). With another `dim`
    than 1, of any shape. One pass over memory on a CPU; on a GPU a clamp is one more, and the smooth activations are
    torch's own functions.
    bias: as long as x's dimension `dim`, of any floating dtype, or None; it stays in fp32 under mixed precision.
    Returns a tensor like x, in x's layout. Twice differentiable in x and bias.
    Raises ValueError for an unknown act, a slope or gain below 0 (backward reads the activation's sign off the
    output), a clamp below 0, or a bias of another length.
    """
    check_floating("bias_act", x)
    if dim == 1 and clamp is None and act in PIECEWISE:
        options = (scale, act, slope, gain, pixel_norm, eps)
        check_epilogue("bias_act", x.shape[1:2], bias, options)
        if small.takes_bias_act(x, bias, *options[:5], impl):
            return small.bias_act(x, bias, scale, act, slope)
        impl = choose("bias_act", x, impl)
        if impl != "reference" and not through_dispatcher():
            # A small op's time is that of the functions on the way to its kernel: this leaves one out.
            return BiasAct.apply(x, bias, options, impl)[0]
        return fused_bias_act(
            x, bias, scale=scale, act=act, slope=slope, gain=gain, pixel_norm=pixel_norm, eps=eps, impl=impl
        )
    _check(x, bias, act, slope, gain, pixel_norm, dim, clamp)
    impl = choose("bias_act", x, impl)
    if impl == "native" and x.is_cpu and (act not in PIECEWISE or clamp is not None):
        y = _along(dim, x, bias, lambda x, bias: activation(x, bias, scale, act, slope, gain, clamp))
        return fused_pixel_norm(y, eps, impl=impl) if pixel_norm else y
    if act in PIECEWISE:
        options = dict(scale=scale, act=act, slope=slope, gain=gain, impl=impl)
        y = _along(dim, x, bias, lambda x, bias: fused_bias_act(x, bias, **options))
    else:
        y = value_at(_biased(x, bias, dim, scale), act, slope)
        y = y if gain == 1 else y * gain
    if clamp is not None:
        # The same as clamp, with a backward of one pass instead of four; no gradient passes on the limits themselves.
        # Of a linear function no second derivative is left, not even zeros, which hardtanh's would be.
        linear = act == "linear"
        y = y.where(y.abs() < clamp, y.detach().clamp(-clamp, clamp)) if linear else F.hardtanh(y, -clamp, clamp)
    y = y.to(x.dtype)
    return fused_pixel_norm(y, eps, impl=impl) if pixel_norm else y


def _along(dim: int, x: Tensor, bias: Tensor | None, function: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
    """function(x, bias), which takes x [N, C, ...], with dimension `dim` in the place of channels."""
    if x.ndim > 1 and x.shape[1] and (bias is None or dim == 1):
        return function(x, bias)
    before, channels = x.shape[:dim].numel(), x.shape[dim]
    if channels == 0:
        return x.clone()
    # -1 has no meaning for a tensor without elements.
    after = x.shape[dim + 1 :].numel()
    return function(x.reshape(before, channels, after), bias).reshape(x.shape)


def _biased(x: Tensor, bias: Tensor | None, dim: int, scale: float) -> Tensor:
    u = x.to(accumulation_dtype(x.dtype))
    u = u if scale == 1 else u * scale
    return u if bias is None else u + bias.to(u.dtype).reshape([-1 if i == dim else 1 for i in range(x.ndim)])


def _check(x, bias, act, slope, gain, pixel_norm, dim, clamp) -> None:
    if act not in ACTIVATIONS:
        raise ValueError(f"bias_act: act is {act!r}, allowed: {', '.join(ACTIVATIONS)}")
    if not (slope >= 0 and gain >= 0):
        raise ValueError(f"bias_act: slope is {slope} and gain is {gain}, both must be at least 0")
    if not (clamp is None or clamp >= 0):
        raise ValueError(f"bias_act: clamp is {clamp}, must be at least 0")
    if x.ndim < 2 and dim >= x.ndim:
        raise ValueError(
            f"bias_act: x has shape {list(x.shape)}, must be [N, C, ...], or of any shape with another dim"
        )
    if bias is not None and not 0 <= dim < x.ndim:
        raise ValueError(f"bias_act: dim is {dim}, must be 0 to {x.ndim - 1}")
    if bias is not None and bias.shape != x.shape[dim : dim + 1]:
        raise ValueError(f"bias_act: bias has shape {list(bias.shape)}, must be [{x.shape[dim]}]")
    if pixel_norm and dim != 1:
        raise ValueError(f"bias_act: dim is {dim}, must be 1 with pixel_norm")
