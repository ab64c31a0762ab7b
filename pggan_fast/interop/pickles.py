"""The pickles of the official TensorFlow implementation, read without TensorFlow and without running what is in them.

A file holds one `tfutil.Network`, or a tuple of them: (G, D, Gs), Gs being the average of G's weights. A network's
state has `name`, `static_kwargs` (the options it was built with), `variables` (name and array of each) and the source
code that built it, which is neither run nor kept.
"""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pggan_fast.interop.official import from_official
from pggan_fast.networks import Discriminator, Generator

try:
    from numpy._core import multiarray
except ImportError:  # numpy 1
    from numpy.core import multiarray


class OfficialNetwork:
    """What stands in for `tfutil.Network`: the data of its state, no behaviour.

    Attributes: `name`; `options`, a dict of the official build function's arguments; `variables`, arrays by name.
    """

    name: str
    options: dict[str, Any]
    variables: dict[str, np.ndarray]

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        try:
            self.name = str(state["name"])
            self.options = dict(state["static_kwargs"])
            self.variables = dict(state["variables"])
        except (KeyError, TypeError, ValueError) as error:
            raise pickle.UnpicklingError("a network's state has no name, static_kwargs and variables") from error


def _encode(text: str, encoding: str) -> bytes:
    """What `_codecs.encode` is in pickles of bytes, and nothing else."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


# Data alone: none of these calls anything that the file could name.
ALLOWED = {
    ("tfutil", "Network"): OfficialNetwork,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    **{
        (f"numpy.{core}.multiarray", name): getattr(multiarray, name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
}


class _AllowListUnpickler(pickle.Unpickler):
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
    """The networks in an official pickle, in the file's order.

    Raises:
        ValueError: not such a file, or one that names any class or function that is not allow-listed; none is called.
        OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            loaded = _AllowListUnpickler(file, encoding="latin1").load()
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
    """The networks of an official pickle by their names there: "G", "D" and "Gs", or those that it has.

    Raises:
        ValueError, OSError: as `read_official_pickle` and `network_from_pickled`.
    """
    return {network.name: network_from_pickled(network) for network in read_official_pickle(path)}
