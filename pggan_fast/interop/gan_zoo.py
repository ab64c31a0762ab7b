"""State dicts of the progressive GAN of pytorch_GAN_zoo (GNet and DNet), to and from our networks.

Theirs multiplies a layer's output, so that biases are scaled with the weights, and every layer has the gain sqrt(2).
The generator's first layer has one bias per pixel: `input_bias="pixel"`. The discriminator averages after its
activation: `fused_scale=False`. Its minibatch statistics are of consecutive samples and unbiased; they agree where 4
divides the batch or the batch has 2 or 3 samples. A discriminator with class logits is refused.
"""

import math

from torch import Tensor

from pggan_fast.interop.build import build_network
from pggan_fast.interop.mapping import (
    Format,
    Pair,
    Weights,
    check_kind,
    check_names,
    check_options,
    checked,
    count,
    fmaps,
    give,
    numbers,
    take,
)
from pggan_fast.networks import Discriminator, Generator

FORMAT = Format("pytorch_GAN_zoo", scaled_bias=True)
GAIN = math.sqrt(2)
STATISTICS = {"mbstd_grouping": "consecutive", "mbstd_correction": 1}


def from_gan_zoo(
    state_dict: Weights, *, equalized: bool = True, label_dim: int = 0, **fmap: float
) -> Generator | Discriminator:
    """Build the network that a state dict of pytorch_GAN_zoo's GNet or DNet belongs to.

    Args:
        state_dict: names tell which of the two it is, shapes the rest; with or without the `module.` in its names.
        equalized: their option equalizedlR: layers are scaled at run time.
        label_dim: how many of a generator's latents, the last ones, are our labels.
        fmap: fmap_base, fmap_decay, fmap_max where the inferred ones do not fit.

    Returns:
        A float32 network on the CPU. Its alpha is the weight of the new path, 1 - theirs.

    Raises:
        ValueError: unknown or missing names, shapes that do not fit, a discriminator that ours cannot be.
    """
    weights = {name.replace("module.", ""): value for name, value in checked(state_dict).items()}
    generator = any(name.startswith("toRGBLayers.") for name in weights)
    lods = count(weights, "scaleLayers.")
    pairs = _generator(lods) if generator else _discriminator(lods)
    check_names(weights, pairs)
    sizes = [4 * 2**i for i in range(lods + 1)]
    if generator:
        channels = {r: weights[f"toRGBLayers.{i}.weight"].shape[1] for i, r in enumerate(sizes)}
        options: dict = dict(
            resolution=sizes[-1],
            image_channels=weights["toRGBLayers.0.bias"].numel(),
            label_dim=label_dim,
            latent_dim=weights["formatLayer.weight"].shape[1] - label_dim,
            input_bias="pixel",
            **fmaps(channels, fmap),
        )
    else:
        if (scores := weights["decisionLayer.bias"].numel()) != 1:
            raise ValueError(f"weights: a discriminator with {scores} outputs, must have 1 (no classes)")
        channels = {r: weights[f"fromRGBLayers.{i}.bias"].numel() for i, r in enumerate(sizes)}
        channels[2] = weights["groupScaleZero.1.bias"].numel()
        options = dict(
            resolution=sizes[-1],
            image_channels=weights["fromRGBLayers.0.weight"].shape[1],
            fused_scale=False,
            mbstd_group_size=4 if _has_statistics(weights) else 1,
            **STATISTICS,
            **fmaps(channels, fmap),
        )
    net = build_network(Generator if generator else Discriminator, options, numbers(weights))
    take(weights, net, pairs, FORMAT, equalized)
    return net


def to_gan_zoo(net: Generator | Discriminator) -> dict[str, Tensor]:
    """Return the state dict of theirs (with equalizedlR) that computes what `net` does.

    A generator with one bias per channel is given it for each of the pixels.

    Raises:
        ValueError: an option of `net` that theirs do not have.
    """
    check_kind(net, FORMAT.name)
    lods = net.resolution.bit_length() - 3
    if isinstance(net, Generator):
        check_options(net, {"input_norm": True, "pixel_norm": True, "normalize_latents": True}, FORMAT.name)
        weights = give(net, _generator(lods), {}, FORMAT)
        if net.options["input_bias"] == "channel":
            weights["formatLayer.bias"] = weights["formatLayer.bias"].repeat_interleave(16)
    else:
        required = {"fused_scale": False, "label_dim": 0, "minibatch_discrimination": False}
        if net.mbstd_group_size > 1:
            required |= {"mbstd_group_size": 4, **STATISTICS}
        check_options(net, required, FORMAT.name)
        weights = give(net, _discriminator(lods), {}, FORMAT)
    return {f"{name.rpartition('.')[0]}.module.{name.rpartition('.')[2]}": value for name, value in weights.items()}


def _has_statistics(weights: Weights) -> bool:
    maps, features = weights["groupScaleZero.0.weight"].shape[:2]
    return features == maps + 1


def _generator(lods: int) -> list[Pair]:
    pairs = [Pair("formatLayer", "input", GAIN), Pair("groupScale0.0", "blocks.4.conv", GAIN)]
    for i in range(lods + 1):
        r = 4 * 2**i
        if i:
            pairs.append(Pair(f"scaleLayers.{i - 1}.0", f"blocks.{r}.up", GAIN))
            pairs.append(Pair(f"scaleLayers.{i - 1}.1", f"blocks.{r}.conv", GAIN))
        pairs.append(Pair(f"toRGBLayers.{i}", f"to_rgb.{r}", GAIN))
    return pairs


def _discriminator(lods: int) -> list[Pair]:
    pairs = [
        Pair("groupScaleZero.0", "head.conv", GAIN),
        Pair("groupScaleZero.1", "head.dense", GAIN),
        Pair("decisionLayer", "head.output", GAIN),
    ]
    for i in range(lods + 1):
        r = 4 * 2**i
        if i:
            pairs.append(Pair(f"scaleLayers.{i - 1}.0", f"blocks.{r}.conv", GAIN))
            pairs.append(Pair(f"scaleLayers.{i - 1}.1", f"blocks.{r}.down", GAIN))
        pairs.append(Pair(f"fromRGBLayers.{i}", f"from_rgb.{r}", GAIN))
    return pairs
