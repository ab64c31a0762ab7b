"""Functions of these codebases in code that calls them under any module: told by their names, parameters and results.

`accelerate` captures code that calls them, and takes ours where they agree.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from pggan_fast import ops
from pggan_fast.compat import rosinality, stylegan


def _modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused_modconv: bool = True,
) -> Tensor:
    options = dict(up=up, down=down, padding=padding, resample_filter=resample_filter, demodulate=demodulate)
    return ops.modulated_conv2d(x, weight, styles, noise=noise, flip_weight=flip_weight, **options)


def _fused_leaky_relu(
    input: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2, scale: float = 2**0.5
) -> Tensor:
    """rosinality's as it is: on a CPU its slope is 0.2 whatever it is told."""
    return rosinality.fused_leaky_relu(input, bias, 0.2 if input.is_cpu else negative_slope, scale)


def _modulated_conv2d_stylegan3(
    x: Tensor,
    w: Tensor,
    s: Tensor,
    demodulate: bool = True,
    padding: int = 0,
    input_gain: Tensor | None = None,
) -> Tensor:
    return ops.modulated_conv2d_stylegan3(x, w, s, demodulate=demodulate, padding=padding, input_gain=input_gain)


def _random(*shape: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(len(shape))
    with torch.inference_mode(False):  # in which this module may be imported
        return torch.randn(shape, generator=generator, device="cpu").requires_grad_()


Calls = list[tuple[tuple, dict[str, Any]]]
_X, _BIAS, _STYLES = _random(2, 3, 7, 6), _random(3), _random(2, 3)
_WEIGHT, _POINT = _random(4, 3, 3, 3), _random(4, 3, 1, 1)
# Filters get no gradient.
_F, _G, _H = _random(4, 3).detach(), _random(3).detach(), _random(4, 4).detach()
_FILTERED: Calls = [((_X, _F), options) for options in ({}, dict(up=2), dict(down=2))]
_FILTERED += [((_X, _F), dict(flip_filter=True, gain=2)), ((_X, _G), dict(gain=3))]
_NATIVE: Calls = [((_X, _F, 2, 1, 1, 2, 1, 2, 3, 0), {}), ((_X, _F, 1, 1, 1, 1, 0, 1, 1, -1), {})]
_BIASED: Calls = [
    *(((_X, _BIAS), o) for o in ({}, dict(act="relu", gain=0.7), dict(act="swish", clamp=0.4))),
    *(((_X,), dict(act="lrelu", alpha=0.3)), ((_X, _random(2)), dict(act="tanh", dim=0))),
]
_LEAKY: Calls = [((_X, _BIAS), {}), ((_X, _BIAS), dict(negative_slope=0.4, scale=0.5))]
_MODULATED: Calls = [
    ((_X, _WEIGHT, _STYLES), dict(padding=1)),
    ((_X, _WEIGHT, _STYLES), dict(padding=1, up=2, resample_filter=_H, noise=_random(2, 1, 14, 12))),
    ((_X, _POINT, _STYLES), dict(demodulate=False, fused_modconv=False)),
    ((_X, _WEIGHT, _STYLES), dict(padding=1, down=2, resample_filter=_H, flip_weight=False)),
]
_MODULATED3: Calls = [
    ((_X, _WEIGHT, _STYLES), dict(padding=2, input_gain=_random())),
    ((_X, _WEIGHT, _STYLES), dict(demodulate=False)),
]

KNOWN: dict[str, tuple[str, tuple[tuple[Callable, Calls], ...]]] = {
    "upfirdn2d": ("resample", ((stylegan.upfirdn2d, _FILTERED), (rosinality.upfirdn2d, _FILTERED))),
    "upfirdn2d_native": ("resample", ((rosinality.upfirdn2d_native, _NATIVE),)),
    "filter2d": (
        "resample",
        ((stylegan.filter2d, [((_X, _G), dict(gain=2)), ((_X, _F), dict(flip_filter=True, padding=1))]),),
    ),
    "upsample2d": ("resample", ((stylegan.upsample2d, [((_X, _F), {}), ((_X, _G), dict(up=3))]),)),
    "downsample2d": ("resample", ((stylegan.downsample2d, [((_X, _F), {}), ((_X, _G), dict(down=3, gain=2))]),)),
    "bias_act": ("bias_act", ((stylegan.bias_act, _BIASED),)),
    "fused_leaky_relu": ("bias_act", ((rosinality.fused_leaky_relu, _LEAKY), (_fused_leaky_relu, _LEAKY))),
    "modulated_conv2d": ("conv", ((_modulated_conv2d, _MODULATED), (_modulated_conv2d_stylegan3, _MODULATED3))),
}
"""{name: (switch of `accelerate`, (ours that has their parameters, calls that tell it from any other function))}"""


@functools.cache
def ours_for(theirs: Callable, name: str) -> Callable | None:
    """Return our function that computes what theirs of this name does, if calls of both agree."""
    parameters = list(inspect.signature(theirs).parameters)
    for ours, calls in KNOWN[name][1]:
        # Earlier versions of theirs have fewer parameters.
        given = [calls[0], *(call for call in calls[1:] if call[1].keys() <= {*parameters})]
        if list(inspect.signature(ours).parameters)[: len(parameters)] == parameters and _agree(theirs, ours, given):
            return ours
    return None


def _agree(theirs: Callable, ours: Callable, calls: Calls) -> bool:
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.random.fork_rng([]),
        ):
            for args, kwargs in calls:
                results = []
                for function in (theirs, ours):
                    y = function(*args, **kwargs)
                    inputs = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
                    results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
                torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)  # fp32, sums of at most 100 products
    except Exception:  # another function, which may refuse such arguments in any way
        return False
    return True


def suppresses_tracer_warnings(value: Any) -> bool:
    """Whether this is NVIDIA's context of that name, which keeps `torch.jit.trace` quiet and does nothing else."""
    named = isinstance(value, (FunctionType, type)) and value.__name__ == "suppress_tracer_warnings"
    return named and _only_suppresses(value)


@functools.cache
def _only_suppresses(context: Callable) -> bool:
    before, quiet = list(warnings.filters), ("ignore", None, torch.jit.TracerWarning, None, 0)
    try:
        with context():
            inside = list(warnings.filters)
        return warnings.filters == before and inside == [quiet, *(f for f in before if f != quiet)]
    except Exception:  # another context of this name
        return False
