"""Functions of the StyleGAN family, known by their names: captured code that calls one gets ours.

Whether a function is what its name says is found out by calling it: outputs and gradients of small images must be those
of ours. TorchDynamo then takes ours where it would go into theirs, also where theirs is an extension that it cannot go
into.
"""

import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pggan_fast import ops
from pggan_fast.compat import rosinality, stylegan

Calls = list[tuple[tuple, dict[str, Any]]]


def modulated_conv2d(
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
    y = stylegan.bias_act(x, b, dim, act, alpha, gain)
    # torch's clamp as in theirs, which has no second derivative where a fused one has zeros.
    return y if clamp is None else y.clamp(-clamp, clamp)


def fused_leaky_relu(
    input: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2, scale: float = 2**0.5
) -> Tensor:
    """rosinality's as it is: on a CPU its slope is 0.2 whatever it is told."""
    return rosinality.fused_leaky_relu(input, bias, 0.2 if input.is_cpu else negative_slope, scale)


KNOWN: dict[str, tuple[str, tuple[Callable, ...]]] = {
    "upfirdn2d": ("resample", (stylegan.upfirdn2d, rosinality.upfirdn2d)),
    "upfirdn2d_native": ("resample", (rosinality.upfirdn2d_native,)),
    "filter2d": ("resample", (stylegan.filter2d,)),
    "upsample2d": ("resample", (stylegan.upsample2d,)),
    "downsample2d": ("resample", (stylegan.downsample2d,)),
    "bias_act": ("bias_act", (bias_act,)),
    "fused_leaky_relu": ("bias_act", (rosinality.fused_leaky_relu, fused_leaky_relu)),
    "modulated_conv2d": ("conv", (modulated_conv2d,)),
}
"""{name: (switch of `accelerate`, ours that have their parameters)}"""


def _trials(name: str) -> Calls:
    """Arguments of calls that tell a function of this name from any other. Filters get no gradient."""

    def random(*shape: int) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(len(shape))
        return torch.randn(shape, generator=generator, device="cpu").requires_grad_()

    x, bias, weight, styles = random(2, 3, 7, 6), random(3), random(4, 3, 3, 3), random(2, 3)
    f, g, h = random(4, 3).detach(), random(3).detach(), random(4, 4).detach()
    return {
        "upfirdn2d": [((x, f), options) for options in ({}, dict(up=2), dict(down=2))],
        "upfirdn2d_native": [((x, f, 2, 1, 1, 2, 1, 2, 3, 0), {}), ((x, f, 1, 1, 1, 1, 0, 1, 1, -1), {})],
        "filter2d": [((x, g), dict(gain=2)), ((x, f), dict(flip_filter=True, padding=1))],
        "upsample2d": [((x, f), {}), ((x, g), dict(up=3))],
        "downsample2d": [((x, f), {}), ((x, g), dict(down=3, gain=2))],
        "bias_act": [
            *(((x, bias), o) for o in ({}, dict(act="relu", gain=0.7), dict(act="swish", clamp=0.4))),
            *(((x,), dict(act="lrelu", alpha=0.3)), ((x, random(2)), dict(act="tanh", dim=0))),
        ],
        "fused_leaky_relu": [((x, bias), {}), ((x, bias), dict(negative_slope=0.4, scale=0.5))],
        "modulated_conv2d": [
            ((x, weight, styles), dict(padding=1)),
            ((x, weight, styles), dict(padding=1, up=2, resample_filter=h, noise=random(2, 1, 14, 12))),
            ((x, weight[:, :, :1, :1], styles), dict(demodulate=False, fused_modconv=False)),
            ((x, weight, styles), dict(padding=1, down=2, resample_filter=h, flip_weight=False)),
        ],
    }[name]


@functools.cache
def _ours_for(theirs: types.FunctionType, name: str) -> Callable | None:
    """Our function that computes what theirs of this name does, if calls of both agree; as one node of a graph."""
    parameters = list(inspect.signature(theirs).parameters)
    for ours in KNOWN[name][1]:
        if list(inspect.signature(ours).parameters)[: len(parameters)] == parameters and _agree(theirs, ours, name):

            @functools.wraps(ours)
            def node(*args: Any, **kwargs: Any) -> Tensor:
                return ours(*args, **kwargs)  # noqa: B023

            node.pggan_fast_name = name
            torch._dynamo.allow_in_graph(node)
            return lambda *args, **kwargs: node(*args, **kwargs)  # noqa: B023
    return None


def _agree(theirs: Callable, ours: Callable, name: str) -> bool:
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.random.fork_rng([]),
        ):
            for args, kwargs in _trials(name):
                results = []
                for function in (theirs, ours):
                    y = function(*args, **kwargs)
                    inputs = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
                    results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
                torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)  # fp32, sums of at most 100 products
    except Exception:  # another function, which may refuse such arguments in any way
        return False
    return True


@contextmanager
def substituted(options: Any) -> Iterator[None]:
    """Inside, TorchDynamo takes our functions for theirs: while it captures, under its lock."""
    try:
        from torch._dynamo.decorators import substitute_in_graph
        from torch._dynamo.trace_rules import _polyfilled_function_ids, get_torch_obj_rule_map
        from torch._dynamo.variables import PolyfilledFunctionVariable
        from torch._dynamo.variables.builder import VariableBuilder
    except ImportError:  # a release of torch without them captures theirs
        yield
        return
    taken: list[Callable] = []
    for theirs, name in _candidates(options):
        if (ours := _ours_for(theirs, name)) is not None:
            taken += [theirs, substitute_in_graph(theirs, skip_signature_check=True)(ours)]
    try:
        yield
    finally:
        for function in taken:
            VariableBuilder._id_dispatch().pop(id(function), None)
            _polyfilled_function_ids.remove(id(function))
            get_torch_obj_rule_map().pop(function, None)
            PolyfilledFunctionVariable._get_polyfill_handlers().pop(function, None)


def _candidates(options: Any) -> set[tuple[types.FunctionType, str]]:
    """Functions of known names in all modules but those of torch and of ours."""
    found = set()
    names = {name for name, (switch, _) in KNOWN.items() if getattr(options, switch)}
    for module in list(sys.modules.values()):
        for name in names & vars(module).keys() if type(module) is types.ModuleType else ():
            function = vars(module)[name]
            home = (getattr(function, "__module__", "") or "").partition(".")[0]
            if isinstance(function, types.FunctionType) and home not in ("torch", "pggan_fast"):
                found.add((function, name))
    return found
