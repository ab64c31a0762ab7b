"""Networks from the variables of the official TensorFlow implementation, by name.

The variables are NumPy arrays under the names that the official networks give them. With R pixels
and `lod = log2(R / resolution)`, every layer having a `weight` and a `bias`:

- generator: `4x4/Dense`, `4x4/Conv`, `{r}x{r}/Conv0_up` (fused scale) or `{r}x{r}/Conv0`,
  `{r}x{r}/Conv1`, `ToRGB_lod{lod}`;
- discriminator: `FromRGB_lod{lod}`, `{r}x{r}/Conv0`, `{r}x{r}/Conv1_down` (fused scale) or
  `{r}x{r}/Conv1`, `4x4/Conv`, `4x4/Dense0`, `4x4/Dense1`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from pggan_fast.interop.build import build_network, some_of
from pggan_fast.networks import Discriminator, Generator
from pggan_fast.networks.resolutions import HIGHEST

SHARED_OPTIONS = {"fmap_base", "fmap_decay", "fmap_max"}
GENERATOR_OPTIONS = SHARED_OPTIONS | {"latent_dim", "slope", "pixel_norm", "pixel_norm_eps", "normalize_latents"}
DISCRIMINATOR_OPTIONS = SHARED_OPTIONS | {"mbstd_group_size"}

MOST_LODS = HIGHEST.bit_length() - 3

# Where our weight's axes lie in the official array.
AXES = {
    "dense": (1, 0),  # [in, out]
    "conv": (3, 2, 0, 1),  # [kh, kw, in, out]
    "fused up": (2, 3, 0, 1),  # [kh, kw, out, in], and spatially flipped: it is transposed
}


class Layer(NamedTuple):
    name: str  # the official one, without /weight and /bias
    path: str  # our submodule
    layout: str  # a key of AXES


def from_official(
    variables: Mapping[str, np.ndarray],
    *,
    label_dim: int = 0,
    use_wscale: bool = True,
    **network_kwargs: Any,
) -> Generator | Discriminator:
    """Build the network that the official TensorFlow variables describe.

    Args:
        variables: float arrays by official name, all of one network; a `lod` entry is ignored.
            Names tell generator from discriminator; resolution, image channels, fused scale,
            latent size and channel counts are read off names and shapes, and so is whether there
            are minibatch statistics.
        label_dim: number of label components (official `label_size`). A generator's first layer
            does not tell latents from labels, so leaving it out there makes the labels latents.
        use_wscale: the official option of this name. False means that the variables are used as
            they are at run time, so they are divided by the constant that our layers apply.
        network_kwargs: options of the network that variables do not show: `slope` (0 for
            use_leakyrelu=False), `pixel_norm`, `pixel_norm_eps` (pixelnorm_epsilon) and
            `normalize_latents`, or `mbstd_group_size`; and `latent_dim`, `fmap_base`,
            `fmap_decay`, `fmap_max` where the inferred values do not fit. Of all pairs that
            give the same channels, our defaults come first, then the smallest `fmap_base` and
            `fmap_max`.

    Returns:
        A float32 network on the CPU. With `use_wscale`, its parameters are the given numbers
        bit for bit (if they were float32), only permuted and flipped.

    Raises:
        ValueError: names that are missing or unknown, wrong shapes or dtypes, channel counts that
            no `fmap_base` and `fmap_max` give.
    """
    arrays = {name: _floats(name, value) for name, value in variables.items() if name != "lod"}
    network = _network_class(arrays)
    resolution = _resolution(arrays)
    fused = resolution == 4 or any("Conv0_up" in name or "Conv1_down" in name for name in arrays)
    table = _layers(network, resolution, fused)
    _check_names(arrays, table)
    _check_ranks(arrays, table)
    _check_options(network, network_kwargs)

    rgb = "ToRGB_lod0/bias" if network is Generator else "FromRGB_lod0/weight"
    options = {
        "resolution": resolution,
        "image_channels": arrays[rgb].shape[-1 if network is Generator else -2],
        "label_dim": label_dim,
        "fused_scale": fused,
        **channel_options(_channels(arrays, network, resolution), network_kwargs),
        **network_kwargs,
    }
    if network is Generator:
        options.setdefault("latent_dim", _latent_dim(arrays["4x4/Dense/weight"], label_dim))
    elif arrays["4x4/Conv/weight"].shape[2] == arrays["4x4/Conv/bias"].size:
        options.setdefault("mbstd_group_size", 1)  # no channel for the statistics
    net = build_network(network, options, sum(array.size for array in arrays.values()))
    _copy(arrays, net, table, use_wscale)
    return net


def _floats(name: str, value: np.ndarray) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind != "f":
        raise ValueError(f"variables: {name} is {array.dtype}, must be floating point")
    with np.errstate(over="ignore"):
        if not np.isfinite(array.astype(np.float32)).all():
            raise ValueError(f"variables: {name} has values that are not finite")
    return array


def _network_class(names: Iterable[str]) -> type[Generator] | type[Discriminator]:
    to_rgb = any(name.startswith("ToRGB_lod") for name in names)
    from_rgb = any(name.startswith("FromRGB_lod") for name in names)
    if to_rgb == from_rgb:
        found = "both" if to_rgb else "neither"
        raise ValueError(
            "variables: must be of one network, a generator (with ToRGB_lod0/weight) or "
            f"a discriminator (with FromRGB_lod0/weight); these names have {found}"
        )
    return Generator if to_rgb else Discriminator


def _resolution(names: Iterable[str]) -> int:
    """The largest resolution that any name speaks of, so that a missing name is found later."""
    sizes = [4]
    for name in names:
        if match := re.match(r"(\d+)x\1/|(?:To|From)RGB_lod(\d+)/", name):
            size, lod = match.groups()
            if len(size or lod) > 4 or (lod and int(lod) > MOST_LODS) or (size and int(size) > HIGHEST):
                raise ValueError(f"variables: {name[:40]} is beyond {HIGHEST} pixels, the largest that networks have")
            sizes.append(int(size) if size else 4 * 2 ** int(lod))
    return 2 ** (max(sizes).bit_length() - 1)


def _layers(network: type, resolution: int, fused: bool) -> list[Layer]:
    """Every official layer of a network, and where it goes."""
    lods = resolution.bit_length() - 3
    sizes = [4 * 2**i for i in range(lods + 1)]
    if network is Generator:
        layers = [Layer("4x4/Dense", "input", "dense"), Layer("4x4/Conv", "blocks.4.conv", "conv")]
        for r in sizes[1:]:
            up = ("Conv0_up", "fused up") if fused else ("Conv0", "conv")
            layers.append(Layer(f"{r}x{r}/{up[0]}", f"blocks.{r}.up", up[1]))
            layers.append(Layer(f"{r}x{r}/Conv1", f"blocks.{r}.conv", "conv"))
        rgb = ("ToRGB", "to_rgb")
    else:
        layers = [
            Layer("4x4/Conv", "head.conv", "conv"),
            Layer("4x4/Dense0", "head.dense", "dense"),
            Layer("4x4/Dense1", "head.output", "dense"),
        ]
        for r in sizes[1:]:
            down = "Conv1_down" if fused else "Conv1"
            layers.append(Layer(f"{r}x{r}/Conv0", f"blocks.{r}.conv", "conv"))
            layers.append(Layer(f"{r}x{r}/{down}", f"blocks.{r}.down", "conv"))
        rgb = ("FromRGB", "from_rgb")
    for i, r in enumerate(sizes):
        layers.append(Layer(f"{rgb[0]}_lod{lods - i}", f"{rgb[1]}.{r}", "conv"))
    return layers


def _check_names(names: Iterable[str], table: list[Layer]) -> None:
    expected = {f"{layer.name}/{kind}" for layer in table for kind in ("weight", "bias")}
    problems = []
    if missing := expected.difference(names):
        problems.append(f"missing {some_of(missing)}")
    if unknown := set(names).difference(expected):
        problems.append(f"unknown {some_of(unknown)}")
    if problems:
        raise ValueError(f"variables: {'; '.join(problems)}")


def _check_ranks(arrays: Mapping[str, np.ndarray], table: list[Layer]) -> None:
    for name, _, layout in table:
        for kind, rank in (("weight", len(AXES[layout])), ("bias", 1)):
            array = arrays[f"{name}/{kind}"]
            if array.ndim != rank:
                raise ValueError(f"variables: {name}/{kind} is {list(array.shape)}, must have {rank} dimensions")


def _check_options(network: type, options: Mapping) -> None:
    allowed = GENERATOR_OPTIONS if network is Generator else DISCRIMINATOR_OPTIONS
    if unknown := set(options).difference(allowed):
        raise ValueError(
            f"network_kwargs: {', '.join(sorted(unknown))} cannot be given for an official "
            f"{network.__name__}; allowed are {', '.join(sorted(allowed))}"
        )


def _channels(arrays: Mapping[str, np.ndarray], network: type, resolution: int) -> dict[int, int]:
    """Channel counts by stage: a layer at 2**r pixels has those of stage r - 1."""
    last = "Conv1" if network is Generator else "Conv0"
    channels = {1: arrays["4x4/Conv/bias"].size}
    if network is Discriminator:
        channels[0] = arrays["4x4/Dense0/bias"].size
    for stage in range(2, resolution.bit_length() - 1):
        r = 2 ** (stage + 1)
        channels[stage] = arrays[f"{r}x{r}/{last}/bias"].size
    return channels


def channel_options(channels: Mapping[int, int], given: Mapping) -> dict:
    """fmap_base and fmap_max, where not given, such that min(int(base / 2**(stage * decay)), max).

    Nothing if both are given, or if the defaults 8192, 1.0, 512 give these channels already.
    """
    decay = given.get("fmap_decay", 1.0)
    if {"fmap_base", "fmap_max"} <= given.keys():
        return {}

    def fits(base, maximum) -> bool:
        return all(min(int(base / 2 ** (s * decay)), maximum) == n for s, n in channels.items())

    default = (given.get("fmap_base", 8192), given.get("fmap_max", 512))
    if fits(*default):
        return {}
    maximum = given.get("fmap_max", max(channels.values()))
    smallest = max(n * 2 ** (s * decay) for s, n in channels.items())
    base = given.get("fmap_base", int(np.ceil(smallest)))
    if not fits(base, maximum):
        table = ", ".join(f"{2 ** (s + 1)} px: {n}" for s, n in sorted(channels.items()))
        raise ValueError(
            f"variables: channels ({table}) do not follow from an fmap_base and fmap_max with "
            f"fmap_decay={decay}; pass fmap_base, fmap_decay and fmap_max"
        )
    return {"fmap_base": base, "fmap_max": maximum}


def _latent_dim(dense: np.ndarray, label_dim: int) -> int:
    if dense.shape[0] <= label_dim:
        raise ValueError(
            f"label_dim={label_dim}: 4x4/Dense/weight takes {dense.shape[0]} latents and labels, "
            "so it must be smaller than that"
        )
    return dense.shape[0] - label_dim


@torch.no_grad()
def _copy(
    arrays: Mapping[str, np.ndarray],
    net: Generator | Discriminator,
    table: list[Layer],
    use_wscale: bool,
) -> None:
    pairs = []
    for name, path, layout in table:
        layer = net.get_submodule(path)
        bias = net.input_bias if path == "input" else layer.bias
        pairs.append((f"{name}/weight", layer.weight, layout, layer.weight_scale))
        pairs.append((f"{name}/bias", bias, None, 1.0))

    wrong = []
    for name, parameter, layout, _ in pairs:
        expected = _official_shape(parameter.shape, layout)
        if arrays[name].shape != expected:
            wrong.append(f"{name} is {list(arrays[name].shape)}, must be {list(expected)}")
    if wrong:
        described = f"{type(net).__name__} of {net.resolution} px and label_dim={net.label_dim}"
        raise ValueError(f"variables: for a {described}, {'; '.join(wrong)}")

    for name, parameter, layout, scale in pairs:
        array = arrays[name]
        if layout is not None:
            array = array.transpose(AXES[layout])
        if layout == "fused up":
            array = array[:, :, ::-1, ::-1]
        if not use_wscale:
            array = array.astype(np.float64) / scale
        parameter.copy_(torch.from_numpy(np.array(array, dtype=np.float32, order="C")))


def _official_shape(shape: Iterable[int], layout: str | None) -> tuple[int, ...]:
    sizes = tuple(shape)
    return tuple(sizes[i] for i in np.argsort(AXES[layout])) if layout else sizes
