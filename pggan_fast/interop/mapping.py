"""State dicts of other PyTorch implementations, as tables of which of their tensors is which of ours."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pggan_fast.interop.build import is_finite, some_of
from pggan_fast.interop.official import MOST_LODS, channel_options
from pggan_fast.networks import Discriminator, Generator
from pggan_fast.networks.base import Network

Weights = Mapping[str, Tensor]


class Pair(NamedTuple):
    """A layer of theirs and of ours."""

    theirs: str  # its tensors are theirs.weight and theirs.bias
    ours: str  # submodule of our network
    gain: float  # theirs: what is multiplied by 1 / sqrt(fan_in) and the weight at run time
    take: Callable[[Tensor], Tensor] = lambda weight: weight  # their layout to ours
    give: Callable[[Tensor, torch.Size], Tensor] = lambda weight, shape: weight.reshape(shape)  # ours to a shape


class Format(NamedTuple):
    """How an implementation keeps what it multiplies by at run time."""

    name: str
    scaled_bias: bool = False  # biases are multiplied as weights are


def checked(state_dict: Weights) -> dict[str, Tensor]:
    """Return `state_dict` as a dict. Raises ValueError unless it is one of finite tensors by name."""
    if not isinstance(state_dict, Mapping) or not all(isinstance(name, str) for name in state_dict):
        raise ValueError("weights: must be tensors by name")
    for name, value in state_dict.items():
        shown = some_of({name})
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise ValueError(f"weights: {shown} is a {type(value).__name__}, must be a dense tensor")
        if value.device.type == "meta":
            raise ValueError(f"weights: {shown} is on the meta device, without values")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError(f"weights: {shown} is larger than what the file holds of it")
        if value.is_floating_point() and not is_finite(value):
            raise ValueError(f"weights: {shown} has values that are not finite")
    return dict(state_dict)


def numbers(weights: Weights) -> int:
    """Return how many numbers all tensors have together."""
    return sum(value.numel() for value in weights.values())


def check_names(weights: Weights, pairs: list[Pair]) -> None:
    """Raise ValueError unless `weights` has the weight and bias of each pair, and nothing else."""
    expected = {f"{pair.theirs}.{kind}" for pair in pairs for kind in ("weight", "bias")}
    problems = []
    if missing := expected - weights.keys():
        problems.append(f"missing {some_of(missing)}")
    if unknown := weights.keys() - expected:
        problems.append(f"unknown {some_of(unknown)}")
    if problems:
        raise ValueError(f"weights: {'; '.join(problems)}")
    for pair in pairs:
        if (rank := weights[f"{pair.theirs}.weight"].ndim) not in (2, 4):
            raise ValueError(f"weights: {pair.theirs}.weight has {rank} dimensions, must have 2 or 4")


def check_kind(net: Network, what: str) -> None:
    """Raise ValueError unless `net` is one of the paper's networks."""
    if not isinstance(net, (Generator, Discriminator)):
        raise ValueError(f"{type(net).__name__} is none of the paper's networks, {what} has only those")


def check_options(net: Generator | Discriminator, required: Mapping, what: str) -> None:
    """Raise ValueError unless `net` has the options `required`, and none that no other implementation has."""
    beyond = {"attention_at": None, "residual": False, "spectral_norm": False, "base": [4, 4]}
    beyond |= {"slope": 0.2, "pixel_norm_eps": 1e-8} if isinstance(net, Generator) else {}
    for name, value in {**beyond, **required}.items():
        if net.options[name] != value:
            raise ValueError(f"{type(net).__name__} has {name}={net.options[name]}, {what} only {name}={value}")


def count(weights: Weights, prefix: str) -> int:
    """Return how many numbered submodules there are under `prefix`. Raises ValueError for more than networks have."""
    found = len({name[len(prefix) :].split(".")[0] for name in weights if name.startswith(prefix)})
    if found > MOST_LODS + 1:
        raise ValueError(f"weights: {found} layers named {prefix}*, the largest networks have {MOST_LODS + 1}")
    return found


def fmaps(channels: Mapping[int, int], given: Mapping) -> dict:
    """Return fmap_base, fmap_decay and fmap_max that give these channels by resolution, or those given."""
    named = {name: value for name, value in given.items() if name.startswith("fmap_")}
    return {**channel_options({r.bit_length() - 2: n for r, n in channels.items()}, named), **named}


@torch.no_grad()
def take(weights: Weights, net: Generator | Discriminator, pairs: list[Pair], source: Format, equalized: bool) -> None:
    """Copy their weights into `net`, in our layout and in our scales.

    Raises:
        ValueError: a tensor that is not floating point or not of the shape that `net` needs.
    """
    for pair, weight, bias, factor in _scaled(net, pairs, equalized):
        theirs, offset = (weights[f"{pair.theirs}.{kind}"] for kind in ("weight", "bias"))
        if not (theirs.is_floating_point() and offset.is_floating_point()):
            raise ValueError(f"weights: {pair.theirs} is {theirs.dtype}, must be floating point")
        ready = _times(pair.take(theirs), factor)
        offset = _times(offset, _bias_scale(weight, pair, equalized) if source.scaled_bias else 1.0)
        for kind, value, parameter in (("weight", ready, weight), ("bias", offset, bias)):
            if value.shape != parameter.shape:
                raise ValueError(
                    f"weights: {pair.theirs}.{kind} becomes {list(value.shape)}, the network's is "
                    f"{list(parameter.shape)}"
                )
            parameter.copy_(value)


@torch.no_grad()
def give(
    net: Generator | Discriminator, pairs: list[Pair], shapes: Mapping[str, tuple], source: Format
) -> dict[str, Tensor]:
    """Our weights under their names, in their layout and scales (equalized); float32 copies on the CPU.

    Args:
        shapes: their shape of a weight where it is not ours, by `Pair.theirs`.
    """
    result = {}
    for pair, weight, bias, factor in _scaled(net, pairs, equalized=True):
        shape = torch.Size(shapes.get(pair.theirs, weight.shape))
        bias_scale = _bias_scale(weight, pair, equalized=True) if source.scaled_bias else 1.0
        result[f"{pair.theirs}.weight"] = _times(pair.give(weight, shape), 1 / factor).cpu().contiguous().clone()
        result[f"{pair.theirs}.bias"] = _times(bias, 1 / bias_scale).cpu().clone()
    return result


def _scaled(net: Generator | Discriminator, pairs: list[Pair], equalized: bool):
    """Yield (pair, our weight, our bias, their run-time scale over ours) for each."""
    for pair in pairs:
        layer = net.get_submodule(pair.ours)
        bias = net.input_bias if pair.ours == "input" else layer.bias
        theirs = pair.gain / math.sqrt(layer.weight[0].numel()) if equalized else 1.0
        yield pair, layer.weight, bias, theirs / layer.weight_scale


def _bias_scale(weight: Tensor, pair: Pair, equalized: bool) -> float:
    return pair.gain / math.sqrt(weight[0].numel()) if equalized else 1.0


def _times(values: Tensor, factor: float) -> Tensor:
    """float32; bit for bit the same where the factor is 1 but for its own rounding."""
    return values.float() if math.isclose(factor, 1, rel_tol=1e-12) else (values.double() * factor).float()
