"""State dicts of pro-gan-pth 3 (`pro_gan_pytorch`), to and from our networks.

Every layer has the gain sqrt(2), biases are not scaled. The generator does not normalize the features of its first
layer, a transposed convolution of 1x1 latents: `input_norm=False`. The discriminator averages after its activation:
`fused_scale=False`. Conditional discriminators have a leaky ReLU after the score and limit the norm of the class
vectors, which ours do not, so they are refused.
"""

import math
from collections.abc import Mapping

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

FORMAT = Format("pro-gan-pth")
GAIN = math.sqrt(2)


def from_pro_gan_pth(
    state_dict: Weights, *, use_eql: bool = True, label_dim: int = 0, **fmap: float
) -> Generator | Discriminator:
    """Build the network that a state dict of `pro_gan_pytorch.networks` belongs to.

    Args:
        state_dict: of a Generator or a Discriminator; names tell which, shapes the rest.
        use_eql: their option: weights are scaled at run time.
        label_dim: how many of a generator's latents, the last ones, are our labels.
        fmap: fmap_base, fmap_decay, fmap_max where the inferred ones do not fit.

    Returns:
        A float32 network on the CPU. It blends as theirs does, with the same alpha.

    Raises:
        ValueError: unknown or missing names, shapes that do not fit, a conditional discriminator.
    """
    weights = {name.removeprefix("module."): value for name, value in checked(state_dict).items()}
    if any("label_embedder" in name for name in weights):
        raise ValueError("weights: a conditional discriminator of pro-gan-pth, whose function ours cannot be")
    generator = any(name.startswith("rgb_converters.") for name in weights)
    lods = count(weights, "layers.") - 1
    pairs = _generator(lods) if generator else _discriminator(lods)
    check_names(weights, pairs)
    sizes = [4 * 2**i for i in range(lods + 1)]
    if generator:
        channels = {r: weights[f"layers.{i}.conv_2.bias"].numel() for i, r in enumerate(sizes)}
        options: dict = dict(
            resolution=sizes[-1],
            image_channels=weights["rgb_converters.0.bias"].numel(),
            label_dim=label_dim,
            latent_dim=weights["layers.0.conv_1.weight"].shape[0] - label_dim,
            input_norm=False,
            **fmaps(channels, fmap),
        )
    else:
        channels = {r: weights[f"layers.{lods - i}.conv_1.bias"].numel() for i, r in enumerate(sizes)}
        channels[2] = weights[f"layers.{lods}.conv_2.bias"].numel()
        options = dict(
            resolution=sizes[-1],
            image_channels=weights["from_rgb.0.0.weight"].shape[1],
            fused_scale=False,
            **fmaps(channels, fmap),
        )
    net = build_network(Generator if generator else Discriminator, options, numbers(weights))
    take(weights, net, pairs, FORMAT, use_eql)
    return net


def to_pro_gan_pth(net: Generator | Discriminator) -> dict[str, Tensor]:
    """Return the state dict of theirs (with use_eql) that computes what `net` does.

    Raises:
        ValueError: an option of `net` that theirs do not have.
    """
    check_kind(net, FORMAT.name)
    generator = isinstance(net, Generator)
    required: Mapping = (
        {"input_norm": False, "input_bias": "channel", "pixel_norm": True, "normalize_latents": True}
        if generator
        else {
            "fused_scale": False,
            "label_dim": 0,
            "mbstd_group_size": 4,
            "mbstd_grouping": "strided",
            "mbstd_correction": 0,
            "minibatch_discrimination": False,
        }
    )
    check_options(net, required, FORMAT.name)
    lods = net.resolution.bit_length() - 3
    if generator:
        first = net.input.weight
        return give(net, _generator(lods), {"layers.0.conv_1": (first.shape[1], len(net.input_bias), 4, 4)}, FORMAT)
    last, out = f"layers.{lods}", net.head["output"].weight
    shapes = {
        f"{last}.conv_2": (out.shape[1], net.head["conv"].weight.shape[0], 4, 4),
        f"{last}.conv_3": (*out.shape, 1, 1),
    }
    return give(net, _discriminator(lods), shapes, FORMAT)


def _generator(lods: int) -> list[Pair]:
    first = Pair(
        "layers.0.conv_1",
        "input",
        GAIN,
        lambda weight: weight.permute(1, 2, 3, 0).flatten(0, 2),  # [in, C, 4, 4]
        lambda weight, shape: weight.view(*shape[1:], shape[0]).permute(3, 0, 1, 2),
    )
    pairs = [first, Pair("layers.0.conv_2", "blocks.4.conv", GAIN)]
    for i in range(lods + 1):
        r = 4 * 2**i
        if i:
            pairs.append(Pair(f"layers.{i}.conv_1", f"blocks.{r}.up", GAIN))
            pairs.append(Pair(f"layers.{i}.conv_2", f"blocks.{r}.conv", GAIN))
        pairs.append(Pair(f"rgb_converters.{i}", f"to_rgb.{r}", GAIN))
    return pairs


def _discriminator(lods: int) -> list[Pair]:
    pairs = [
        Pair(f"layers.{lods}.conv_1", "head.conv", GAIN),
        Pair(f"layers.{lods}.conv_2", "head.dense", GAIN, lambda weight: weight.flatten(1)),
        Pair(f"layers.{lods}.conv_3", "head.output", GAIN, lambda weight: weight.flatten(1)),
    ]
    for i in range(lods + 1):
        r = 4 * 2**i
        if i:
            pairs.append(Pair(f"layers.{lods - i}.conv_1", f"blocks.{r}.conv", GAIN))
            pairs.append(Pair(f"layers.{lods - i}.conv_2", f"blocks.{r}.down", GAIN))
        pairs.append(Pair(f"from_rgb.{lods - i}.0", f"from_rgb.{r}", GAIN))
    return pairs
