"""Options of the networks, each written once: name, default and what a file may hold for it.

Constructors, the `options` that files keep, the check of such files and the trainer read these classes.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import Any, TypeVar

from pggan_fast.networks.resolutions import HIGHEST, LOWEST, SQUARE, check_base, check_resolution
from pggan_fast.utils.schema import OneOf, Optional, Schema, find_problem, number

Network = TypeVar("Network", bound=type)

INPUT_BIASES = ("channel", "pixel")
LABEL_MODES = ("acgan", "projection", "concat")
MOST_CHANNELS = 1 << 16
MOST_LATENTS = 1 << 20
MOST_BLOCKS = 64

A_RESOLUTION = number(LOWEST, HIGHEST, whole=True)
A_CHANNEL_COUNT = number(1, MOST_CHANNELS, whole=True)


def channels(resolution: int, fmap_base: int, fmap_decay: float, fmap_max: int) -> int:
    """Feature maps of a layer at `resolution` = 2**r: the official nf(r - 1); nf(0) is the latent size."""
    stage = resolution.bit_length() - 2
    return min(int(fmap_base / 2 ** (stage * fmap_decay)), fmap_max)


def option(default: Any, schema: Schema) -> Any:
    """A field with its default, and the shape that a value read from a file must have."""
    return dataclasses.field(default=default, metadata={"schema": schema})


@dataclass
class NetworkOptions:
    """Options of every generator and discriminator. Raises ValueError for a value that is not allowed."""

    resolution: int = option(HIGHEST, A_RESOLUTION)
    _: KW_ONLY
    image_channels: int = option(3, A_CHANNEL_COUNT)
    base: Sequence[int] = option(SQUARE, [number(1, 1 << 12, whole=True)])
    label_dim: int = option(0, number(0, MOST_LATENTS, whole=True))
    fmap_base: int = option(8192, number(1, 1 << 32))
    fmap_decay: float = option(1.0, number(0, 16))
    fmap_max: int = option(512, A_CHANNEL_COUNT)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, Integral) and not isinstance(value, int):  # NumPy's, which JSON does not take
                setattr(self, name, int(value))
        check_resolution("resolution", self.resolution)
        self.base = check_base(self.base)
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            own = field.name in ("base", "attention_at")  # checks that know more
            if not own and (problem := find_problem(value, field.metadata["schema"], field.name)):
                raise ValueError(problem)
        if self.channels(self.resolution) < 1:
            raise ValueError(f"fmap_base is {self.fmap_base}, leaves no channel at {self.resolution} px")

    def channels(self, resolution: int) -> int:
        """Return the feature maps of a layer at `resolution`; at 2, the size of the latent."""
        return channels(resolution, self.fmap_base, self.fmap_decay, self.fmap_max)

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name as JSON has them, for the constructor of a network like this one."""
        return {**dataclasses.asdict(self), "base": list(self.base)}


@dataclass(kw_only=True)
class PgganOptions(NetworkOptions):
    """Options that the paper's generator and discriminator share."""

    fused_scale: bool = option(True, bool)
    use_wscale: bool = option(True, bool)
    attention_at: int | None = option(None, OneOf(A_RESOLUTION, None))
    residual: bool = option(False, bool)
    spectral_norm: bool = option(False, bool)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_at is not None:
            check_resolution("attention_at", self.attention_at, self.resolution)


@dataclass(kw_only=True)
class GeneratorOptions(PgganOptions):
    """Options of `Generator`, which explains them."""

    latent_dim: int | None = option(None, OneOf(number(1, MOST_LATENTS, whole=True), None))
    slope: float = option(0.2, number(0, 1))
    pixel_norm: bool = option(True, bool)
    pixel_norm_eps: float = option(1e-8, number(0, 1))
    normalize_latents: bool = option(True, bool)
    input_norm: bool = option(True, bool)
    input_bias: str = option("channel", str)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("input_bias", self.input_bias, INPUT_BIASES)
        self.latent_dim = self.channels(2) if self.latent_dim is None else self.latent_dim


@dataclass(kw_only=True)
class DiscriminatorOptions(PgganOptions):
    """Options of `Discriminator`, which explains them."""

    mbstd_group_size: int = option(4, A_CHANNEL_COUNT)
    mbstd_grouping: str = option("strided", str)
    mbstd_correction: int = option(0, number(0, 1, whole=True))
    minibatch_discrimination: bool = option(False, bool)
    label_mode: str = option("acgan", str)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("label_mode", self.label_mode, LABEL_MODES)


@dataclass(kw_only=True)
class AutoencoderOptions(NetworkOptions):
    """Options of `AutoencoderDiscriminator`, which has no labels."""

    label_dim: int = option(0, number(0, 0, whole=True))
    fused_scale: bool = option(True, bool)
    use_wscale: bool = option(True, bool)
    code_dim: int | None = option(None, OneOf(number(1, MOST_LATENTS, whole=True), None))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.label_dim:
            raise ValueError(f"label_dim is {self.label_dim}, must be 0: an autoencoder has no labels")
        self.code_dim = self.channels(2) if self.code_dim is None else self.code_dim


@dataclass(kw_only=True)
class R3ganOptions(NetworkOptions):
    """Options that both networks of R3GAN share; the defaults give the published channels from 32 to 256 px."""

    network: str = option("r3gan", str)  # by which a file is told from one of the paper's networks
    fmap_base: int = option(12288, number(1, 1 << 32))
    fmap_max: int = option(768, A_CHANNEL_COUNT)
    blocks: int = option(2, number(1, MOST_BLOCKS, whole=True))
    expansion: int = option(2, number(1, MOST_BLOCKS, whole=True))
    group_channels: int = option(16, A_CHANNEL_COUNT)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("network", self.network, ("r3gan",))


@dataclass(kw_only=True)
class R3ganGeneratorOptions(R3ganOptions):
    """Options of `R3ganGenerator`, which explains them."""

    latent_dim: int = option(64, number(1, MOST_LATENTS, whole=True))


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError naming `name` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}, allowed: {', '.join(allowed)}")


def schema_of(options: type[NetworkOptions]) -> dict[str, Schema]:
    """Return the shape of such options in a file: each by name, any of them missing."""
    return {field.name: Optional(field.metadata["schema"]) for field in dataclasses.fields(options)}


def chosen(options: type[NetworkOptions], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `values` that are named as such options are."""
    names = {field.name for field in dataclasses.fields(options)}
    return {name: value for name, value in values.items() if name in names}


def takes(options: type[NetworkOptions]) -> Callable[[Network], Network]:
    """Decorate a network so that `help` and editors show the options that its constructor takes."""

    def shown(network: Any) -> Any:
        network.Options = options
        network.__signature__ = inspect.signature(options).replace(return_annotation=inspect.Signature.empty)
        return network

    return shown
