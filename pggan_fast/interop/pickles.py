"""The pickles of the official TensorFlow implementation, read without TensorFlow and without running what is in them.

A file holds one `tfutil.Network`, or a tuple of them: (G, D, Gs), Gs being the average of G's weights. A network's
state has `name`, `static_kwargs` (the options it was built with), `variables` (name and array of each) and the source
code that built it, which is neither run nor kept.
"""

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pggan_fast.interop.official import from_official
from pggan_fast.networks import Discriminator, Generator

MAX_DIMS = 8
NUMERIC_KINDS = "biuf"  # NumPy's letters for booleans, integers and floats


class OfficialNetwork:
    """The data of a `tfutil.Network`, without its behaviour.

    Attributes: `name`; `options`, a dict of the official build function's arguments; `variables`, arrays by name.
    """

    name: str
    options: dict[str, Any]
    variables: dict[str, np.ndarray]

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        try:
            name, options = state["name"], dict(state["static_kwargs"])
            variables = {name: _as_array(value) for name, value in dict(state["variables"]).items()}
        except (KeyError, TypeError, ValueError) as error:
            raise pickle.UnpicklingError("a network's state has no name, static_kwargs and variables") from error
        # Nothing nested: a few bytes of a pickle can nest more tuples than any message could show.
        if not all(isinstance(text, str) for text in (name, *options, *variables)):
            raise pickle.UnpicklingError("a network has names that are no text")
        for option, value in options.items():
            if not isinstance(value, bool | int | float | str | None):
                raise pickle.UnpicklingError(f"a network's option {option[:40]!r} is a {type(value).__name__}")
        self.name, self.options, self.variables = name, options, variables


class _DType:
    """A numeric `numpy.dtype` as a pickle describes it: a kind and size, then a byte order."""

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        try:
            dtype = np.dtype(code) if isinstance(code, str) and len(code) <= 3 else None
        except TypeError:
            dtype = None
        if dtype is None or dtype.kind not in NUMERIC_KINDS:
            raise pickle.UnpicklingError(f"has an array of {str(code)[:20]!r}, must be of plain numbers")
        self.dtype = dtype

    def __setstate__(self, state: object) -> None:
        # (version, byte order, no subtype, no names, no fields, -1, -1, 0): sizes, fields and flags are not taken over.
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("has a dtype whose state is damaged")
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("has an array with fields, must be of plain numbers")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """A `numpy.ndarray` of a pickle. NumPy itself would follow what the file says about its memory."""

    value: np.ndarray

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("has an array whose state is damaged")
        _, shape, dtype, fortran, data = state
        if isinstance(data, str):  # bytes of Python 2
            data = _encode(data, "latin1")
        if not isinstance(dtype, _DType) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("has an array that does not hold plain numbers")
        whole = isinstance(shape, tuple) and len(shape) <= MAX_DIMS and all(type(n) is int and n >= 0 for n in shape)
        if not whole or math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise pickle.UnpicklingError("has an array whose shape does not fit its bytes")
        values = np.frombuffer(data, dtype.dtype).astype(dtype.dtype.newbyteorder("="))
        self.value = values.reshape(shape, order="F" if fortran else "C")


def _as_array(value: object) -> np.ndarray:
    """Return a variable's array. Raise TypeError for anything else than numbers."""
    if isinstance(value, _Array) and hasattr(value, "value"):
        return value.value
    if isinstance(value, bool | int | float | np.number):
        return np.asarray(value, dtype=np.float64)
    raise TypeError(f"a variable is a {type(value).__name__}")


def _reconstruct(kind: object, shape: object, typecode: object) -> _Array:
    """Return an empty array for `_Array.__setstate__` to fill, as `numpy.core.multiarray._reconstruct` does."""
    if kind is not _Array:
        raise pickle.UnpicklingError("has an array of a class of its own")
    return _Array()


def _scalar(dtype: object, data: object) -> np.number:
    """Return the number that `numpy.core.multiarray.scalar` would."""
    array = _Array()
    array.__setstate__((1, (), dtype, False, data))
    return array.value[()]


def _encode(text: object, encoding: object) -> bytes:
    """Return bytes as `_codecs.encode` does in pickles of bytes."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError("has bytes in an encoding of its own")
    return text.encode("latin1")


def _no_bytes(*arguments: object) -> bytes:
    """Return b"", which pickles of protocol 2 write as a call of `bytes` without arguments."""
    if arguments:
        raise pickle.UnpicklingError("has bytes in an encoding of its own")
    return b""


# Data alone: none of these calls anything that the file could name, and no memory but Python's own is written.
ALLOWED = {
    ("tfutil", "Network"): OfficialNetwork,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    **{
        (f"numpy.{core}.multiarray", name): function
        for core in ("core", "_core")
        for name, function in (("_reconstruct", _reconstruct), ("scalar", _scalar))
    },
}


class _AllowListUnpickler(pickle._Unpickler):
    """The unpickler written in Python: the one in C allocates as much as a file's numbers ask for."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"names {module}.{name}, which is none of the few classes that are read"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("refers to objects outside the file")


def read_official_pickle(path: str | Path) -> list[OfficialNetwork]:
    """Return the networks in an official pickle, in the file's order.

    Raises:
        ValueError: not such a file, or one that names any class or function that is not allow-listed; none is called.
        OSError: it cannot be opened.
    """
    # From memory: a length beyond the end of the file then asks for no more than there is.
    contents = io.BytesIO(Path(path).read_bytes())
    try:
        loaded = _AllowListUnpickler(contents, encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path}: not a pickle of official networks: {reason}") from error
    networks = list(loaded) if isinstance(loaded, tuple | list) else [loaded]
    for network in networks:
        if not isinstance(network, OfficialNetwork) or not hasattr(network, "variables"):
            raise ValueError(f"{path}: holds a {type(network).__name__}, must hold tfutil.Network objects")
    return networks


RENAMED = {
    "label_size": "label_dim",
    "latent_size": "latent_dim",
    "use_pixelnorm": "pixel_norm",
    "pixelnorm_epsilon": "pixel_norm_eps",
    **{n: n for n in ("fmap_base", "fmap_decay", "fmap_max", "use_wscale", "normalize_latents", "mbstd_group_size")},
}
# What one kind of network has; the other is given it too and ignores it, its leaky ReLUs included.
GENERATORS_ALONE = {"latent_size", "normalize_latents", "use_pixelnorm", "pixelnorm_epsilon", "use_leakyrelu"}
DISCRIMINATORS_ALONE = {"mbstd_group_size"}
READ_OFF_VARIABLES = {"num_channels", "resolution", "fused_scale"}
NO_INFLUENCE = {"structure", "dtype", "is_template_graph"}  # how the graph is built, not what it computes


def network_from_pickled(pickled: OfficialNetwork) -> Generator | Discriminator:
    """Build our network with the options and variables of an official one.

    Raises:
        ValueError: an option that our networks do not have, or variables that do not fit (see `from_official`).
    """
    kwargs = {}
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
            raise ValueError(f"network {pickled.name}: has the unknown option {name}")
    try:
        return from_official(pickled.variables, **kwargs)
    except ValueError as error:
        raise ValueError(f"network {pickled.name}: {error}") from error


def load_official_pickle(path: str | Path) -> dict[str, Generator | Discriminator]:
    """Return the networks of an official pickle by their names there: "G", "D" and "Gs", or those that it has.

    Raises:
        ValueError, OSError: as `read_official_pickle` and `network_from_pickled`.
    """
    return {network.name: network_from_pickled(network) for network in read_official_pickle(path)}
