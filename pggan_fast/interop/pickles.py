"""The pickles of the official TensorFlow implementation, read without TensorFlow and without running what is in them.

A file holds one `tfutil.Network`, or a tuple of them: (G, D, Gs), Gs being the average of G's weights. A network's
state has `name`, `static_kwargs` (the options it was built with), `variables` (name and array of each) and the source
code that built it, which is neither run nor kept. NumPy does not take part: arrays are made here, of plain numbers,
from bytes whose count is checked.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from pggan_fast.interop.build import some_of
from pggan_fast.interop.official import from_official
from pggan_fast.interop.plain_pickle import Global, HasState, Malformed, load
from pggan_fast.networks import Discriminator, Generator
from pggan_fast.networks.options import MOST_LATENTS
from pggan_fast.utils.schema import Optional, find_problem, number

PLAIN_DTYPES = re.compile(r"[<>|=]?([iu][1248]|f[248]|b1)")  # no objects, structures, text or dates
MOST_DIMENSIONS = 8
LARGEST_SIZE = 1 << 40
MOST_NETWORKS = 16


class _DType(HasState):
    """A numeric dtype, "f4" at first; its state tells the order of the bytes."""

    def __init__(self, text: str) -> None:
        self.text, self.order = text[-2:], "="

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.text)

    def set_state(self, state: Any) -> None:
        plain = (None, None, None, -1, -1, 0)  # neither a structure nor a subarray; no size of its own, no flags
        if type(state) is not tuple or len(state) != 8 or state[0] != 3 or state[2:] != plain:
            raise Malformed("has a dtype that is more than a plain number")
        if not isinstance(state[1], str) or state[1] not in ("<", ">", "=", "|"):
            raise Malformed("has a dtype of an unknown order of bytes")
        self.order = state[1]


class _Array(HasState):
    """An array that gets shape, dtype and values with its state."""

    values: np.ndarray

    def __init__(self, budget: "_Budget") -> None:
        self.budget = budget

    def set_state(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise Malformed("has an array with another state than version, shape, dtype, order and values")
        _, shape, dtype, fortran, data = state
        if type(shape) is not tuple or len(shape) > MOST_DIMENSIONS or not all(_is_size(n) for n in shape):
            raise Malformed("has an array with a shape that is none")
        if not isinstance(dtype, _DType) or type(fortran) not in (bool, int):
            raise Malformed("has an array of something else than plain numbers")
        data = _as_bytes(data)
        if len(data) != math.prod(shape) * dtype.numpy.itemsize:
            raise Malformed(f"has an array of shape {str(shape)[:60]} and {len(data)} bytes, which do not fit")
        self.budget.take(len(data))
        values = np.frombuffer(data, dtype.numpy).astype(dtype.numpy.newbyteorder("="), copy=False)
        self.values = values.reshape(shape, order="F" if fortran else "C")


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_SIZE


def _as_bytes(data: Any) -> bytes:
    if not isinstance(data, bytes):
        raise Malformed(f"has a {type(data).__name__} in the place of an array's bytes")
    return data


def _dtype(text: Any, align: Any = False, copy: Any = False) -> _DType:
    if not isinstance(text, str) or not PLAIN_DTYPES.fullmatch(text):
        shown = repr(text[:20]) if isinstance(text, str) else f"given as a {type(text).__name__}"
        raise Malformed(f"has an array of dtype {shown}, must be plain numbers")
    return _DType(text)


class _Budget:
    """Bytes that all values together may still take: no more than the file has, which may name the same bytes again."""

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, count: int) -> None:
        """Raise Malformed if `count` bytes more are too many."""
        self.left -= count
        if self.left < 0:
            raise Malformed("has bytes that are longer than the file")


class _Reconstruct:
    """The function that makes empty arrays."""

    def __init__(self, size: int) -> None:
        self.budget = _Budget(size)

    def __call__(self, kind: Any, shape: Any, typecode: Any) -> _Array:
        if kind is not NDARRAY:
            raise Malformed("builds an array of what is no ndarray")
        return _Array(self.budget)


def _scalar(dtype: Any, data: Any) -> np.generic:
    if not isinstance(dtype, _DType) or len(_as_bytes(data)) != dtype.numpy.itemsize:
        raise Malformed("has a number that is none")
    return np.frombuffer(_as_bytes(data), dtype.numpy)[0]


class _Encode:
    """The function `_codecs.encode` in pickles of bytes; its results together are at most as long as the file."""

    def __init__(self, size: int) -> None:
        self.budget = _Budget(size)

    def __call__(self, text: Any, encoding: Any) -> bytes:
        if encoding != "latin1" or not isinstance(text, str):
            raise Malformed("has bytes in an encoding that is not latin1")
        self.budget.take(len(text))
        return text.encode("latin1")


class OfficialNetwork(HasState):
    """The data of a `tfutil.Network`, without its behaviour.

    Attributes: `name`; `options`, a dict of the official build function's arguments; `variables`, arrays by name.
    """

    name: str
    options: dict[str, Any]
    variables: dict[str, np.ndarray]

    def set_state(self, state: Any) -> None:
        """Take name, options and variables of the official class's state."""
        try:
            name, options, variables = (state[key] for key in ("name", "static_kwargs", "variables"))
            pairs = list(variables.items() if isinstance(variables, dict) else variables)
            variables = {key: _number_array(value) for key, value in pairs}
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, Malformed):
                raise
            raise Malformed("a network's state has no name, static_kwargs and variables") from error
        if not isinstance(name, str) or not isinstance(options, dict):
            raise Malformed("a network's state has a name that is no text, or static_kwargs that are no dict")
        if not all(isinstance(key, str) for key in (*options, *variables)):
            raise Malformed("a network's state has options or variables whose names are no text")
        self.name = name
        self.options = {key: _plain_option(key, value) for key, value in options.items()}
        self.variables = variables


def _number_array(value: Any) -> np.ndarray:
    if isinstance(value, _Array) and value.filled:
        return value.values
    if isinstance(value, np.generic | float | int):
        return np.asarray(value)
    raise Malformed("a network's state has a variable that is no array")


def _plain_option(name: str, value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, str | int | float):
        return value
    raise Malformed(f"a network's option {name[:40]!r} is neither a number nor text")


NETWORK = Global(make=OfficialNetwork)
NDARRAY = Global()


def _globals(size: int) -> dict[tuple[str, str], Global]:
    """Return what a file of `size` bytes may name: data alone."""
    allowed = {
        ("tfutil", "Network"): NETWORK,
        ("collections", "OrderedDict"): Global(call=_empty_dict),
        ("_codecs", "encode"): Global(call=_Encode(size)),
        ("__builtin__", "bytes"): Global(call=_empty_bytes),  # empty ones, in protocol 2
        ("builtins", "bytes"): Global(call=_empty_bytes),
        ("numpy", "ndarray"): NDARRAY,
        ("numpy", "dtype"): Global(call=_dtype),
    }
    reconstruct = Global(call=_Reconstruct(size))
    for core in ("core", "_core"):
        allowed[f"numpy.{core}.multiarray", "_reconstruct"] = reconstruct
        allowed[f"numpy.{core}.multiarray", "scalar"] = Global(call=_scalar)
    return allowed


def _empty_dict() -> dict:
    return {}


def _empty_bytes() -> bytes:
    return b""


def read_official_pickle(path: str | Path) -> list[OfficialNetwork]:
    """Return the networks in an official pickle, in the file's order.

    Raises:
        ValueError: not such a file, or one that names any class or function that is not allow-listed; none is called.
        OSError: it cannot be opened.
    """
    try:
        loaded = load(path, _globals(Path(path).stat().st_size))
    except Malformed as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a pickle of official networks: {reason}") from error
    networks = list(loaded) if isinstance(loaded, tuple | list) else [loaded]
    if len(networks) > MOST_NETWORKS:
        raise ValueError(f"{path}: holds {len(networks)} objects, must hold at most {MOST_NETWORKS} networks")
    for network in networks:
        if not isinstance(network, OfficialNetwork) or not network.filled:
            raise ValueError(f"{path}: holds a {type(network).__name__}, must hold tfutil.Network objects")
    return networks


RENAMED = {
    "label_size": "label_dim",
    "latent_size": "latent_dim",
    "use_pixelnorm": "pixel_norm",
    "pixelnorm_epsilon": "pixel_norm_eps",
    **{n: n for n in ("fmap_base", "fmap_decay", "fmap_max", "use_wscale", "normalize_latents", "mbstd_group_size")},
}
# Options of one kind of network; the other is given them too and ignores them, its leaky ReLUs included.
GENERATORS_ALONE = {"latent_size", "normalize_latents", "use_pixelnorm", "pixelnorm_epsilon", "use_leakyrelu"}
DISCRIMINATORS_ALONE = {"mbstd_group_size"}
READ_OFF_VARIABLES = {"num_channels", "resolution", "fused_scale"}
KWARGS = {
    "label_dim": Optional(number(0, MOST_LATENTS, whole=True)),
    "use_wscale": Optional(bool),
    "fmap_base": Optional(number(1, 1 << 32)),
    "fmap_decay": Optional(number(0, 16)),
}
NO_INFLUENCE = {"structure", "dtype", "is_template_graph"}  # how the graph is built, not what it computes


def network_from_pickled(pickled: OfficialNetwork) -> Generator | Discriminator:
    """Build our network with the options and variables of an official one.

    Raises:
        ValueError: an option that our networks do not have, or variables that do not fit (see `from_official`).
    """
    kwargs: dict[str, Any] = {}
    generator = any(name.startswith("ToRGB_lod") for name in pickled.variables)
    for name, value in pickled.options.items():
        if name in (DISCRIMINATORS_ALONE if generator else GENERATORS_ALONE):
            continue
        if name == "use_leakyrelu":
            kwargs["slope"] = 0.2 if value else 0.0
        elif name in RENAMED:
            if value is not None:
                kwargs[RENAMED[name]] = value
        elif name not in READ_OFF_VARIABLES | NO_INFLUENCE:
            raise ValueError(f"network {some_of({pickled.name})}: has the unknown option {some_of({name})}")
    name = some_of({pickled.name})
    try:
        if problem := find_problem(kwargs, KWARGS, "options"):
            raise ValueError(problem)
        return from_official(pickled.variables, **kwargs)
    except (ValueError, ArithmeticError) as error:  # the latter of channels that options beyond reason give
        raise ValueError(f"network {name}: {error}") from error


def load_official_pickle(path: str | Path) -> dict[str, Generator | Discriminator]:
    """Return the networks of an official pickle by their names there: "G", "D" and "Gs", or those that it has.

    Raises:
        ValueError, OSError: as `read_official_pickle` and `network_from_pickled`.
    """
    return {network.name: network_from_pickled(network) for network in read_official_pickle(path)}
